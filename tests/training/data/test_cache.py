"""Cached latents: moments rather than samples, refused when stale, and a training run on them."""

import argparse

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from brickwork.training.commands.data_cache import configure_parser
from brickwork.training.data.cache import (
    CachedLatents,
    TensorCache,
    build_cache,
    cache_latents,
    network_fingerprint,
)
from brickwork.training.data.images import LabelledImages, load_table, to_unit_range


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, norm_num_groups=2, sample_size=16,
        layers_per_block=1, scaling_factor=0.5,
    )  # fmt: skip
    return vae.eval()


@pytest.fixture
def images(request):
    table = load_table(str(request.path.parents[2] / "data" / "emoji" / "sample.parquet"))
    return LabelledImages(table.select(range(20)), 16, group_column="codepoints")


def test_moments_are_kept_and_drawn_from_anew(tmp_path, images, vae):
    latents = CachedLatents(images, cache_latents(tmp_path / "cache", images, vae), vae)
    assert len(latents) == 20
    assert (latents.channels, latents.size) == (2, 8)
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(to_unit_range(images.picture(7)))[None]).latent_dist
    np.testing.assert_allclose(latents.still(7), expected.mean[0].numpy() * 0.5, rtol=1e-5, atol=1e-6)
    draws = np.stack([latents.sample(7, np.random.default_rng(k))[0] for k in range(400)])
    assert draws.dtype == np.float32
    np.testing.assert_allclose(draws.std(axis=0).mean(), expected.std.mean().item() * 0.5, rtol=0.03)
    again = latents.sample(7, np.random.default_rng(3))[0]
    assert (again == draws[3]).all()
    assert latents.sample(7, np.random.default_rng(0))[1] == images.labels[7]


def test_a_stale_cache_is_refused(tmp_path, images, vae, request):
    folder = cache_latents(tmp_path / "cache", images, vae)
    other = AutoencoderKL.from_config(vae.config)
    with pytest.raises(ValueError, match="is stale: its network differ"):
        CachedLatents(images, folder, other)
    images.size, images.shapes = 24, [(24, 24)]
    with pytest.raises(ValueError, match="is stale: its data differ"):
        CachedLatents(images, folder, vae)


def test_other_pictures_under_the_same_labels_are_stale(tmp_path, images, vae):
    folder = cache_latents(tmp_path / "cache", images, vae)
    pictures = list(images.table["image"])
    images.table = [{"image": picture} for picture in pictures[::-1]]
    with pytest.raises(ValueError, match="is stale: its data differ"):
        CachedLatents(images, folder, vae)


def test_network_fingerprint_follows_weights_and_configuration(vae):
    same = AutoencoderKL.from_config(vae.config)
    same.load_state_dict(vae.state_dict())
    assert network_fingerprint(same) == network_fingerprint(vae)
    with torch.no_grad():
        next(same.parameters()).flatten()[0] += 1e-3
    assert network_fingerprint(same) != network_fingerprint(vae)


def test_a_network_may_move(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    assert network_fingerprint(AutoencoderKL.from_pretrained(tmp_path / "vae")) == network_fingerprint(vae)


def test_any_tensors_are_cached_over_several_files(tmp_path, monkeypatch):
    from brickwork.training.data import cache

    monkeypatch.setattr(cache, "ROWS_A_FILE", 4)
    compute = lambda row: {"text": torch.full((row + 1, 2), float(row)), "mask": torch.ones(row + 1)}  # noqa: E731
    build_cache(tmp_path / "cache", 10, compute, {"data": "a"})
    read = TensorCache(tmp_path / "cache", {"data": "a"})
    assert len(list((tmp_path / "cache").glob("rows-*"))) == 3
    assert all(torch.equal(read[row]["text"], compute(row)["text"]) for row in range(10))
    with pytest.raises(ValueError, match="stale"):
        TensorCache(tmp_path / "cache", {"data": "b"})


def test_a_cache_that_fails_half_way_leaves_the_old_one(tmp_path):
    build_cache(tmp_path / "cache", 2, lambda row: {"x": torch.zeros(1)}, {})

    def failing(row):
        if row == 1:
            raise RuntimeError("power cut")
        return {"x": torch.ones(1)}

    with pytest.raises(RuntimeError, match="power cut"):
        build_cache(tmp_path / "cache", 2, failing, {}, overwrite=True)
    assert TensorCache(tmp_path / "cache")[0]["x"].item() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("thesis.txt", "index.json"):  # a file of a cache's name makes no cache
        (tmp_path / "mine" / name).write_text("{}")
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="holds something else"):
                build_cache(tmp_path / "mine", 1, lambda row: {"x": torch.zeros(1)}, {}, overwrite=overwrite)
    assert len(list((tmp_path / "mine").iterdir())) == 2
    (tmp_path / "mine" / "index.json").unlink()
    with pytest.raises(ValueError, match="holds no cache"):
        TensorCache(tmp_path / "mine")


def test_a_cache_is_replaced_only_if_asked_and_strangers_stay(tmp_path):
    build_cache(tmp_path / "cache", 2, lambda row: {"x": torch.zeros(1)}, {})
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="add --overwrite"):
        build_cache(tmp_path / "cache", 1, lambda row: {"x": torch.ones(1)}, {})
    build_cache(tmp_path / "cache", 1, lambda row: {"x": torch.ones(1)}, {}, overwrite=True)
    assert TensorCache(tmp_path / "cache")[0]["x"].item() == 1
    assert (tmp_path / "cache" / "notes.txt").read_text() == "mine"


def test_a_run_on_cached_latents(tiny_run, tiny_yaml, tmp_path, vae, final_tensors, equal_bits):
    from brickwork.pipelines.lego import LegoPipeline
    from brickwork.training.engine.loop import train

    vae.save_pretrained(tmp_path / "vae")
    parser = argparse.ArgumentParser()
    configure_parser(parser)
    args = parser.parse_args(
        [
            "--output",
            str(tmp_path / "cache"),
            "--vae",
            str(tmp_path / "vae"),
            "--config",
            str(tiny_yaml),
            "data.size=16",
        ]
    )
    assert args.run(args) == 0
    latents = [f"data.latents={tmp_path / 'cache'}", "data.size=16"]
    train(tiny_run("whole", *latents, "samples.count=2", "samples.steps=1", "run.sample_images=32"))
    train(tiny_run("parts", *latents, "run.total_images=16"))
    train(tiny_run("parts", *latents, "data.num_workers=1"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    pipe = LegoPipeline.from_pretrained(tmp_path / "whole" / "pipeline")
    assert pipe.transformer.config.in_channels == 2
    assert pipe(class_labels=0, num_inference_steps=1).images[0].size == (16, 16)
    with pytest.raises(ValueError, match="latents cannot be mirrored"):
        tiny_run("flip", *latents, "data.horizontal_flip=true")
