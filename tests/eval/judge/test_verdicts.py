"""Verdicts: equal to GenEval's own on random detections; planted errors in scenes are found and told."""

import json
from pathlib import Path

import numpy as np
import pytest

from brickwork.eval.judge.colours import ClipColours, PixelColours, load_colours, to_lab
from brickwork.eval.judge.detectors import Detection, kept, load_detector, overlap
from brickwork.eval.judge.flat_ground import ShapeDetector, regions
from brickwork.eval.judge.grammar import read_caption
from brickwork.eval.judge.requirements import COLOURS, Requirements
from brickwork.eval.judge.scenes import ERRORS, make_scene, plant
from brickwork.eval.judge.verdicts import Judge, JudgeSettings, relative_positions, summary

ORACLE = json.loads((Path(__file__).parents[2] / "data" / "eval" / "geneval.json").read_text())


class GivenColours:
    """The colours that a test gave to boxes."""

    name = "given"

    def __init__(self, colours):
        self.colours = colours

    def __call__(self, picture, objects, name):
        return [self.colours[one.box, one.score] for one in objects]


def test_verdicts_are_genevals():
    """tests/data/eval/README.md says how its own functions gave them."""
    for case in ORACLE["verdicts"]:
        objects, colours = {}, {}
        for name, found in case["found"].items():
            objects[name] = [Detection(tuple(box), score) for box, score, _ in found]
            colours |= {(tuple(box), score): colour for box, score, colour in found}
        settings = JudgeSettings(max_overlap=case["max_overlap"])
        judge = Judge(ShapeDetector(), GivenColours(colours), settings)
        verdict = judge.verdict(np.zeros((8, 8, 3), np.uint8), Requirements.from_dict(case["asked"]), objects)
        assert verdict.correct is case["correct"], case
        assert verdict.correct is (verdict.fit >= 1) and verdict.correct is not bool(verdict.reasons)
    assert 30 < sum(case["correct"] for case in ORACLE["verdicts"]) < 100
    for box, other, sides in ORACLE["positions"]:
        assert sorted(relative_positions(box, other)) == sides


def test_planted_errors_are_found_and_told():
    random = np.random.default_rng(1)
    scenes = [make_scene(random) for _ in range(20)]
    judge = Judge(ShapeDetector())
    right = judge([scene.draw() for scene in scenes], [scene.asked for scene in scenes])
    assert all(verdict.correct for verdict in right)
    assert summary(right) == {"overall": 1.0, "categories": {"position": {"correct": 20, "count": 20}}}
    told = {
        "dropped": ">=1, found 0",
        "moved": "target, found",
        "recoloured": ">=1, found 1 ",
        "doubled": "<2, found 2",
    }
    assert set(told) == set(ERRORS)
    for error, words in told.items():
        wrong = [plant(scene, error, random) for scene in scenes]
        verdicts = judge([scene.draw() for scene in wrong], [scene.asked for scene in wrong])
        found = [not verdict.correct and words in verdict.reasons[0] for verdict in verdicts]
        assert np.mean(found) >= 0.9, error
        assert all(bad.fit < good.fit for bad, good, hit in zip(verdicts, right, found) if hit)
    for scene in scenes:
        assert read_caption(scene.asked.prompt, ShapeDetector.names) == scene.asked


def test_requirements_meet_their_pictures():
    row, other = read_caption("a red circle"), read_caption("a square")
    names, captions = ["a.png", "b.png"], ["a square", None]
    assert Judge(ShapeDetector(), rows=[("b.png", row), (None, other)]).asked(names, captions) == [other, row]
    assert Judge(ShapeDetector(), rows=[(None, row), (None, other)]).asked(names, None) == [row, other]
    with pytest.raises(ValueError, match=r"no row for 1 \(a.png\)"):
        Judge(ShapeDetector(), rows=[("b.png", row)]).asked(names, None)
    with pytest.raises(ValueError, match="'b.png' has none; give it one"):
        Judge(ShapeDetector()).asked(names, captions)
    with pytest.raises(ValueError, match="'a.png': `prompt` is 'nothing', which names nothing"):
        Judge(ShapeDetector()).asked(["a.png"], ["nothing"])
    with pytest.raises(ValueError, match="asks for 'dog', and shapes knows triangle, circle, square"):
        Judge(ShapeDetector())([np.zeros((4, 4, 3), np.uint8)], [read_caption("a dog")])


def test_detections_are_kept_by_score_and_overlap():
    boxes = [(0, 0, 9, 9), (1, 1, 9, 9), (20, 20, 29, 29)]
    found = [Detection(box, score) for box, score in zip(boxes, (0.5, 0.9, 0.3))]
    assert [one.score for one in kept(found, 0.3)] == [0.9, 0.5]
    assert [one.score for one in kept(found, 0.2, max_overlap=0.5)] == [0.9, 0.3]
    assert kept(found, 0.2, max_objects=1) == [found[1]] and overlap(boxes[0], boxes[1]) == pytest.approx(0.81)


def test_colours_are_named_by_pixels():
    lab = to_lab(np.array([[255, 255, 255], [255, 0, 0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [53.24, 80.09, 67.2]], atol=0.1)
    picture = np.full((20, 20, 3), 240, np.uint8)
    picture[5:12, 5:12] = (30, 90, 210)
    picture[14:18, 2:6] = (20, 150, 60)
    box, masked = Detection((4, 4, 13, 13), 1.0), Detection((0, 0, 20, 20), 1.0, np.zeros((20, 20), bool))
    masked.mask[14:18, 2:6] = True
    assert PixelColours()(picture, [box, masked, Detection((-3, 19, 40, 60), 1.0)], "x") == ["blue", "green", "white"]


def test_colours_are_named_by_a_clip(clip_folder):
    colours = load_colours(f"clip:{clip_folder}")
    assert isinstance(colours, ClipColours) and colours([], [], "cat") == []
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    mask = np.zeros((24, 24), bool)
    mask[4:9, 4:9] = True
    found = colours(picture, [Detection((2, 2, 20, 20), 1.0), Detection((4, 4, 9, 9), 1.0, mask)], "cat")
    assert len(found) == 2 and set(found) <= set(COLOURS)
    with pytest.raises(ValueError, match="`colours` is 'clip'; choose one of pixels, .*clip:<folder or hub id>"):
        load_colours("clip")


def test_regions_are_connected_parts():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
    parts = regions(mask)
    assert [part.sum() for part in parts] == [2, 2, 2] and (sum(part.astype(int) for part in parts) == mask).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape", "did you mean 'shapes'"),
        ("shapes:x", "did you mean 'shapes'"),
        ("owlv2", "choose one of .*owlv2:<folder or hub id>"),
    ],
)
def test_detectors_are_found_by_name(name, message):
    assert load_detector("shapes").name == "shapes"
    with pytest.raises(ValueError, match=message):
        load_detector(name)


@pytest.mark.parametrize("change", [{"threshold": 1.5}, {"max_objects": 0}, {"max_overlap": float("nan")}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match="give 0 to 1, and 1 or more objects"):
        JudgeSettings(**change)
