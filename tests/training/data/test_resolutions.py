"""One shape a step, from a stated range, alike in every process; pictures enlarged no further than a limit."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from PIL import Image

from brickwork.training.config.config import load_config
from brickwork.training.config.latent import ResAdapterConfig
from brickwork.training.data.buckets import Resolutions, enlargement, shapes_by_size
from brickwork.training.data.captioned import CaptionedImages, CaptionedStream
from brickwork.training.data.stream import PositionBatches

# Of a pipeline, a stream needs the shape of its latents and whether it wants sizes.
PIPELINE = SimpleNamespace(
    vae=SimpleNamespace(config=FrozenDict(latent_channels=4, block_out_channels=(4, 4))),
    unet=SimpleNamespace(config=SimpleNamespace(addition_embed_type="text_time")),
)


def test_sd15s_range():
    by_size = shapes_by_size(128, 1024, 2.0, 64)
    assert len(by_size) == 15
    assert by_size[0] == [(128, 128)]
    for size, shapes in zip(range(128, 1025, 64), by_size):
        assert (size, size) in shapes
        for height, width in shapes:
            assert height % 64 == width % 64 == 0
            assert height * width <= size * size
            assert 0.5 <= height / width <= 2
            assert (width, height) in shapes


@pytest.mark.parametrize(("low", "high", "near"), [(100, 512, "64 or 128"), (64, 500, "448 or 512"), (30, 64, "64")])
def test_sizes_that_the_networks_cannot_take(low, high, near):
    with pytest.raises(ValueError, match=f"cannot take: give a multiple of 64, such as {near}"):
        shapes_by_size(low, high, 1.0, 64)


def test_draws_are_even_over_sizes_and_follow_seed_and_step():
    draw = Resolutions(shapes_by_size(8, 32, 2.0, 8), seed=3)
    drawn = [draw(step) for step in range(4000)]
    assert drawn == [Resolutions(draw.by_size, 3)(step) for step in range(4000)]
    assert drawn != [Resolutions(draw.by_size, 4)(step) for step in range(4000)]
    counts = Counter(next(i for i, shapes in enumerate(draw.by_size) if shape in shapes) for shape in drawn)
    assert sorted(counts) == [0, 1, 2, 3]
    assert set(drawn) == set(draw.shapes)
    assert min(counts.values()) > 900


def test_shapes_that_are_left_out():
    draw = Resolutions([[(8, 8)], [(16, 16), (8, 32)]], 0)
    with pytest.warns(UserWarning, match="large enough for 16×16"):
        left = draw.without({(16, 16)}, 1.0)
    assert left.shapes == [(8, 8), (8, 32)]
    with pytest.raises(ValueError, match="too small for all of 8×8, 8×32, 16×16"):
        draw.without(set(draw.shapes), 1.0)


def test_enlargement_is_that_of_the_crop():
    sizes = np.array([(100, 200), (50, 50)])
    np.testing.assert_allclose(enlargement(sizes, (50, 200)), [1.0, 4.0])
    np.testing.assert_allclose(enlargement(sizes, (50, 50)), [0.5, 1.0])


@pytest.fixture
def folder(tmp_path):
    """24 pictures: large squares, small squares, wide and tall ones; each of its own grey, which is its caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number in range(24):
        size = [(64, 64), (12, 12), (64, 32), (32, 64)][number % 4]
        Image.new("L", size, 5 * number).save(folder / f"{number:02d}.png")
        lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": f"grey {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def make_stream(folder, *overrides, rows=None):
    values = [
        f"data.source={folder}", "resolution.min_size=8", "resolution.max_size=32", "resolution.max_aspect=2",
        "run.batch_size=4", "objective.caption_dropout=0.25", *overrides,
    ]  # fmt: skip
    config = load_config(None, values, ResAdapterConfig)
    images = CaptionedImages(config.data, config.resolution, 8, config.run.seed)
    rows = np.arange(len(images.images)) if rows is None else rows
    return CaptionedStream(images, rows, config.objective, PIPELINE, config.run.batch_size)


def test_steps_have_one_shape_on_all_processes_and_after_resuming(folder):
    stream = make_stream(folder)
    parts = [iter(PositionBatches(4, 2, rank, 2)) for rank in range(2)]
    for _ in range(12):  # six steps of two micro-batches
        shapes = {stream[position]["pixels"].shape for part in parts for position in next(part)}
        assert len(shapes) == 1
    again = make_stream(folder)
    for position in (5, 22):
        ours, theirs = stream[position], again[position]
        assert set(ours) == {"row", "pixels", "posterior", "noise", "level", "caption", "time_ids", "broken"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        channels, height, width = ours["pixels"].shape
        assert ours["noise"].shape == ours["posterior"].shape == (4, height // 2, width // 2)
        assert not torch.equal(ours["noise"], ours["posterior"])
    assert len({stream.shape(position) for position in range(0, 400, 4)}) == len(stream.resolutions.shapes)


def test_pictures_are_not_enlarged_beyond_the_limit(folder):
    stream = make_stream(folder)
    seen = set()
    for position in range(200):
        shape = stream.shape(position)
        row = stream._row(position)
        assert enlargement(stream.captioned.sizes[[row]], shape)[0] <= 1
        seen.add((row % 4 == 1, max(shape) > 12))
    assert seen == {(True, False), (False, False), (False, True)}  # small ones, at small sizes alone
    with pytest.warns(UserWarning, match="24×24, 24×40.* with `data.max_upscale` 1.5 are|these are left out"):
        small = make_stream(folder, "data.max_upscale=1.5", rows=np.arange(1, 24, 4))
    assert set(small.resolutions.shapes) == {(8, 8), (16, 16)}
    with pytest.raises(ValueError, match="every picture is too small"):
        make_stream(folder, "resolution.min_size=24", rows=np.arange(1, 24, 4))


def test_every_picture_is_seen_every_epoch(folder):
    stream = make_stream(folder, "resolution.max_size=8")
    assert sorted(stream._row(position) for position in range(24)) == list(range(24))


def test_shapes_of_the_datas_own_ratios(folder):
    stream = make_stream(folder, "resolution.ratios=data", rows=np.array([0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15]))
    kinds = set()
    for step in range(40):
        height, width = stream.shape(4 * step)
        rows = {stream._row(4 * step + n) % 4 for n in range(4)}
        assert len(rows) == 1  # large squares, wide or tall ones
        kinds.add((rows.pop(), np.sign(width - height)))
    # The smallest size has a square alone.
    assert {(0, 0), (2, -1), (3, 1)} <= {(2 if kind == 3 else 3 if kind == 2 else 0, sign) for kind, sign in kinds}


def test_captions_are_dropped_and_size_conditions_follow_the_crop(folder):
    stream = make_stream(folder, "objective.size_conditions=picture")
    samples = [stream[position] for position in range(120)]
    dropped = sum(int(sample["caption"]) < 0 for sample in samples)
    assert 15 <= dropped <= 45
    for position, sample in enumerate(samples):
        row, (height, width) = stream._row(position), sample["pixels"].shape[1:]
        if sample["caption"] >= 0:
            assert stream.captioned.captions[sample["caption"]] == f"grey {row}"
            assert round((float(sample["pixels"].mean()) + 1) * 127.5) == 5 * row
        own = np.array(Image.open(folder / f"{row:02d}.png").size[::-1])
        scale = max(height / own[0], width / own[1])
        top, left = (own * scale - (height, width)) / 2
        assert sample["time_ids"].tolist() == [*own, round(top), round(left), height, width]
    plain = make_stream(folder)[3]
    height, width = plain["pixels"].shape[1:]
    assert plain["time_ids"].tolist() == [height, width, 0, 0, height, width]


def test_noise_offset_moves_whole_channels(folder):
    still, moved = make_stream(folder)[7]["noise"], make_stream(folder, "objective.noise_offset=0.5")[7]["noise"]
    offsets = (moved - still).flatten(1)
    assert offsets.std(dim=1).max() < 1e-6
    assert offsets[:, 0].unique().numel() == 4


def test_a_broken_picture_is_replaced_and_named(folder):
    (folder / "08.png").write_bytes(b"no picture")
    stream = make_stream(folder)
    broken = [int(stream[position]["broken"]) for position in range(48)]
    assert set(broken) == {-1, 8}


def test_a_data_set_without_captions(folder):
    with pytest.raises(ValueError, match="`data.caption_column` is 'txt'.* did you mean 'text'"):
        make_stream(folder, "data.caption_column=txt")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="metadata.jsonl"):
        make_stream(folder)
