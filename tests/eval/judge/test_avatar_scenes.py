"""Scenes of two avatars with planted errors, the colour of hair, and what is drawn over pictures."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Image

from brickwork.eval.judge.avatar_scenes import AvatarScenes
from brickwork.eval.judge.colours import load_colours
from brickwork.eval.judge.detectors import Detection
from brickwork.eval.judge.overlays import TINTS, overlay, surest
from brickwork.eval.judge.scenes import ERRORS
from brickwork.eval.judge.verdicts import Judge
from brickwork.eval.studies.planted_errors import scores_of

HAIR = {"red": 200, "blue": 60, "black": 10, "blond": 230}
STYLES = {"bob": 90, "pip": 150}


@pytest.fixture
def avatars(tmp_path):
    """Squares: red says the style, green the colour of the hair, on one ground."""
    rows = {"image": [], "label": [], "hair_colour": [], "hair": []}
    for style, red in STYLES.items():
        for colour, green in HAIR.items():
            picture = np.full((32, 32, 3), 255, np.uint8)
            picture[4:, 4:28] = red, green, 40
            rows["image"].append(picture)
            rows["label"].append(style)
            rows["hair_colour"].append(colour)
            rows["hair"].append({"bob": "long", "pip": "none"}[style] if colour != "blue" else "curly")
    path = tmp_path / "train.parquet"
    for column in list(rows):
        rows[column] = rows[column] * 2
    rows["label"] = [list(STYLES).index(style) for style in rows["label"]]
    kinds = Dataset.from_dict(rows).cast_column("image", Image()).cast_column("label", ClassLabel(names=list(STYLES)))
    kinds.to_parquet(path)
    return str(path)


class Squares:
    """Finds the avatars of the fixture by the red that stands for their style."""

    name, names = "squares", tuple(STYLES)

    def __call__(self, pictures, names):
        return [{name: self._find(picture, STYLES[name]) for name in asked} for picture, asked in zip(pictures, names)]

    def _find(self, picture, red):
        from brickwork.eval.judge.flat_ground import regions

        near = np.abs(picture[..., 0].astype(int) - red) < 6
        near &= np.abs(picture[..., 2].astype(int) - 40) < 6
        found = [np.argwhere(mask) for mask in regions(near) if mask.sum() > 60]
        return [Detection((*map(float, one.min(0)[::-1]), *map(float, one.max(0)[::-1] + 1)), 0.99) for one in found]


class Greens:
    name = "greens"

    def __call__(self, picture, objects, name):
        found = []
        for one in objects:
            left, top, right, bottom = map(int, one.box)
            green = picture[(top + bottom) // 2, (left + right) // 2, 1]
            found.append(min(HAIR, key=lambda colour: abs(HAIR[colour] - int(green))))
        return found


def test_planted_errors_in_scenes_of_avatars_are_seen(avatars):
    scenes = AvatarScenes(avatars)
    assert scenes.names == ("bob", "pip")
    scene = scenes.make(np.random.default_rng(0), scenes.names)
    assert {one.name for one in scene.shapes} == {"bob", "pip"} and scene.draw(64).shape == (64, 64, 3)
    assert all(one.colour in ("red", "blue", "black") for one in scene.shapes)  # a prompt cannot ask for blond
    scores = scores_of(Judge(Squares(), Greens()), 30, 0, 128, scenes)
    assert scores["any"] == (1.0, 1.0)
    assert all(scores[error][1] == 1.0 for error in ERRORS)
    assert scores_of(Judge(Squares(), Greens()), 10, 0, 128, scenes, ["pip"], with_new=True)["any"] == (1.0, 1.0)


def test_an_avatar_in_another_colour_is_of_its_style(avatars):
    scenes, random = AvatarScenes(avatars), np.random.default_rng(1)
    for _ in range(5):
        scene = scenes.make(random, scenes.names)
        wrong = scenes.plant(scene, "recoloured", random)
        changed = [(a, b) for a, b in zip(scene.shapes, wrong.shapes, strict=False) if a.colour != b.colour]
        assert {one.name for one in wrong.shapes} == {"bob", "pip"}
        colours = {one.colour for one in scene.shapes}
        assert all(b.colour not in colours for _, b in changed) or len(changed) == 2


def test_avatars_are_named_by_another_attribute(avatars):
    scenes = AvatarScenes(avatars, "hair")
    assert scenes.names == ("curly", "long")  # and none is the lack of hair
    with pytest.raises(ValueError, match="`names` is 'hat', which .* does not tell; give label"):
        AvatarScenes(avatars, "hat")


def test_pictures_without_colours_of_hair_are_refused(tmp_path):
    rows = {"image": [np.zeros((8, 8, 3), np.uint8)], "label": ["bob"]}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="`avatars` is .*, which names no hair; build it with"):
        AvatarScenes(str(tmp_path / "train.parquet"))


def test_hair_is_named_for_each_object():
    namer = load_colours("avatar-attributes")
    picture = np.full((64, 64, 3), 255, np.uint8)
    objects = [Detection((8.0, 8.0, 40.0, 60.0), 0.9), Detection((-3.0, 70.0, 2.0, 90.0), 0.9)]
    named = namer(picture, objects, "micah")
    assert namer.name == "avatar-attributes" and set(named) <= set(namer.judge.attributes["hair_colour"])
    assert len(named) == 2 and namer(picture, [], "micah") == []


def test_masks_are_tinted_and_objects_framed():
    mask = np.zeros((32, 32), bool)
    mask[10:20, 10:20] = True
    picture = np.full((32, 32, 3), 255, np.uint8)
    found = {"bob": [Detection((10.0, 10.0, 20.0, 20.0), 0.5, mask)]}
    drawn = np.asarray(overlay(picture, found, False, ["pip", "bob"]))
    assert drawn.shape == (256, 256, 3)
    tint = drawn[15 * 8 + 30, 15 * 8].astype(float)
    assert np.allclose(tint, 0.45 * 255 + 0.55 * np.array(TINTS[1]), atol=1)
    assert not np.array_equal(drawn[80, 80], [255, 255, 255]) and np.array_equal(drawn[250, 250], [255, 255, 255])
    assert np.array_equal(np.asarray(overlay(picture, found))[15 * 8 + 30, 15 * 8], [255, 255, 255])


def test_of_boxes_over_each_other_the_surest_is_kept():
    near, other = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0)
    found = {
        "bob": [Detection(near, 0.6), Detection(other, 0.2)],
        "pip": [Detection((0.0, 0.0, 10.0, 9.0), 0.8), Detection(other, 0.4)],
    }
    kept = surest(found, 0.3)
    assert {name: [one.score for one in objects] for name, objects in kept.items()} == {"pip": [0.8, 0.4]}
