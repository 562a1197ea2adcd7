"""What a run shows: losses and grids over sizes, with and without the adapter."""

import json

import numpy as np
import pytest
from PIL import Image

from brickwork.training.engine.loop import train
from brickwork.training.tasks.latent.previews import preview_sizes, sheet


def test_losses_and_grids_over_sizes(tiny_run, tmp_path):
    train(
        tiny_run(
            "run",
            "run.total_images=4",
            "run.sample_images=4",
            "samples.sizes=[[8, 16], [24, 24]]",
            "samples.prompts=[a red hat]",
            "optimizer.learning_rate=0.1",
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    shown = next(line for line in lines if "held_out/loss" in line)
    for size in ("8x16", "24x24"):
        assert shown[f"held_out_at/{size}"] != shown[f"held_out_before_at/{size}"]
    picture = Image.open(tmp_path / "run" / "samples" / "images-000000000004.png")
    assert picture.size == (24, 8 + 2 + 8 + 8 + 24 + 2 + 24)
    assert "samples/images-000000000004.png" in (tmp_path / "run" / "index.html").read_text()


def test_sizes_that_are_shown(tiny_run):
    stream = tiny_run("run", "samples.sizes=[]").task.stream
    assert preview_sizes([], stream) == [(8, 8), (16, 16), (24, 24), (16, 32)]
    with pytest.raises(ValueError, match=r"`samples.sizes` has \[\[8, 12\]\]; give .* multiples of 8"):
        tiny_run("run", "samples.sizes=[[8, 12]]")


def test_the_sheet_has_before_above_after():
    before, after = np.zeros((2, 4, 6, 3), np.uint8), np.full((2, 4, 6, 3), 200, np.uint8)
    picture = np.asarray(sheet([(before, after), (None, after[:, :2])]))
    assert picture.shape == (4 + 2 + 4 + 8 + 2, 6 + 2 + 6, 3)
    assert (picture[:4, :6] == 0).all()
    assert (picture[6:10, 8:] == 200).all()
    assert (picture[18:, :6] == 200).all()
