"""The DINO adapter: its projection equals the authors', and a reference acts in every network that takes residuals."""

import copy
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from brickwork import (
    BlockTransformer2DModel,
    BlockUNet2DModel,
    ClassToImagePipeline,
    DinoAdapter,
    EDMHeunScheduler,
    LegoPipeline,
    LegoTransformer2DModel,
    load_adapter,
)
from brickwork.adapters.dino.encoder import dense_features, reference_pixels
from brickwork.adapters.dino.projection import FAPM, LearnedUpsample
from brickwork.adapters.dino.sites import sites_of
from brickwork.adapters.dino.spatial_prior import SpatialPrior, with_prior

DATA = Path(__file__).parents[2] / "data" / "adapters"
TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
ENCODERS = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**TINY)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY, num_register_tokens=3)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**TINY, intermediate_size=32, num_register_tokens=2)),
    "vit": lambda: ViTModel(ViTConfig(**TINY, intermediate_size=32)),
}


def make_encoder(kind="dinov2"):
    torch.manual_seed(3)
    return ENCODERS[kind]().eval()


def randomised(adapter):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.trainable_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapter


def picture(seed=0, size=(20, 30)):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def test_the_projection_equals_the_authors():
    arrays = load_file(DATA / "fapm.safetensors")
    weights = {key.removeprefix("weight."): value for key, value in arrays.items() if key.startswith("weight.")}
    projection = FAPM(12, 8, [8, 6, 10]).double()
    projection.load_state_dict(weights)
    found = projection([arrays[f"input.{scale}"] for scale in range(3)])
    for scale, size in enumerate([(12, 16), (7, 9), (2, 3)]):
        torch.testing.assert_close(found[scale], arrays[f"output.{scale}"], rtol=1e-9, atol=1e-9)
        upsample = LearnedUpsample(found[scale].shape[1]).double()
        upsample.up.load_state_dict({name: arrays[f"up.{scale}.{name}"] for name in ("weight", "bias")})
        upsampled = upsample(arrays[f"output.{scale}"], size)
        torch.testing.assert_close(upsampled, arrays[f"upsampled.{scale}"], rtol=1e-9, atol=1e-9)


def test_the_spatial_prior_equals_the_authors():
    arrays = load_file(DATA / "spatial_prior.safetensors")
    weights = {key.removeprefix("weight."): value for key, value in arrays.items() if key.startswith("weight.")}
    prior = SpatialPrior(5, 2, nn.BatchNorm2d).double().eval()
    prior.load_state_dict(weights, strict=False)  # but for the number of batches that a norm has seen
    for number, found in enumerate(prior(arrays["input"])):
        torch.testing.assert_close(found, arrays[f"output.{number}"], rtol=1e-9, atol=1e-9)


def test_a_spatial_prior_sees_what_the_encoder_does_not(tmp_path):
    network, encoder = networks()["unet"].eval(), make_encoder()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    sample, labels = torch.randn(1, network.config.in_channels, 12, 18), torch.tensor([0])
    adapter = DinoAdapter.create(network, encoder=encoder, rank=4, size=35, spatial_prior=True)

    def draw(adapter):
        with torch.no_grad(), adapter.condition(reference_image=picture()):
            return network(sample, torch.tensor([0.3]), class_labels=labels).sample

    with torch.no_grad():
        plain = network(sample, torch.tensor([0.3]), class_labels=labels).sample
    assert torch.equal(draw(adapter), plain)  # zero at the start
    first = draw(randomised(adapter))
    with torch.no_grad():
        adapter.parts.prior.projections[0].bias.add_(1)
    assert not torch.equal(draw(adapter), first) and not torch.equal(first, plain)
    expected = draw(adapter)
    (file,) = adapter.save(tmp_path / "dino.safetensors")
    adapter.unload()
    assert torch.equal(draw(load_adapter(network, file, encoder=encoder)), expected)
    features = [torch.randn(1, 4, 3, 3) for _ in range(6)]
    maps = SpatialPrior(4, 2)(torch.randn(1, 3, 64, 64))
    assert [one.shape[-1] for one in with_prior(features, maps)] == [16, 8, 8, 4, 4, 2]
    with pytest.raises(ValueError, match="`spatial_prior` is True at a `size` of 28"):
        DinoAdapter.create(networks()["unet"], encoder=encoder, size=28, spatial_prior=True)


