"""The builder of the avatars, with what DiceBear 9.4.3 says of its styles (`tests/data/avatars`) and no network."""

import io
import json
import random
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageColor
import pyarrow.parquet as pq
import pytest

from brickwork.cli import main
from brickwork.training.data.build import avatar_files, dicebear
from brickwork.training.data.build.attributes import ATTRIBUTES, draw, expand, table, values_of
from brickwork.training.data.build.avatar_files import SPLITS, check_licences
from brickwork.training.data.build.avatars import build_avatars
from brickwork.training.data.build.captions import caption
from brickwork.training.data.build.pairs import build_pairs
from brickwork.training.data.build.scenes import ASPECTS, MOST, build_scenes, picture_sides, place, to_pixels

DESCRIBED = json.loads((Path(__file__).parents[3] / "data" / "avatars" / "styles.json").read_text())
PEOPLE = [style for style in DESCRIBED if style != "fun-emoji"]  # all but the face that is its ground


class Hand:
    """Draws the ground alone, and where there is none a black half."""

    def __init__(self, styles):
        self.styles = {style: DESCRIBED[style] for style in styles}

    def draw(self, style, options):
        (ground,) = options.get("backgroundColor", [None])
        assert ground is None or re.fullmatch("[0-9a-f]{6}", ground)
        shape = f'width="9" height="9" fill="#{ground}"' if ground else 'y="4.5" width="9" height="4.5"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect {shape}/></svg>'


@pytest.fixture
def offline(monkeypatch):
    @contextmanager
    def artist(folder, styles):
        yield Hand(styles)

    monkeypatch.setattr(avatar_files, "install", lambda folder: None)
    monkeypatch.setattr(avatar_files, "require_programs", lambda: None)
    monkeypatch.setattr(avatar_files, "artist", artist)


def drawings(style, number=300, **where):
    options = DESCRIBED[style]["options"]
    return [draw(style, options, random.Random(seed), where) for seed in range(number)]


@pytest.mark.parametrize("style", table()["styles"])
def test_every_value_is_one_that_the_style_has(style):
    for attribute in table()["styles"][style]:
        values = (
            {"always": table()["styles"][style]["always"]} if attribute == "always" else values_of(style, attribute)
        )
        assert attribute in (*ATTRIBUTES, "always") and 0 < len(values) <= 12
        for options in values.values():
            assert set(options.get("sets", {})) <= set(ATTRIBUTES)
            for option, choices in options.items():
                known = DESCRIBED[style]["options"].get(option, {"values": []})["values"]
                for pattern in choices if isinstance(choices, list) else [choices]:
                    assert option in ("sets", "scale", "translateY") or expand(str(pattern), known)


@pytest.mark.parametrize("style", table()["styles"])
def test_what_is_drawn_is_what_is_told(style):
    for drawing in drawings(style):
        assert list(drawing.attributes) == list(ATTRIBUTES)
        for attribute, value in drawing.attributes.items():
            entry = values_of(style, attribute)
            assert value in (None, *entry)
            for option, choices in entry.get(value, {}).items():
                if option == "backgroundColor":
                    assert drawing.options[option] == [choices]
        for option, known in DESCRIBED[style]["options"].items():  # nothing is left to DiceBear's own chance
            if isinstance(known["initial"], list) and known["initial"]:
                assert len(drawing.options.get(option, [])) == 1 or drawing.options[f"{option}Probability"] == 0


def test_captions_tell_three_to_eight_true_things():
    for style in table()["styles"]:
        for seed, drawing in enumerate(drawings(style, 100)):
            text = caption(drawing, random.Random(seed))
            assert style.replace("-", " ") in text and text == " ".join(text.split())
            has = {name: value for name, value in drawing.attributes.items() if value}
            told = [name for name, value in has.items() if value.rstrip("s") in text or f"no {name}" in text]
            assert 2 <= len(told) and text.count(",") < 9
            for colour in table()["palettes"]["hair_colour"]:
                assert f" {colour} " not in f" {text} " or colour in has.values()


