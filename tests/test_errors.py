import re

import pytest

from brickwork.errors import (
    MissingFile,
    count_and_name,
    counted,
    explained,
    near_names,
    no_unknown,
    one_of,
    whole_number,
)


def test_one_of_gives_the_value_or_what_it_stands_for():
    assert one_of("kind", "a", ["a", "b"]) == "a"
    assert one_of("kind", "a", {"a": 1}) == 1


@pytest.mark.parametrize(
    "value, message",
    [
        ("ressnet", r"^`model.type` is 'ressnet'; did you mean 'resnet'\?$"),
        ("DIT", r"^`model.type` is 'DIT'; did you mean 'dit'\?$"),
        (7, r"^`model.type` is 7; choose one of dit, resnet\.$"),
        ([], r"^`model.type` is \[\]; choose one of dit, resnet\.$"),
    ],
)
def test_one_of_names_argument_value_and_fix(value, message):
    with pytest.raises(ValueError, match=message):
        one_of("model.type", value, ["dit", "resnet"])


def test_unknown_keys():
    no_unknown("options", ["depth"], ["depth", "width"])
    with pytest.raises(ValueError, match="`options` has 'dept', which gfpn does not take; did you mean 'depth'?"):
        no_unknown("options", ["dept"], ["depth", "width"], "gfpn")
    with pytest.raises(ValueError, match="gfpn takes depth, width."):
        no_unknown("options", ["zzz"], ["width", "depth"], "gfpn")


def test_near_names_keep_their_case():
    assert near_names("micha", ["Micah", "Lorelei"]) == ["Micah"]


def test_count_and_name():
    assert count_and_name(["a", "b"]) == "2 (a, b)"
    assert count_and_name(list("abcdefg")) == "7 (a, b, c, d, e, …)"


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "3", None])
def test_what_is_no_whole_number_is_told(value):
    with pytest.raises(
        ValueError, match=f"`n` is {re.escape(repr(value))}; give a whole number of steps from 1 up, .*"
    ):
        whole_number("n", value, of="steps", more=", such as 2")
    assert whole_number("n", 3) == 3
    with pytest.raises(ValueError, match="`n` is 3; give a whole number from 4 up."):
        whole_number("n", 3, 4)


def test_errors_within_a_block_are_explained():
    with pytest.raises(MissingFile, match=r"^`base` is 'x', which cannot be loaded: it is not there$"):
        with explained("`base` is 'x', which cannot be loaded", kind=MissingFile):
            raise OSError("it is not there")
    with pytest.raises(TypeError), explained("`base`", KeyError):
        raise TypeError("another kind")


def test_one_is_not_many():
    assert (counted(1), counted(1600), counted(1, "clip")) == ("1 image", "1,600 images", "1 clip")
