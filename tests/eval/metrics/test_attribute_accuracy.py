"""Attr-accuracy: what captions and classes ask for, and whether renders show it."""

import io
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from brickwork.eval.extractors.attributes import load_judge
from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.metrics.attributes import asked_in
from brickwork.eval.metrics.calculate import calculate
from brickwork.eval.metrics.reference import make_reference
from brickwork.eval.metrics.registry import MetricSettings
from brickwork.eval.sets.pictures import Preparation
from brickwork.files import write_json
from brickwork.training.data.build.attributes import draw
from brickwork.training.data.build.captions import caption

DATA = Path(__file__).parents[2] / "data" / "avatars"
KNOWN = load_judge().attributes


def test_captions_ask_for_nothing_but_what_is_drawn():
    described = json.loads((DATA / "styles.json").read_text())
    asked_for = dict.fromkeys(KNOWN, 0)
    for style in KNOWN["style"]:
        for seed in range(80):
            drawing = draw(style, described[style]["options"], random.Random(seed))
            text = caption(drawing, random.Random(seed))
            has = drawing.attributes | {"style": style}
            asked = asked_in(text, KNOWN)
            assert asked.items() <= has.items() and "style" in asked, text
            asked_for.update({name: asked_for[name] + 1 for name in asked})
    assert min(asked_for.values()) > 20, asked_for


@pytest.mark.parametrize(
    "text, asked",
    [
        ("a sad micah avatar with a pink T-shirt", {"mood": "sad", "style": "micah", "clothes": "t-shirt"}),
        ("on a blue ground, curly grey hair", {"ground": "blue", "hair": "curly", "hair_colour": "grey"}),
        ("no hat, no beard, sunglasses", {"hat": "none", "beard": "none", "glasses": "sunglasses"}),
        ("a house by the sea", {}),
    ],
)
def test_words_of_a_caption(text, asked):
    colour = {"clothes_colour": "pink"} if "pink" in text else {}
    assert asked_in(text, KNOWN) == asked | colour


@pytest.fixture(scope="module")
def reference():
    return make_reference(
        DATA / "sample.parquet", load_extractor("avatar-attributes"), "clean", Preparation(convert=True)
    )


def measure(samples, reference) -> dict:
    settings = MetricSettings(("attr-accuracy",))
    return calculate([samples], reference, load_extractor("avatar-attributes"), settings, progress=False)["metrics"]


def write_set(folder: Path, rows: list[dict], told: list[dict]) -> Path:
    folder.mkdir()
    lines = []
    for number, (row, words) in enumerate(zip(rows, told)):
        Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", **words}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_renders_show_what_their_captions_ask_for_and_not_what_others_do(reference, tmp_path):
    rows = pq.read_table(DATA / "sample.parquet").to_pylist()
    texts = [{"text": row["text"]} for row in rows]
    right = measure(write_set(tmp_path / "right", rows, texts), reference)
    wrong = measure(write_set(tmp_path / "wrong", rows, texts[1:] + texts[:1]), reference)
    assert right["Attr-accuracy"]["mean"] > 0.9 > 0.5 > wrong["Attr-accuracy"]["mean"]
    assert right["Attr-accuracy"] == right["Attr-accuracy of the reference"]  # they are the same pictures
    assert right["Attr-accuracy"]["attributes"]["style"] == 1.0


def test_classes_ask_for_a_style(reference, tmp_path):
    rows = pq.read_table(DATA / "sample.parquet").to_pylist()
    styles = KNOWN["style"]
    folder = write_set(tmp_path / "classes", rows, [{"label": row["label"]} for row in rows])
    with pytest.raises(ValueError, match="attr-accuracy.*name no attribute"):
        measure(folder, reference)
    write_json(folder / "generation.json", {"class_names": dict(enumerate(sample_styles()))})
    assert measure(folder, reference)["Attr-accuracy"]["attributes"] == {"style": 1.0}
    assert set(sample_styles()) == set(styles)


def sample_styles() -> list[str]:
    about = json.loads(pq.read_schema(DATA / "sample.parquet").metadata[b"huggingface"])
    return about["info"]["features"]["label"]["names"]


def test_a_set_that_asks_for_nothing_is_refused(reference, tmp_path):
    rows = pq.read_table(DATA / "sample.parquet").slice(0, 4).to_pylist()
    with pytest.raises(ValueError, match="needs asked, and the set has neither captions nor classes"):
        measure(write_set(tmp_path / "plain", rows, [{}] * 4), reference)