@pytest.mark.parametrize("kind", ENCODERS)
def test_features_are_those_of_the_layers(kind):
    """Each patch's token behind the last norm; the last layer's is the encoder's own answer."""
    encoder, pixels = make_encoder(kind), torch.randn(2, 3, 28, 35)
    first, last = dense_features(encoder, pixels, [0, 3])
    assert first.shape == last.shape == (2, 16, 4, 5) and not torch.equal(first, last)
    further = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    tokens = encoder(pixel_values=pixels, **further).last_hidden_state[:, -20:]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens)


def networks():
    torch.manual_seed(0)
    shared = {"in_channels": 3, "num_classes": 3, "sample_size": 16}
    lego = LegoTransformer2DModel.from_preset(
        "lego-s-pg-64", in_channels=3, num_classes=3, sample_size=16, hidden_sizes=[16, 16, 16],
        num_layers=[1, 1, 1], num_attention_heads=[2, 2, 2],
    )  # fmt: skip
    return {
        "unet": BlockUNet2DModel(**shared, block_out_channels=[8, 16]),
        "transformer": BlockTransformer2DModel(**shared, hidden_size=16, attention_head_dim=8, num_layers=6),
        "lego": lego,
    }


@pytest.mark.parametrize("kind", ["unet", "transformer", "lego"])
def test_pipelines_of_ours_take_a_reference(kind, tmp_path):
    network = networks()[kind].eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    pipe = (LegoPipeline if kind == "lego" else ClassToImagePipeline)(network, EDMHeunScheduler())
    pipe.set_progress_bar_config(disable=True)

    def draw(**given):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        arguments = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np", "height": 12, "width": 18}
        return pipe([0, 1], generator=generators, **arguments, **given).images

    plain = draw()
    encoder = make_encoder()
    adapter = randomised(DinoAdapter.create(pipe, encoder=encoder, rank=8))
    assert np.array_equal(draw(), plain)  # without a reference
    one = draw(reference_image=picture())
    assert not np.array_equal(one, plain)
    assert np.array_equal(draw(reference_image=[picture(), picture()]), one)
    both = draw(reference_image=[picture(), picture(1)])
    assert np.array_equal(both[0], one[0]) and not np.array_equal(both[1], one[1])
    assert np.array_equal(draw(reference_image=picture(), reference_scale=0), plain)
    half = draw(reference_image=picture(), reference_scale=0.5)
    assert not np.array_equal(half, one) and not np.array_equal(half, plain)
    with adapter.condition(reference_image=picture(), scale=0.5):
        assert np.array_equal(draw(), half)
    with pytest.raises(ValueError, match="for 3 pictures, but the network draws 4"):
        draw(reference_image=[picture()] * 3)
    with pytest.raises(ValueError, match="`reference_scale` is 0.5 without reference_image"):
        draw(reference_scale=0.5)
    with pytest.raises(TypeError, match="has no argument 'refernce_image'"):
        draw(refernce_image=picture())
    (file,) = adapter.save(tmp_path / "dino.safetensors")
    assert file.stat().st_size < 4e5 and not any("encoder" in key for key in load_file(file))
    adapter.unload()
    with pytest.raises(ValueError, match="`encoder` is not known"):
        load_adapter(pipe, file)
    assert np.array_equal(draw(), plain)
    load_adapter(pipe, file, encoder=encoder)
    with pytest.warns(UserWarning, match="`encoder` has other weights"):
        load_adapter(pipe, file, encoder=ENCODERS["dinov2"]()).unload()
    assert np.array_equal(draw(reference_image=picture()), one)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_pipelines_of_diffusers(pipelines, helpers, kind):
    pipe = copy.deepcopy(pipelines[kind])
    plain = helpers.generate(pipe, 64, 72)
    adapter = DinoAdapter.create(pipe, encoder=make_encoder("dinov3"), rank=8)
    with adapter.condition(reference_image=picture()):
        assert torch.equal(helpers.generate(pipe, 64, 72), plain)  # fresh
    randomised(adapter)
    with adapter.condition(reference_image=picture(), scale=0.8):
        on = helpers.generate(pipe, 64, 72)
    assert not torch.equal(on, plain) and torch.isfinite(on).all()
    for name in ("reference_image", "reference_scale"):
        with pytest.raises(ValueError, match=f"`{name}` is no argument of StableDiffusion.*would ignore it"):
            pipe("a", **{name: 1.0})
    adapter.unload()
    assert torch.equal(helpers.generate(pipe, 64, 72), plain)