def test_a_set_is_made_of_disjoint_combinations_and_the_same_bytes(offline, tmp_path):
    for folder in ("one", "two"):
        build_avatars(tmp_path / folder, count=120, held_out=24, size=32)
    files = {split: pq.read_table(tmp_path / "one" / name).to_pylist() for split, name in SPLITS.items()}
    assert {split: len(rows) for split, rows in files.items()} == {"train": 120, "combination": 24, "seed": 24}
    seen = {row["combination"] for row in files["train"]}
    assert not seen & {row["combination"] for row in files["combination"]}
    assert len({row["text"] for row in files["train"]} & {row["text"] for row in files["seed"]}) < 12
    for name in (*SPLITS.values(), "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert PIL.Image.open(io.BytesIO(files["seed"][0]["image"]["bytes"])).mode == "RGB"
    card = (tmp_path / "one" / "README.md").read_text()
    assert all(f"{told['creator']} | [{told['license']['name']}]" in card for told in DESCRIBED.values())


def test_values_can_be_chosen(offline, tmp_path):
    build_avatars(tmp_path, count=30, held_out=0, size=32, styles=["micah"], where={"mood": ["happy"]})
    rows = pq.read_table(tmp_path / SPLITS["train"]).to_pylist()
    assert {row["mood"] for row in rows} == {"happy"}


@pytest.mark.parametrize("count", range(1, MOST + 1))
def test_avatars_of_a_scene_lie_apart_within_the_picture(count):
    for seed, aspect in enumerate(ASPECTS * 8):
        width, height = picture_sides(96, aspect)
        squares = [to_pixels(one, aspect, width, height) for one in place(count, aspect, random.Random(seed))]
        pixels = np.zeros((height, width), int)
        for left, top, side in squares:
            assert min(left, top) >= 0 and side >= 0.6 * min(width, height) / count
            assert (covered := pixels[top : top + side, left : left + side]).shape == (side, side)
            covered += 1
        assert len(squares) == count and pixels.max() == 1


def test_a_scene_is_told_with_exact_boxes(offline, tmp_path):
    for folder in ("one", "two"):
        build_scenes(
            tmp_path / folder, count=40, held_out=8, size=64, where={"ground": ["white", "blue"]}, styles=PEOPLE
        )
    files = {split: pq.read_table(tmp_path / "one" / name).to_pylist() for split, name in SPLITS.items()}
    assert {split: len(rows) for split, rows in files.items()} == {"train": 40, "combination": 8, "seed": 8}
    sizes, counts = set(), set()
    for row in files["train"]:
        boxes, page = json.loads(row["boxes"]), PIL.Image.open(io.BytesIO(row["image"]["bytes"]))
        ground = PIL.ImageColor.getrgb("#" + table()["palettes"]["ground"][row["ground"]])
        covered = (np.asarray(page) != ground).any(axis=2)
        for told in boxes:
            left, top, right, bottom = np.round(np.array(told["box"]) * (page.size * 2)).astype(int)
            assert covered[top:bottom, left:right].all() and (bottom - top) * 2 - (right - left) in (0, 1)
            covered[top:bottom, left:right] = False
            assert told["label"] in PEOPLE and told["ground"] == row["ground"] and told["text"] in row["text"]
        assert not covered.any() and row["count"] == len(boxes) and row["ground"] in row["text"]
        assert [told["box"][0] for told in boxes] == sorted(told["box"][0] for told in boxes)
        sizes.add(page.size)
        counts.add(row["count"])
    assert len(sizes) > 3 and all(width * height < 1.4 * 64**2 for width, height in sizes)
    assert counts == set(range(1, MOST + 1))
    for name in (*SPLITS.values(), "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_larger_picture_shows_the_same_scene(offline, tmp_path):
    for size in (96, 192):
        build_scenes(tmp_path / str(size), count=6, held_out=0, size=size)
    small, large = (pq.read_table(tmp_path / size / SPLITS["train"]).to_pylist() for size in ("96", "192"))
    for one, other in zip(small, large):
        assert one["text"] == other["text"]
        for here, there in zip(json.loads(one["boxes"]), json.loads(other["boxes"])):
            np.testing.assert_allclose(here["box"], there["box"], atol=0.1)


def test_scenes_of_one_shape_and_of_a_style_with_few_combinations(offline, tmp_path):
    build_scenes(tmp_path / "s", count=4, held_out=40, size=32, styles=["fun-emoji", "micah"], aspects=[1.0])
    rows = pq.read_table(tmp_path / "s" / "held_out_combinations.parquet").to_pylist()
    assert {PIL.Image.open(io.BytesIO(row["image"]["bytes"])).size for row in rows} == {(32, 32)}
    with pytest.raises(ValueError, match="aspects holds 3"):
        build_scenes(tmp_path / "t", count=1, held_out=0, aspects=[1, 3])
    with pytest.raises(ValueError, match="where leaves fun-emoji no combination for the split 'combination'"):
        build_scenes(tmp_path / "t", count=10**6, held_out=40, styles=["fun-emoji"], where={"mood": ["happy"]})
    assert not (tmp_path / "t").exists()


def test_pairs_are_one_avatar_in_two_styles(offline, tmp_path):
    styles = ["micah", "avataaars", "bottts"]
    for folder in ("one", "two"):
        build_pairs(tmp_path / folder, count=60, held_out=12, size=32, styles=styles, where={"mood": ["happy", "sad"]})
    files = {split: pq.read_table(tmp_path / "one" / name).to_pylist() for split, name in SPLITS.items()}
    assert {split: len(rows) for split, rows in files.items()} == {"train": 60, "combination": 12, "seed": 12}
    assert not {row["combination"] for row in files["train"]} & {row["combination"] for row in files["combination"]}
    for row in files["train"]:
        assert row["reference_style"] in styles and row["reference_style"] != styles[row["label"]]
        alike = json.loads(row["shared"])
        assert all(row[name] == value for name, value in alike.items()) and alike["ground"] == row["ground"]
        both = {styles[row["label"]], row["reference_style"]}
        if both == {"micah", "avataaars"}:  # people: all but what only one of the styles has
            assert {"skin", "mood", "clothes_colour"} <= set(alike)
        ground = PIL.ImageColor.getrgb("#" + table()["palettes"]["ground"][row["ground"]])
        for column in ("image", "reference"):  # the hand of these tests draws the ground alone
            assert PIL.Image.open(io.BytesIO(row[column]["bytes"])).getpixel((0, 0)) == ground
    for name in (*SPLITS.values(), "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(ValueError, match="styles is micah; name two"):
        build_pairs(tmp_path / "t", count=1, held_out=0, styles=["micah"])
    assert main(["data", "build", "avatars", "--pairs", "2", "--held-out", "0", "-o", str(tmp_path / "p")]) == 0
    assert "reference" in pq.read_table(tmp_path / "p" / SPLITS["train"]).column_names


def test_scenes_from_the_command_line(offline, tmp_path, capsys):
    assert main(["data", "build", "avatars", "--scenes", "2", "--held-out", "0", "-o", str(tmp_path / "s")]) == 0
    assert pq.read_table(tmp_path / "s" / SPLITS["train"]).num_rows == 2
    assert main(["data", "build", "avatars", "--scenes", "0", "-o", str(tmp_path / "t")]) == 2
    assert main(["data", "build", "avatars", "--aspects", "1", "-o", str(tmp_path / "t")]) == 2
    assert "count is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"styles": ["mica"]}, "styles.*'mica'.*micah"),
        ({"styles": ["icons"]}, "styles.*'icons'.*MIT.*CC0"),
        ({"styles": ["micah", "micah"]}, "twice"),
        ({"where": {"mod": ["happy"]}}, "where.*'mod'.*mood"),
        ({"where": {"mood": ["hapy"]}}, "'hapy'.*happy"),
        ({"styles": ["micah", "bottts"], "where": {"mood": ["loving"]}}, "mood of micah` is 'loving'"),
        ({"count": 0}, "count is 0"),
        ({"size": 8}, "size is 8"),
    ],
)
def test_what_cannot_be_is_told(offline, tmp_path, arguments, said):
    with pytest.raises(ValueError, match=said):
        build_avatars(tmp_path, **arguments)


def test_a_strangers_file_is_kept_and_ours_replaced_when_asked(offline, tmp_path):
    stranger = tmp_path / "train.parquet"
    stranger.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="train.parquet|not of this"):
            build_avatars(tmp_path, count=3, held_out=3, size=32, overwrite=overwrite)
    assert stranger.read_text() == "mine"
    stranger.unlink()
    build_avatars(tmp_path, count=3, held_out=3, size=32)
    with pytest.raises(ValueError, match="--overwrite"):
        build_avatars(tmp_path, count=6, held_out=3, size=32)
    build_avatars(tmp_path, count=6, held_out=3, size=32, overwrite=True)
    assert pq.read_table(stranger).num_rows == 6


