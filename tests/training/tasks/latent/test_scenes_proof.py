"""The proof on scenes: every cell once, what it says of itself, and its measures against pictures that are known."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from brickwork.eval.extractors.features import from_module
from brickwork.eval.judge.crops import cut_out
from brickwork.eval.metrics import feature_sets
from brickwork.pipelines.stable_diffusion import load_pipeline
from brickwork.training.engine.checkpoints import load_tensors, trained_tensors
from brickwork.training.engine.loop import train
from brickwork.training.studies import scenes_proof
from brickwork.training.studies.scenes_proof import Scenes, at_edge, main, measured, outlined
from brickwork.training.tasks.latent.text_to_image import add_unet_lora, save_unet_lora

WORDS = ("a happy micah person with a bob", "a bottts robot with a red body", "a sad fun emoji face")


def scene(boxes, height=32, width=32, ground="white"):
    """Dark discs in boxes of pixels on a flat ground, uint8 `(height, width, 3)`."""
    page = Image.new("RGB", (width, height), ground)
    for box in boxes:
        ImageDraw.Draw(page).ellipse(box, "navy")
    return np.asarray(page)


BOXES = ((2, 2, 12, 12), (18, 18, 30, 30), (20, 1, 29, 10))


@pytest.fixture
def folder(tmp_path):
    """Scenes of one to three discs, square and twice as wide as high."""
    rows = {"image": [], "text": [], "boxes": []}
    for number in range(12):
        count, wide = number % 3 + 1, number % 2
        file = io.BytesIO()
        Image.fromarray(scene(BOXES[:count], width=64 if wide else 32)).save(file, "PNG")
        rows["image"].append({"bytes": file.getvalue(), "path": None})
        rows["text"].append(f"{count} avatars: {', '.join(WORDS[:count])}")
        rows["boxes"].append(json.dumps([{"text": text} for text in WORDS[:count]]))
    for split in ("train", "held_out_seeds"):
        datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "scenes" / f"{split}.parquet"))
    return tmp_path / "scenes"


@pytest.fixture
def arguments(tiny_run, bases, folder, tmp_path, monkeypatch):
    """Of a proof with tiny networks, adapters that do something, and pixels for features."""
    train(tiny_run("res", "run.total_images=4"))
    pipeline = load_pipeline(str(bases["sd1"]))
    add_unet_lora(pipeline.unet, 1, 1.0)
    weights = {name: torch.full_like(p, 0.1) for name, p in pipeline.unet.named_parameters() if p.requires_grad}
    load_tensors(trained_tensors(pipeline.unet), weights)
    save_unet_lora(pipeline, tmp_path / "lora")
    pixels = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    monkeypatch.setattr(feature_sets, "_loaded", lambda name: from_module(pixels, "pixels", 8))
    model, adapter = str(bases["sd1"]), str(tmp_path / "res" / "adapter" / "official")
    return [
        "--general", model, "--general-data", str(folder), "--personal", model, "--personal-data", str(folder),
        "--adapter", adapter, adapter, "--lora", str(tmp_path / "lora"), "--output", str(tmp_path / "proof"),
        "--samples", "4", "--steps", "1", "--sizes", "16x16", "8x16",
    ]  # fmt: skip


def test_every_cell_is_computed_once_and_told(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    proof = tmp_path / "proof"
    text = (proof / "proof.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| held-out paired loss | 16x16 | 8x16 |" in text and "| held-out scenes | 1 |" in text
    values = json.loads((proof / "proof.json").read_text())
    general, personal = (values["losses"][model] for model in ("general", "personal"))
    assert general["base"] == personal["base"]  # nothing of an adapter stays behind
    assert general["resadapter"]["8x16"]["0"] == general["resadapter"]["8x16"]["1"] != general["base"]["8x16"]["0"]
    assert general["lora"]["8x16"]["0"] != general["base"]["8x16"]["0"]
    assert set(values["measures"]["general"]["scenes"]["16x16"]["0"]) == set(scenes_proof.MEASURES)
    assert Image.open(proof / "proof.png").height > 8 * 16

    times = {path: path.stat().st_mtime_ns for path in proof.rglob("cell.json")}
    gone = proof / "judged" / "general" / "lora" / "0" / "8x16" / "cell.json"
    kept = json.loads(gone.read_text())["result"]
    gone.unlink()
    assert main(arguments) == 0
    assert json.loads(gone.read_text())["result"] == kept
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {gone}

    assert main([*arguments, "--samples", "3"]) == 2
    assert "holds another proof: samples was 4 and is 3" in capsys.readouterr().err
    assert main([*arguments, "--lora", str(tmp_path)]) == 2
    assert "holds no weights" in capsys.readouterr().err


def test_scenes_are_taken_by_their_shape(folder):
    scenes = Scenes(str(folder), "train")
    assert scenes.rows((16, 16), 6) == [0, 2, 4, 6, 8, 10] and scenes.rows((8, 16), 2) == [1, 3]
    assert scenes.pictures([1], (16, 32)).shape == (1, 16, 32, 3)
    assert scenes.avatars([1]) == [list(WORDS[:2])]
    with pytest.raises(ValueError, match="Only 6 scenes are of the shape 16x16, and 7 are asked for"):
        scenes.rows((16, 16), 7)


@pytest.mark.parametrize("ground", ["white", "salmon"])
def test_what_stands_on_the_ground_is_found_from_left_to_right(ground):
    picture = scene(BOXES, ground=ground)
    found = outlined(picture)
    assert [(part[1].start, part[0].start) for part in found] == [(2, 2), (18, 18), (20, 1)]
    assert [at_edge(part, picture) for part in found] == [False, False, False]
    (cut,) = outlined(scene([(-6, 8, 10, 24)], ground=ground))
    assert at_edge(cut, picture)
    assert outlined(scene([(4, 4, 5, 5)], ground=ground)) == []  # a speck


def test_an_avatar_is_cut_out_on_its_ground():
    picture = scene([(4, 10, 11, 25)], ground="salmon")
    square = cut_out(picture, outlined(picture)[0])
    assert square.shape == (64, 64, 3)
    assert (square[:, 0] == square[0, 0]).all() and square[0, 0].tolist() == [250, 128, 114]
    assert square[32, 32].tolist() == [0, 0, 128]


def test_measures_of_pictures_that_are_known():
    pictures = np.stack([scene(BOXES[:2]), scene(BOXES), scene([(-6, 8, 10, 24)])])
    found = measured(pictures, [WORDS[:2], WORDS[:1], WORDS[:1]])
    assert found["found"] == 6 / 4 and found["right"] == pytest.approx(2 / 3) and found["edge"] == pytest.approx(1 / 6)
    assert 0 <= found["style"] <= 1
    nothing = measured(np.stack([scene([])]), [WORDS[:1]])
    assert nothing == {"found": 0.0, "right": 0.0, "edge": None, "attributes": None, "style": None}
