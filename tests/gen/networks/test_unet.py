"""The UNet of blocks: configuration, shape, and its place in diffusers' pipelines."""

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.presets import UNET_PRESETS

TEXT = 8


def make_unet(**overrides):
    torch.manual_seed(0)
    config = {"sample_size": 8, "in_channels": 4, "block_out_channels": (16, 24), "layers_per_block": 1}
    config |= {"block_types": ("i2rmb", "maxvit"), "attention_head_dim": 8, "window_size": 4}
    model = BlockUNet2DModel(**(config | overrides))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_pipeline(**overrides):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=make_unet(cross_attention_dim=TEXT, **overrides),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **arguments):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 7, TEXT, generator=generator)
    arguments = {"height": 24, "width": 40, "num_inference_steps": 2, "output_type": "np"} | arguments
    return torch.from_numpy(
        pipe(prompt_embeds=text[:1], negative_prompt_embeds=text[1:], generator=generator, **arguments).images
    )


@pytest.mark.parametrize("name", UNET_PRESETS)
def test_presets(name):
    with torch.device("meta"):
        model = BlockUNet2DModel.from_preset(name, in_channels=4, num_classes=10).eval()
        output = model(torch.zeros(1, 4, 32, 40), torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.long)).sample
    assert output.shape == (1, 4, 32, 40)
    millions = model.num_parameters() / 1e6
    least, most = {"-s": (25, 45), "-b": (110, 170)}.get(name[-2:], (1, 10))  # the last for edge use
    assert least < millions < most


def test_a_string_is_enough():
    with torch.device("meta"):
        model = BlockUNet2DModel(block_types=("i2rmb", "i2rmb", "maxvit"))
        same = BlockUNet2DModel(block_types="i2rmb, i2rmb, maxvit")
        plain = BlockUNet2DModel()
    kinds = [type(stage.blocks[0]).__name__ for stage in model.down_blocks]
    assert kinds == ["I2RMB", "I2RMB", "MaxViTBlock"]
    assert [type(stage.blocks[0]).__name__ for stage in model.up_blocks] == kinds[::-1]
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in same.named_parameters()
    }
    assert len(plain.down_blocks) == 3


def test_maxvit_turns_round_in_the_decoder():
    model = make_unet(block_types="maxvit")
    assert not model.down_blocks[0].blocks[0].decoder and not model.mid_block[0].decoder
    block = model.up_blocks[0].blocks[0]
    assert block.decoder
    order = []
    for name in ("conv", "block_attn", "grid_attn"):
        getattr(block, name).register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        model(torch.randn(1, 4, 8, 8), 1.0)
    assert order == ["grid_attn", "block_attn", "conv"]


def test_stable_diffusion_takes_it_as_unet():
    pipe = make_pipeline()
    guided, plain = draw(pipe, guidance_scale=5.0), draw(pipe, guidance_scale=1.0)
    assert guided.shape == (1, 24, 40, 3) and guided.isfinite().all()
    assert not torch.allclose(guided, plain)
    assert draw(pipe, height=None, width=None).shape == (1, 16, 16, 3)  # from `sample_size`


def test_an_embedded_guidance_scale():
    """With `time_cond_proj_dim` the pipeline hands the scale to the network, as for latent consistency models."""
    pipe = make_pipeline(time_cond_proj_dim=16)
    assert not torch.allclose(draw(pipe, guidance_scale=2.0), draw(pipe, guidance_scale=8.0))


def test_lora_files_load_scale_and_unload(tmp_path):
    pipe = make_pipeline()
    base = draw(pipe)
    targets = ["q", "k", "v", "proj", "qk", "conv_in"]
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    adapted = draw(pipe)
    layers = diffusers.utils.convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    fresh = make_pipeline()
    fresh.load_lora_weights(tmp_path, adapter_name="ours")
    torch.testing.assert_close(draw(fresh), adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, base, atol=1e-3)
    call = torch.randn(1, 4, 8, 8), torch.tensor(3.0), torch.randn(1, 7, TEXT)
    with torch.no_grad():
        silent = fresh.unet(*call, cross_attention_kwargs={"scale": 0.0}).sample
        torch.testing.assert_close(silent, make_pipeline().unet(*call).sample, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(silent, fresh.unet(*call).sample, atol=1e-4)
    fresh.set_adapters("ours", 0.0)
    torch.testing.assert_close(draw(fresh), base, rtol=1e-4, atol=1e-5)
    fresh.unload_lora_weights()
    torch.testing.assert_close(draw(fresh), base, rtol=1e-4, atol=1e-5)


def test_conditions_that_nobody_reads_are_refused():
    model, sample = make_unet(), torch.zeros(1, 4, 8, 8)
    for arguments, match in (
        ({"timestep_cond": torch.zeros(1, 4)}, "time_cond_proj_dim"),
        ({"added_cond_kwargs": {"image_embeds": 0}}, "image_embeds"),
        ({"cross_attention_kwargs": {"gligen": 0}}, "gligen"),
        ({"class_labels": torch.tensor([0])}, "no classes"),
    ):
        with pytest.raises(ValueError, match=match):
            model(sample, 1.0, **arguments)
    with pytest.raises(ValueError, match="reads a text"):
        make_unet(cross_attention_dim=TEXT)(sample, 1.0)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"block_types": ("resnet", "maxvti")}, "maxvit"),
        ({"block_types": ("dit",) * 3}, "3 entries for 2 stages"),
        ({"layers_per_block": (1, 1, 1)}, "3 entries for 2 stages"),
        ({"layers_per_block": 0}, "at least 1"),
        ({"block_out_channels": ()}, "at least one stage"),
        ({"attention_head_dim": 5}, "does not divide"),
        ({"window_size": -1}, "window_size"),
        ({"block_options": {"maxvit": {"modulation": "ada"}}}, "adaln_zero"),
        ({"block_options": {"maxvit": {"conv_norm": "instance"}}}, "batch"),
        ({"block_options": {"i2rmb": {"kernel_size": 4}}}, "odd"),
        ({"block_options": {"i2rmb": {"expand": 2}}}, "expand_ratio"),
        ({"block_options": {"resnet": {}}}, "leave them out"),
    ],
)
def test_bad_configurations_say_what_to_do(config, match):
    with pytest.raises(ValueError, match=match):
        make_unet(**config)


def test_unknown_presets_and_overrides():
    with pytest.raises(ValueError, match="u-emo-s"):
        BlockUNet2DModel.from_preset("u-emos")
    with pytest.raises(ValueError, match="hidden_size"):
        BlockUNet2DModel.from_preset("u-emo-s", hidden_size=3)
