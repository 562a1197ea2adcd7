"""A denoiser of diffusers as the lowest brick: the same estimate as without the stack, and a brick like any other."""

import json
import math
from functools import partial

import pytest
import torch
from diffusers import (
    AutoModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from brickwork import BrickSchedule, EDMHeunScheduler, LegoPipeline, LegoTransformer2DModel
from brickwork.eval.commands.info import describe
from brickwork.gen.networks.wrapped import load_denoiser, vp_log_sigmas
from brickwork.gen.operations import count_operations

CONFIGS = {
    "unet": {
        "sample_size": 16, "block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4, "layers_per_block": 1,
        "num_class_embeds": 6,
    },
    "dit": {
        "sample_size": 16, "in_channels": 3, "out_channels": 6, "num_layers": 1, "num_attention_heads": 2,
        "attention_head_dim": 8, "num_embeds_ada_norm": 5, "patch_size": 4,
    },
}  # fmt: skip
BRICK = {"window_sizes": [8], "patch_sizes": [2], "num_layers": [1], "hidden_sizes": 8, "num_attention_heads": 2}


def make_denoiser(kind="unet", **overrides):
    torch.manual_seed(0)
    network = {"unet": UNet2DModel, "dit": DiTTransformer2DModel}[kind](**CONFIGS[kind] | overrides)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def make_stack(kind="unet", scheduler=None, bricks=BRICK, overrides=(), **config):
    network = make_denoiser(kind, **dict(overrides))
    num_classes = None if kind == "dit" or not network.config.num_class_embeds else network.config.num_class_embeds - 1
    model = LegoTransformer2DModel.from_denoiser(
        network, scheduler or DDPMScheduler(), **bricks, **{"num_classes": num_classes} | config
    )
    for brick in model.own_bricks:
        for parameter in brick.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def inputs(batch=2, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 3, height, width, generator=generator)
    return sample, torch.randn(batch, generator=generator) / 4, torch.randint(0, 5, (batch,), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_the_same_estimate_as_with_its_own_scheduler(kind, prediction_type):
    """At every level D(x; σ) of the stack is what the network and diffusers' scheduler say without it."""
    network = make_denoiser(kind)
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, beta_schedule="scaled_linear")
    scheduler.set_timesteps(1000)
    stack = LegoTransformer2DModel.from_denoiser(network, scheduler, num_classes=5)
    edm = EDMHeunScheduler()
    noise, images, labels = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([1, 5])
    for step in (0, 1, 250, 777, 999):
        noisy = scheduler.add_noise(images, noise, torch.tensor([step]))
        output = network(noisy, torch.tensor([step, step]), class_labels=labels).sample[:, :3]
        expected = scheduler.step(output, step, noisy).pred_original_sample
        kept = scheduler.alphas_cumprod[step].double()
        sigma = ((1 - kept) / kept).sqrt()
        sample = noisy.double() / kept.sqrt()
        estimate = stack(edm.precondition_inputs(sample, sigma).float(), (sigma.log() / 4).float(), labels).sample
        denoised = edm.precondition_outputs(sample, estimate.double(), sigma)
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(denoised.float() / scale, expected / scale, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_network_that_estimates_f_itself(kind):
    """It reads the stack's inputs as they are, and what it says is the stack's answer."""
    network, (sample, timestep, labels) = make_denoiser(kind), inputs(3)
    stack = LegoTransformer2DModel.from_denoiser(network, DDPMScheduler(prediction_type="edm"), num_classes=5)
    level = stack.bricks[0].level(4 * timestep)
    expected = network(sample, level, class_labels=labels).sample[:, :3]
    assert torch.equal(stack(sample, timestep, labels).sample, expected)


def test_levels_between_and_beyond_the_schedule():
    brick = make_stack().bricks[0]
    table = vp_log_sigmas({})
    steps = torch.arange(0, 1000, 37)
    assert torch.equal(brick.level(table[steps]), steps.float())
    between = brick.level((table[10:20] + table[11:21]) / 2)
    torch.testing.assert_close(between, torch.arange(10, 20) + 0.5)
    assert brick.level(torch.tensor([math.log(1e-4), math.log(1e4)])).tolist() == [0, 999]
    learned = make_stack(overrides={"time_embedding_type": "learned", "num_train_timesteps": 1000}.items())
    assert learned.bricks[0].level(table[10:11] + 1e-3).dtype == torch.long
    ends = vp_log_sigmas({"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"})
    assert ends.isfinite().all() and (ends.diff() > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_brick_like_any_other(kind, batch):
    stack = make_stack(kind, trained_subsets="any")
    sample, timestep, labels = inputs(batch)
    both = stack(sample, timestep, labels, return_intermediates=True).intermediates
    alone = stack(sample, timestep, labels, bricks=[0]).sample
    skipped = stack(sample, timestep, labels, bricks=[1]).sample
    assert torch.equal(both[0], alone)
    assert not torch.allclose(both[1], alone) and not torch.allclose(both[1], skipped)
    # The brick on top reads the wrapped network's estimate: another one, another answer.
    stack.bricks[0].prediction_type = "sample"
    assert not torch.allclose(stack(sample, timestep, labels).sample, both[1])
    assert torch.equal(stack(sample, timestep, labels, bricks=[1]).sample, skipped)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_operations_are_counted_and_a_skipped_one_costs_nothing(kind):
    stack = make_stack(kind, trained_subsets="any")
    for size in ((16, 16), (32, 32)) if kind == "dit" else ((16, 16), (8, 32)):
        sample, timestep, labels = inputs(1, *size)
        for name, operations in stack.subnets(*size).items():
            run = partial(stack, sample, timestep, labels, bricks=[int(part) for part in name.split("+")])
            assert count_operations(run)[0] == operations
    assert "UNet2DModel" in describe(make_stack(), 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("bricks", [BRICK, {}], ids=["with a brick", "alone"])
def test_saved_and_loaded(kind, bricks, tmp_path):
    stack = make_stack(kind, bricks=bricks)
    pipe = LegoPipeline(transformer=stack, scheduler=EDMHeunScheduler())
    if bricks:
        pipe.brick_schedule = BrickSchedule.fast(stack)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "transformer").glob("*") if path.suffix != ".json"] == [
        "diffusion_pytorch_model.safetensors"
    ]
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(AutoModel.from_pretrained(str(tmp_path / "transformer"))) is LegoTransformer2DModel
    call = {"class_labels": [1, 2], "num_inference_steps": 3, "guidance_scale": 1.5, "output_type": "latent"}
    first, second = (p(generator=torch.Generator().manual_seed(0), **call) for p in (pipe, again))
    assert torch.equal(first.images, second.images)
    assert first.bricks == second.bricks == ([(0,), (0,), (0, 1)] if bricks else [(0,)] * 3)


@torch.no_grad()
def test_half_precision_keeps_the_noise_levels(tmp_path):
    stack = make_stack()
    sample, timestep, labels = inputs()
    expected = stack(sample, timestep, labels).sample
    stack.save_pretrained(tmp_path)
    loaded = LegoTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for half in (loaded, stack.to(torch.bfloat16)):
        assert half.bricks[0].log_sigmas.dtype == torch.float32
        output = half(sample.bfloat16(), timestep, labels).sample
        assert output.dtype == torch.bfloat16
        assert (output.float() - expected).norm() < 0.05 * expected.norm()


@torch.no_grad()
def test_offloading_and_casting():
    sample, timestep, labels = inputs()
    expected = make_stack()(sample, timestep, labels).sample
    cpu = torch.device("cpu")
    offloaded = make_stack()
    offloaded.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(offloaded(sample, timestep, labels).sample, expected)
    cast = make_stack()
    cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert 0 < (cast(sample, timestep, labels).sample - expected).norm() < 0.2 * expected.norm()


@torch.no_grad()
def test_compiled_blocks_and_one_graph():
    stack = make_stack("dit", bricks={})
    stack.set_attention_backend("native")
    sample, timestep, labels = inputs()
    compiled = torch.compile(stack, fullgraph=True, backend="eager")
    expected = stack(sample, timestep, labels).sample
    torch.testing.assert_close(compiled(sample, timestep, labels).sample, expected)
    stack.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(stack(sample, timestep, labels).sample, expected)


def test_gradient_checkpointing_changes_nothing():
    stack = make_stack().train()
    sample, timestep, labels = inputs()

    def gradients():
        stack.zero_grad()
        stack(sample, timestep, labels).sample.square().mean().backward()
        return {name: p.grad.clone() for name, p in stack.named_parameters() if p.grad is not None}

    plain = gradients()
    assert len(plain) == len(list(stack.parameters()))
    stack.enable_gradient_checkpointing()
    again = gradients()
    assert all(torch.allclose(plain[name], again[name], atol=1e-7) for name in plain)


def test_a_frozen_network_drops_nothing_out():
    stack = make_stack(overrides={"dropout": 0.5}.items()).train()
    assert stack.bricks[0].model.training
    stack.bricks[0].requires_grad_(False)
    stack.train()
    assert stack.training and not stack.bricks[0].model.training
    dit = make_stack("dit").train()
    sample, timestep, labels = inputs()
    assert torch.equal(dit(sample, timestep, labels).sample, dit(sample, timestep, labels).sample)


@torch.no_grad()
def test_no_class_is_the_row_behind_the_last():
    for kind in ("unet", "dit"):
        stack = make_stack(kind, bricks={})
        sample, timestep, labels = inputs()
        none = stack(sample, timestep).sample
        assert torch.equal(none, stack(sample, timestep, torch.full((2,), 5)).sample)
        assert not torch.allclose(none, stack(sample, timestep, labels).sample)


@torch.no_grad()
def test_a_network_without_a_row_for_no_class_gets_their_mean():
    network = make_denoiser()
    stack = LegoTransformer2DModel.from_denoiser(network, DDPMScheduler())
    assert stack.config.num_classes == 6
    table = stack.bricks[0].model.class_embedding.weight
    assert torch.equal(table[:6], network.class_embedding.weight)
    torch.testing.assert_close(table[6], network.class_embedding.weight.mean(dim=0))
    assert network.config.num_class_embeds == 6


@torch.no_grad()
def test_a_network_without_classes_below_bricks_that_have_them():
    stack = make_stack(overrides={"num_class_embeds": None}.items(), num_classes=5)
    sample, timestep, labels = inputs()
    both = stack(sample, timestep, labels, return_intermediates=True).intermediates
    none = stack(sample, timestep, return_intermediates=True).intermediates
    assert torch.equal(both[0], none[0]) and not torch.allclose(both[1], none[1])


@torch.no_grad()
def test_a_pipeline_of_diffusers_is_read(tmp_path):
    network = make_denoiser(num_class_embeds=None)
    DDPMPipeline(network, DDPMScheduler(prediction_type="v_prediction", beta_end=0.01)).save_pretrained(tmp_path)
    loaded, scheduler, names = load_denoiser(str(tmp_path))
    stack = LegoTransformer2DModel.from_denoiser(loaded, scheduler)
    described = stack.config.pretrained_brick
    assert (described["prediction_type"], described["schedule"]["beta_end"]) == ("v_prediction", 0.01)
    assert names is None and json.dumps(described)
    assert torch.equal(stack.bricks[0].model.conv_in.weight, network.conv_in.weight)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="UNet2DConditionModel, which cannot be a brick.*UNet2DModel, DiT"):
        load_denoiser(str(tmp_path))
    with pytest.raises(ValueError, match="no pipeline of diffusers"):
        load_denoiser(str(tmp_path / "unet"))


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("unet", (15, 16), r"\(15, 16\); the lowest brick of this stack is a UNet2DModel that takes multiples of 2"),
        ("dit", (18, 18), "DiTTransformer2DModel that takes multiples of 4"),
        ("dit", (16, 32), "DiTTransformer2DModel, which takes squares alone"),
    ],
)
def test_sizes_that_it_cannot_take(kind, size, message):
    stack = make_stack(kind, trained_subsets="any")
    sample, timestep, labels = inputs(1, *size)
    with pytest.raises(ValueError, match=message):
        stack(sample, timestep, labels)
    assert stack(sample, timestep, labels, bricks=[1]).sample.shape == sample.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrained_brick": {"class_name": "UNet2DModel"}}, "give a mapping with class_name and config"),
        ({"class_name": "UNet3DConditionModel"}, "UNet3DConditionModel, which cannot be a brick"),
        ({"prediction_type": "eps"}, "`pretrained_brick.prediction_type` is 'eps'; did you mean 'epsilon'"),
        ({"schedule": {"beta_begin": 1}}, "did you mean 'beta_"),
        ({"config": CONFIGS["unet"] | {"layer_per_block": 1}}, "did you mean 'layers_per_block'"),
        ({"config": CONFIGS["unet"] | {"time_embedding_type": "fourier"}}, "'fourier', which goes with another"),
        ({"config": CONFIGS["unet"] | {"class_embed_type": "timestep"}}, "`class_embed_type` 'timestep'"),
        ({"config": CONFIGS["unet"] | {"out_channels": 4}}, "reads 3 channels and returns 4"),
        ({"config": CONFIGS["unet"] | {"num_class_embeds": 9}}, "8 classes and a row for no class; make it 8"),
        ({"window_sizes": [8, 8]}, "`window_sizes` begins with 8; .* its entry is 16"),
        ({"patch_sizes": [4, 2]}, "`patch_sizes` begins with 4; .* its entry is 2"),
        ({"num_layers": [1, 1]}, "`num_layers` begins with 1; .* its entry is 0"),
        ({"hidden_sizes": [8, 8]}, "`hidden_sizes` begins with 8"),
        ({"sample_size": 15, "window_sizes": [15, 8]}, "takes multiples of 2"),
    ],
)
def test_what_cannot_be_wrapped(change, message):
    brick = {"class_name": "UNet2DModel", "config": CONFIGS["unet"]}
    brick |= {key: change.pop(key) for key in ("class_name", "prediction_type", "schedule", "config") if key in change}
    values = {
        "sample_size": 16, "num_classes": 5, "window_sizes": [16, 8], "patch_sizes": [2, 2], "num_layers": [0, 1],
        "hidden_sizes": 8, "num_attention_heads": 2, "pretrained_brick": brick,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        LegoTransformer2DModel(**values | change)


def test_networks_schedulers_and_sizes_that_say_too_little():
    with pytest.raises(ValueError, match="The denoiser is a Linear, which cannot be a brick"):
        LegoTransformer2DModel.from_denoiser(torch.nn.Linear(1, 1), DDPMScheduler())
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler, which has no betas"):
        LegoTransformer2DModel.from_denoiser(make_denoiser(), FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="`sample_size` is None"):
        LegoTransformer2DModel.from_denoiser(make_denoiser(sample_size=None), DDPMScheduler())
    with pytest.raises(ValueError, match="`num_classes` is 3, but `denoiser` has 6 rows"):
        LegoTransformer2DModel.from_denoiser(make_denoiser(), DDPMScheduler(), num_classes=3)
