"""Latents of one VAE are the same wherever they are made: in a pipeline, a cache and a trainer."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DDIMScheduler, VQModel

from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.pipelines import latents
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.training.data.cache import CachedLatents, cache_latents
from brickwork.training.data.images import LabelledImages, load_table, to_unit_range
from brickwork.training.tasks.latent.encoding import EncodeFirst

SCALES = {
    "factor": {"scaling_factor": 0.4},
    "shift": {"scaling_factor": 0.4, "shift_factor": 0.3},
    "means": {"scaling_factor": 0.4, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 1.5]},
    "all": {"shift_factor": -0.2, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 1.5]},
}


def make_vae(**scales):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=2, latent_channels=4, **scales,
    ).eval()  # fmt: skip


def as_written(vae, raw):
    """The formula, channel by channel."""
    config = vae.config
    mean, std = config.latents_mean or [0.0] * 4, config.latents_std or [1.0] * 4
    shift = config.shift_factor or 0.0
    parts = [(raw[:, c] - shift - mean[c]) / std[c] * config.scaling_factor for c in range(4)]
    return torch.stack(parts, dim=1)


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_pipeline_cache_and_trainer_agree(scales, tmp_path, request):
    vae = make_vae(**scales)
    table = load_table(str(request.path.parents[1] / "data" / "emoji" / "sample.parquet"))
    images = LabelledImages(table.select(range(3)), 16, group_column="codepoints")
    cached = CachedLatents(images, cache_latents(tmp_path / "cache", images, vae), vae)
    network = BlockTransformer2DModel(in_channels=4, sample_size=8, hidden_size=8, num_layers=1, attention_head_dim=8)
    pipeline = ClassToImagePipeline(network, DDIMScheduler(), vae)
    pixels = torch.stack([torch.from_numpy(to_unit_range(images.picture(row))) for row in range(3)])
    with torch.no_grad():
        distribution = vae.encode(pixels).latent_dist
        expected, drawn = (as_written(vae, distribution.mean + n * distribution.std) for n in (0.0, 1.0))

    torch.testing.assert_close(pipeline.encode(pixels), expected)
    torch.testing.assert_close(torch.from_numpy(np.stack([cached.still(row) for row in range(3)])), expected)
    complete = EncodeFirst(pipeline, None)
    for normal, wanted in ((torch.zeros, expected), (torch.ones, drawn)):
        posterior = normal(3, 4, 8, 8)
        batch = {"pixels": pixels, "posterior": posterior, "noise": posterior}
        torch.testing.assert_close(complete(batch)["image"], wanted)
    sample = cached.sample(1, np.random.default_rng(5))[0]
    same = torch.from_numpy(np.random.default_rng(5).standard_normal((1, 4, 8, 8), dtype=np.float32))
    batch = {"pixels": pixels[1:2], "posterior": same, "noise": same}
    torch.testing.assert_close(torch.from_numpy(sample)[None], complete(batch)["image"])


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_there_and_back(scales):
    vae, raw = make_vae(**scales), torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(latents.scale(vae, raw), as_written(vae, raw))
    torch.testing.assert_close(latents.unscale(vae, latents.scale(vae, raw)), raw)
    frames = raw[:, :, None].expand(2, 4, 6, 3, 5)
    torch.testing.assert_close(latents.scale(vae, frames)[:, :, 2], latents.scale(vae, raw))
    with torch.no_grad():
        torch.testing.assert_close(latents.decode(vae, latents.scale(vae, raw)), vae.decode(raw).sample)


def test_draws_follow_their_generator():
    vae, pixels = make_vae(scaling_factor=0.4, shift_factor=0.3), torch.rand(1, 3, 8, 8)
    drawn = [latents.encode(vae, pixels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn[2], (expected - 0.3) * 0.4)


def test_vaes_of_other_kinds():
    """Those that code a picture as a point, without a scale or with names of their own; and no VAE."""
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip
    vector = VQModel(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, latent_channels=4, scaling_factor=0.5,
    )  # fmt: skip
    deep = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
        encoder_block_types="ResBlock", decoder_block_types="ResBlock", encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        scaling_factor=0.3,
    )  # fmt: skip
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    for vae, factor in ((tiny, 1.0), (vector, 0.5), (deep, 0.3)):
        found = latents.encode(vae.eval(), pixels)
        side = 16 // latents.pixels_per_latent(vae)
        assert found.shape == (1, 4, side, side)
        with torch.no_grad():
            raw = vae.encode(pixels, return_dict=False)[0]
        torch.testing.assert_close(found, raw * factor)
        assert latents.decode(vae, found).shape == pixels.shape
    assert torch.equal(latents.encode(None, pixels), pixels) and torch.equal(latents.decode(None, pixels), pixels)
    assert latents.pixels_per_latent(None) == 1
