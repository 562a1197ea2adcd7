"""Latents of every shape and embeddings of every caption, cached once and refused when stale."""

import pytest
import torch

from brickwork.pipelines.latents import moments
from brickwork.training.config.config import load_config
from brickwork.training.config.latent import ResAdapterConfig
from brickwork.training.data.captioned import CaptionedImages, LatentCache


@pytest.fixture
def pipeline(fresh):
    return fresh("sd1")


@pytest.fixture
def images():
    return make_images()


def make_images(*overrides):
    from pathlib import Path

    sample = Path(__file__).parents[3] / "data" / "emoji" / "sample.parquet"
    values = [f"data.source={sample}", "data.label_column=label", "data.classes=[Flags]", "resolution.min_size=8"]
    values += ["resolution.max_size=16", "resolution.max_aspect=2", *overrides]
    config = load_config(None, values, ResAdapterConfig)
    return CaptionedImages(config.data, config.resolution, 8)


def test_rows_are_what_the_networks_make_of_them(tmp_path, images, pipeline):
    """Filled by two processes, one after the other."""
    for part in (1, 0):
        LatentCache(tmp_path / "cache", images, pipeline).build(part, 2)
    cache = LatentCache(tmp_path / "cache", images, pipeline)
    cache.open()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["captions", "latents-16x16", "latents-8x8"]
    for shape in images.resolutions.shapes:
        mean, logvar = moments(pipeline.vae, images.pixels(2, shape)[None])
        found = cache.moments(2, shape)
        torch.testing.assert_close(found["mean"], mean[0])
        torch.testing.assert_close(found["logvar"], logvar[0])
    assert len(cache.texts) == len(images.captions)


def test_a_stale_cache_is_refused_by_name(tmp_path, images, pipeline, fresh):
    LatentCache(tmp_path / "cache", images, pipeline).build()

    def refused(images, pipeline, what):
        with pytest.raises(ValueError, match=f"is stale: its {what} differ.*remove that folder") as error:
            LatentCache(tmp_path / "cache", images, pipeline).open()
        assert "latents-" in str(error.value)

    refused(make_images("data.max_upscale=2"), pipeline, "crop")
    refused(make_images("data.classes=[Symbols]"), pipeline, "data")
    half = fresh("sd1")
    half.vae.to(torch.bfloat16)
    refused(images, half, "network and dtype")
    (tmp_path / "cache" / "latents-8x8").rename(tmp_path / "cache" / "latents-16x16.old")
    with pytest.raises(ValueError, match="holds no cache"):
        LatentCache(tmp_path / "cache", images, pipeline).open()
    (tmp_path / "cache" / "latents-16x16").rename(tmp_path / "cache" / "latents-8x8")
    refused(images, pipeline, "size")


def test_pictures_that_cannot_be_read_stop_the_caching(tmp_path, images, pipeline, monkeypatch):
    from brickwork.training.data.images import BrokenImage

    def broken(row, shape):
        raise BrokenImage("cut short")

    monkeypatch.setattr(images, "pixels", broken)
    with pytest.raises(ValueError, match="Row 0 of the data set cannot be read .cut short., so it cannot be cached"):
        LatentCache(tmp_path / "cache", images, pipeline).build()
