"""Clips of avatars, without Node: the motion of the pixels is what `truth` says."""

import io
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from brickwork.training.config.clips import ClipDataConfig
from brickwork.training.data.build import avatar_files
from brickwork.training.data.build.clips import FRAMES, MOTIONS, STILLS, build_clips
from brickwork.training.data.clips import Clips, read_animation

DESCRIBED = json.loads((Path(__file__).parents[3] / "data" / "avatars" / "styles.json").read_text())


class Hand:
    """Draws a black half of its square, whatever is asked for."""

    def __init__(self, styles):
        self.styles = {style: DESCRIBED[style] for style in styles}

    def draw(self, style, options):
        return '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect y="4.5" width="9" height="4.5"/></svg>'


@pytest.fixture
def offline(monkeypatch):
    @contextmanager
    def artist(folder, styles):
        yield Hand(styles)

    for name, stand_in in {"install": lambda folder: None, "require_programs": lambda: None, "artist": artist}.items():
        monkeypatch.setattr(avatar_files, name, stand_in)


@pytest.fixture
def built(offline, tmp_path):
    return build_clips(tmp_path / "clips", count=12, held_out=4, size=32, styles=["avataaars", "big-smile", "micah"])


def middle_of_what_is_drawn(frame):
    """Across and down, in sides of the picture: the artist of the tests draws a black half of its square."""
    dark = np.asarray(frame.convert("L"), float).clip(max=200)
    dark = dark.max() - dark
    rows, columns = dark.sum(axis=1), dark.sum(axis=0)
    at = np.arange(len(rows)) + 0.5
    return (columns @ at) / columns.sum() / len(at), (rows @ at) / rows.sum() / len(at)


def test_what_moves_moves_as_the_truth_says(built):
    rows = pq.read_table(built / "train.parquet").to_pylist()
    assert sorted({row["label"] for row in rows}) == list(range(len(MOTIONS))) and len(rows) == 12
    for row in rows:
        frames, fps = read_animation(io.BytesIO(row["clip"]["bytes"]), row["fps"], row["frames"])
        truth, motion = json.loads(row["truth"]), list(MOTIONS)[row["label"]]
        assert len(frames) == FRAMES and fps == 8
        if motion in ("nod", "walk"):
            first, *others = (middle_of_what_is_drawn(frame) for frame in frames)
            for number, found in enumerate(others, 1):
                moved = [truth[axis][number] - truth[axis][0] for axis in ("dx", "dy")]
                assert [now - then for now, then in zip(found, first)] == pytest.approx(moved, abs=0.02)
            assert len(set(truth["dx"])) == (FRAMES if motion == "walk" else 1)
        else:
            assert set(truth["dx"] + truth["dy"]) == {0}
            assert ("closed" in truth) == (motion == "blink") and ("turn" in truth) == (motion == "mood")
        assert row["text"].split(", ")[-1].startswith({"blink": "bl", "nod": "no", "mood": "tu", "walk": "wa"}[motion])


def test_the_trainer_reads_them_and_pictures_for_the_image_network(built):
    data = ClipDataConfig(
        source=str(built / "train.parquet"), clip_column="clip", label_column="label", classes=["nod", "walk"],
        held_out=0.0, max_broken_images=0, num_workers=0, size=16, frames=8, stride=2, fps=None, horizontal_flip=False,
        latents=None,
    )  # fmt: skip
    clips = Clips(data)
    assert len(clips) == 6 and clips.fps == 4 and clips.sample(0)[0].shape == (3, 8, 16, 16)
    stills = pq.read_table(built / STILLS).to_pylist()
    assert len(stills) == 12 and Image.open(io.BytesIO(stills[0]["image"]["bytes"])).size == (32, 32)


@pytest.mark.parametrize(("styles", "match"), [(["fun-emoji"], "a face on its ground"), (["micah"], "eyes close")])
def test_styles_that_cannot_move_are_refused(styles, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        build_clips(tmp_path / "clips", styles=styles)