def test_residuals_add_up_and_have_the_sizes_of_the_maps(helpers):
    """What a T2I-Adapter gives is kept; every size fits, odd ones too."""
    network = helpers.make_unet("xl")
    sites = sites_of(network)
    text, pooled = torch.randn(1, 5, 64), torch.randn(1, 32)
    arguments = (100, text), {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.ones(1, 6)}}
    adapter = randomised(DinoAdapter.create(network, encoder=make_encoder(), rank=8))
    for height, width in ((8, 8), (9, 7), (5, 12)):
        sample = torch.randn(1, 4, height, width)
        given = [torch.randn(1, width, *size) for width, size in zip(sites.widths, sites.sizes(height, width))]
        with torch.no_grad(), adapter.condition(reference_image=picture()):
            alone = network(sample, *arguments[0], **arguments[1]).sample
            both = network(
                sample, *arguments[0], **arguments[1], down_intrablock_additional_residuals=list(given)
            ).sample
        assert alone.shape == sample.shape and not torch.equal(alone, both)


def test_what_a_reference_may_be():
    square = np.full((5, 5, 3), 255, dtype=np.uint8)
    clear = PIL.Image.new("RGBA", (4, 6), (0, 0, 0, 0))
    for image in (square, PIL.Image.fromarray(square), clear, torch.ones(3, 9, 9), torch.ones(1, 3, 2, 8)):
        torch.testing.assert_close(reference_pixels(image, 14), torch.ones(1, 3, 14, 14))
    assert reference_pixels([clear, square], 7).shape == (2, 3, 7, 7)
    for image, message in (
        ([], "is empty"),
        ("robot.png", "has a str; give PIL images"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"of shape \(4, 4, 4\)"),
        (torch.full((3, 4, 4), -1.0), r"values in \[0, 1\]"),
        (torch.full((3, 4, 4), torch.nan), r"values in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            reference_pixels(image, 14)


def test_what_is_refused(helpers, tmp_path):
    network = helpers.make_unet("two")
    attributes, encoder = set(vars(network)), make_encoder()
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=28
        )
    )
    clip.save_pretrained(tmp_path / "clip")
    for config, message in (
        ({"encoder": clip}, "`encoder` is a clip_vision_model; give a vision transformer, one of dinov2"),
        ({"encoder": tmp_path / "clip"}, "`encoder` is a clip_vision_model"),
        ({"encoder": nn.Linear(2, 2)}, "`encoder` is a Linear"),
        ({"encoder": str(tmp_path / "nothing")}, "cannot be loaded"),
        ({"encoder": 3}, "`encoder` is 3"),
        ({}, "`encoder` is not known"),
        ({"encoder": encoder, "layers": [3, 1]}, r"`layers` is \[3, 1\]; give rising numbers from 0 to 3"),
        ({"encoder": encoder, "layers": [4]}, "`layers`"),
        ({"encoder": encoder, "size": 30}, "`size` is 30; give a multiple of the encoder's patch of 7"),
        ({"encoder": encoder, "rank": 0}, "`rank` is 0"),
        ({"encoder": encoder, "projection": "fapn"}, "did you mean 'fapm'"),
    ):
        with pytest.raises(ValueError, match=message):
            DinoAdapter.create(network, **config)
    with pytest.raises(ValueError, match="a Conv2d takes no residuals"):
        DinoAdapter.create(nn.Conv2d(3, 3, 1), encoder=encoder)
    assert set(vars(network)) == attributes and not network._forward_pre_hooks


def test_an_encoder_from_a_folder_is_found_again(helpers, tmp_path):
    network, encoder = helpers.make_unet("two"), make_encoder("vit")
    encoder.save_pretrained(tmp_path / "vit")
    adapter = randomised(DinoAdapter.create(network, encoder=tmp_path / "vit", projection="linear"))
    assert adapter.config["image_mean"] == [0.5] * 3
    with adapter.condition(reference_image=picture()):
        on = helpers.predict(network)
    (file,) = adapter.save(tmp_path / "dino.safetensors")
    adapter.unload()
    adapter = load_adapter(network, file)
    with adapter.condition(reference_image=picture()):
        assert torch.equal(helpers.predict(network), on)
    assert all(parameter.dtype == torch.float32 for parameter in adapter.trainable_parameters())


def test_half_precision():
    """Residuals come in the network's type."""
    network = BlockUNet2DModel(in_channels=3, block_out_channels=[8, 16], sample_size=8).to(torch.bfloat16)
    pipe = ClassToImagePipeline(network, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    adapter = randomised(DinoAdapter.create(pipe, encoder=make_encoder(), rank=8))
    images = pipe(num_inference_steps=2, output_type="np", reference_image=picture()).images
    assert images.shape == (1, 8, 8, 3) and np.isfinite(images).all()
    adapter.unload()
