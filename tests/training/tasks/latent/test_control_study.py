"""The study of control adapters: maps, how well pictures agree with them, and that it goes through."""

import io
import json

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from brickwork.training.studies import control


def scene(left: int) -> Image.Image:
    picture = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(picture).rectangle((left, 8, left + 11, 23), fill="red")
    return picture


def test_maps_and_how_they_agree():
    one, near, far = (np.asarray(scene(left)) for left in (4, 5, 19))
    assert control.mask(one).sum() == 12 * 16 and control.masks_agree(control.mask(one), control.mask(one)) == 1
    assert control.masks_agree(control.mask(one), control.mask(near)) == 11 / 13
    assert control.masks_agree(control.mask(one), control.mask(far)) == 0
    lines = [control.edges(picture) for picture in (one, near, far)]
    assert not lines[0][10:20, 8:12].any() and lines[0][8, 4:16].all()
    assert control.edges_agree(lines[0], lines[1]) == 1 > control.edges_agree(lines[0], lines[2])
    nothing = np.zeros((32, 32), bool)
    assert control.edges_agree(nothing, lines[0]) == 0 and control.masks_agree(nothing, nothing) == 1


def test_the_study_goes_through(bases, tmp_path):
    for split in ("train", "held_out_seeds"):
        rows = []
        for left in (2, 6, 10, 14):
            file = io.BytesIO()
            scene(left).save(file, "PNG")
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "text": "a b"})
        pd.DataFrame(rows).to_parquet(tmp_path / f"{split}.parquet")
    out = tmp_path / "out"
    command = [
        str(bases["sd2"]),
        str(tmp_path),
        "-o",
        str(out),
        "--size",
        "32",
        "--pictures",
        "4",
        "--samples",
        "4",
    ]
    command += ["--seconds", "0.01", "--seeds", "1", "--steps", "1"]
    assert control.main(command) == 0
    scores = json.loads((out / "control.json").read_text())["scores"]
    assert list(scores) == ["held-out pictures", "no control", "ControlAdapter", "ControlNet"]
    assert all(len(one["edges"]) == 4 for seeds in scores.values() for one in seeds)
    (truth,), *drawn = scores.values()
    assert truth["edges"] == [1.0] * 4 and all(len(one["losses"]) == 1 for seeds in drawn for one in seeds)
    told = json.loads((out / "trained" / "ControlNet" / "0" / "cell.json").read_text())["result"]
    assert told["steps"] >= 1 and (out / "control.png").is_file()
    assert "Differences to ControlAdapter" in (out / "control.md").read_text()
