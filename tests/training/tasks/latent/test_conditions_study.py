"""The studies of references and layouts: what they measure, rivals of equal size, and that they go through."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import Dinov2Config, Dinov2Model

from brickwork.eval.judge.crops import cut_out
from brickwork.pipelines.stable_diffusion import load_pipeline
from brickwork.training.studies import conditions


def picture(box: tuple[int, ...], colour: str = "red") -> Image.Image:
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


def stored(image: Image.Image) -> dict:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    Dinov2Model(Dinov2Config(**settings, patch_size=7)).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def pairs(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Column

    features = Features(
        image=Column(), reference=Column(), label=ClassLabel(names=["micah", "miniavs"]), shared=Value("string")
    )
    rows = [
        {
            "image": stored(picture((4, 4, 20, 20))),
            "reference": stored(picture((8, 8, 12, 12))),
            "label": row % 2,
            "shared": json.dumps({"ground": "white", "earrings": "small"}),
        }
        for row in range(4)
    ]
    for split in ("train", "held_out_seeds"):
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    return tmp_path


@pytest.fixture
def scenes(tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as Column

    rows = [
        {
            "image": stored(picture((left, 8, left + 11, 23))),
            "text": "a b",
            "boxes": json.dumps([{"box": [left / 32, 0.25, (left + 12) / 32, 0.75], "text": "a micah person"}]),
        }
        for left in (2, 6, 10, 14)
    ]
    for split in ("train", "held_out_seeds"):
        features = Features(image=Column(), text=Value("string"), boxes=Value("string"))
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    return tmp_path


TINY = ["--size", "32", "--pictures", "4", "--samples", "4", "--seconds", "0.01", "--seeds", "2", "--steps", "1"]


def test_the_study_of_references_goes_through(bases, encoder, pairs, tmp_path):
    command = ["reference", str(bases["sd2"]), str(pairs), "--encoder", str(encoder), "-o", str(tmp_path / "out")]
    assert conditions.main([*command, *TINY]) == 0
    told = json.loads((tmp_path / "out" / "references.json").read_text())
    ways = ["held-out pictures", "no adapter", "DinoAdapter", "1×1 convolutions", "IP-Adapter's tokens"]
    assert list(told["scores"]) == ways and [len(seeds) for seeds in told["scores"].values()] == [1, 1, 2, 2, 2]
    (truth,) = told["scores"]["held-out pictures"]
    assert set(truth["by_attribute"]) == {"ground"}  # the judge knows no earrings
    sizes = [
        json.loads((tmp_path / "out" / "trained" / way / "0" / "cell.json").read_text())["result"]["parameters"]
        for way in ways[2:]
    ]
    assert max(sizes) < 1.1 * min(sizes)
    assert "1×1 convolutions" in (tmp_path / "out" / "references.md").read_text()
    assert (tmp_path / "out" / "references.png").is_file()


def test_the_study_of_layouts_goes_through(bases, scenes, tmp_path):
    command = ["layout", str(bases["sd2"]), str(scenes), "-o", str(tmp_path / "out")]
    assert conditions.main([*command, *TINY]) == 0
    told = json.loads((tmp_path / "out" / "layouts.json").read_text())
    assert len(told["scores"]) == 6
    (truth,) = told["scores"]["held-out pictures"]
    assert truth["iou"] == pytest.approx([1.0] * 4) and truth["number"] == [1.0] * 4


def test_tokens_change_nothing_before_they_learn_and_follow_the_reference_then(bases, encoder):
    pipeline = load_pipeline(str(bases["sd2"]))
    unet = pipeline.unet
    sample, prompts = torch.randn(2, 4, 8, 8), torch.randn(2, 12, unet.config.cross_attention_dim)
    one, other = (torch.rand(2, 3, 28, 28) for _ in range(2))

    def drawn(reference=None):
        if reference is None:
            return unet(sample, 3, encoder_hidden_states=prompts).sample
        with adapter.condition(reference_image=reference):
            return unet(sample, 3, encoder_hidden_states=prompts).sample

    plain = drawn()
    adapter = conditions.TokenAdapter.create(pipeline, encoder=str(encoder), width=8)
    assert torch.equal(drawn(), plain) and torch.equal(drawn(one), plain)
    for layer in adapter.parts.values.values():
        torch.nn.init.normal_(layer.weight)
    assert not torch.allclose(drawn(one), drawn(other), atol=1e-4)
    drawn(one).square().mean().backward()
    assert all(weight.grad is not None for weight in adapter.trainable_parameters())
    adapter.unload()
    assert torch.equal(drawn(), plain)


def test_objects_are_matched_one_to_one_with_boxes():
    whole, half = (slice(0, 8), slice(0, 8)), (slice(0, 8), slice(8, 12))
    asked = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5]]
    assert conditions.overlap([whole, half], asked, 16) == pytest.approx(0.75)
    assert conditions.overlap([half, whole], asked, 16) == pytest.approx(0.75)
    assert conditions.overlap([whole, whole], asked, 16) == pytest.approx(0.5)  # an object counts for one box alone
    assert conditions.overlap([], asked, 16) == 0


def test_what_is_in_a_box_is_named_there_and_nowhere_else():
    red, nothing = np.asarray(picture((2, 2, 29, 29))), np.full((32, 32, 3), 255, np.uint8)
    cut = torch.from_numpy(cut_out(red, (slice(2, 30),) * 2).copy()).permute(2, 0, 1)
    named = conditions.judge().name(cut[None])
    right = f"a {named[0]['style'].replace('-', ' ')} person"
    others = [style for style in conditions.judge().attributes["style"] if style != named[0]["style"]]
    box = [2 / 32, 2 / 32, 30 / 32, 30 / 32]
    assert conditions.inside(red, [box], [right]) == 1
    assert conditions.inside(red, [box, box], [right, f"a {others[0]} person"]) == 0.5
    assert conditions.inside(nothing, [box], ["a thing"]) is None
    assert conditions.share_named({"mood": "sad"}, {"mood": "sad", "earrings": "small"}) == 1
