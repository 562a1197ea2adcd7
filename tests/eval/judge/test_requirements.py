"""Captions and metadata as requirements."""

import json

import pytest

from brickwork.eval.judge.grammar import read_caption
from brickwork.eval.judge.requirements import Clause, Requirements, read_requirements

NAMES = ["person", "bus", "dog", "bear", "teddy bear", "computer mouse", "wine glass", "orange", "kite", "broccoli"]


# Prompts of GenEval's evaluation_metadata.jsonl with what it says of them; all of its 553 were compared so.
@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        ("a photo of a bench", {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}),
        (
            "a photo of a bus and an orange",
            {"tag": "two_object", "include": [{"class": "bus", "count": 1}, {"class": "orange", "count": 1}]},
        ),
        (
            "a photo of three buses",
            {
                "tag": "counting",
                "include": [{"class": "bus", "count": 3}],
                "exclude": [{"class": "bus", "count": 4}],
            },
        ),
        ("a photo of a pink kite", {"tag": "colors", "include": [{"class": "kite", "count": 1, "color": "pink"}]}),
        (
            "a photo of a teddy bear left of an orange",
            {
                "tag": "position",
                "include": [
                    {"class": "orange", "count": 1},
                    {"class": "teddy bear", "count": 1, "position": ["left of", 0]},
                ],
            },
        ),
        (
            "a photo of an orange kite and a green dog",
            {
                "tag": "color_attr",
                "include": [
                    {"class": "kite", "count": 1, "color": "orange"},
                    {"class": "dog", "count": 1, "color": "green"},
                ],
            },
        ),
    ],
)
@pytest.mark.parametrize("names", [None, [*NAMES, "bench"]])
def test_genevals_prompts_mean_what_its_metadata_says(prompt, row, names):
    expected = Requirements.from_dict({**row, "prompt": prompt})
    assert read_caption(prompt, names) == expected
    assert expected.to_dict() == {**row, "prompt": prompt}


def test_further_captions():
    both = read_caption("Two small dogs on top of a red-coloured computer mouse, and no people.", NAMES)
    assert both.include == (Clause("computer mouse", 1, "red"), Clause("dog", 2, None, ("above", 0)))
    assert both.exclude == (Clause("dog", 3), Clause("person", 1)) and both.category == "position"
    chain = read_caption("a cat above a dog left of 2 foxes")
    assert chain.include == (
        Clause("fox", 2),
        Clause("dog", 1, None, ("left of", 0)),
        Clause("cat", 1, None, ("above", 1)),
    )
    assert read_caption("computer mouses", NAMES).include == (Clause("computer mouse"),)
    assert read_caption("an icon of four wine glasses next to a purple orange").names == ["wine glass", "orange"]


@pytest.mark.parametrize("caption", ["", "a photo of", "beautiful", "happiness and joyful light", "a photo of a"])
def test_captions_that_name_nothing_are_refused(caption):
    with pytest.raises(ValueError, match="names nothing that can be judged"):
        read_caption(caption)


def test_captions_without_a_known_name_are_refused():
    with pytest.raises(ValueError, match=r"names nothing that can be judged; did you mean 'kite'\?"):
        read_caption("a kit", NAMES)


def test_files_of_requirements(tmp_path):
    row = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs", "file_name": "1.png"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps({**row, "file_name": None}))
    (tmp_path / "a.json").write_text(json.dumps([row]))
    found = read_requirements(tmp_path / "a.jsonl")
    assert [name for name, _ in found] == ["1.png", None] and read_requirements(tmp_path / "a.json") == found[:1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"include": {}}, "`include` is {}; give a list"),
        ({"prompt": "x"}, "'x', which names nothing that can be judged"),
        ({"include": [{"class": "dog", "colour": "red"}]}, "'colour', which a clause does not take; did you mean"),
        ({"include": [{"class": ""}]}, "`class` is ''; name the object"),
        ({"include": [{"class": "dog", "count": 0}]}, "`count` is 0; give 1 or more"),
        ({"include": [{"class": "dog", "color": "rde"}]}, "`color` is 'rde'; did you mean 'red'"),
        ({"include": [{"class": "dog", "position": ["left of", 0]}]}, "relative to clause 0; give one before it"),
        ({"include": [{"class": "a"}, {"class": "b", "position": ["left", 0]}]}, "`position` is 'left'; did you mean"),
        ([1], r"row 0, is \[1\]; give an object in braces"),
    ],
)
def test_bad_rows_are_told_by_file_and_row(tmp_path, row, message):
    (tmp_path / "a.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=message) as told:
        read_requirements(tmp_path / "a.json")
    assert "a.json" in str(told.value)