def test_a_licence_that_is_not_allowed_is_refused():
    with pytest.raises(ValueError, match="styles has 'mine'.*'CC BY-NC 4.0'; leave it out"):
        check_licences({"mine": {"license": {"name": "CC BY-NC 4.0"}}})


def test_without_node_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["data", "build", "avatars", "--output", str(tmp_path / "a")]) == 2
    assert "node and npm" in (said := capsys.readouterr().err) and "install Node.js" in said


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_node_draws_what_it_is_asked(tmp_path):
    shutil.copyfile(dicebear.SOURCES / "draw.mjs", tmp_path / "draw.mjs")
    packages = {
        "core": "export const createAvatar = (style, options) => ({toString: () => style.meta.title + options.seen});",
        "plain": "export const meta = {title: 'Plain'};"
        "export const schema = {properties: {seen: {items: {enum: ['a']}}}};",
    }
    for name, code in packages.items():
        folder = tmp_path / "node_modules" / "@dicebear" / name
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"type": "module", "main": "index.js"}')
        (folder / "index.js").write_text(code)
    with dicebear.artist(tmp_path, ["plain"]) as hand:
        assert hand.styles["plain"]["options"] == {"seen": {"values": ["a"], "initial": None}}
        assert [hand.draw("plain", {"seen": number}) for number in (1, 2)] == ["Plain1", "Plain2"]
    with pytest.raises(ValueError, match="Node stopped"), dicebear.artist(tmp_path, ["none"]):
        pass
