"""The strength that suits a size."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brickwork.adapters.comfyui.strength import OFFICIAL_RANGES, TrainingRange, auto_strength, range_warning

SIDES = st.integers(8, 4096)


def test_the_authors_advice():
    """1.0 up to the training size, 0.3 to 0.7 well above it."""
    assert auto_strength(512, 512, 512) == 1.0
    assert auto_strength(256, 384, 512) == 1.0
    assert auto_strength(1024, 1024, 512) == pytest.approx(0.3)
    assert auto_strength(2048, 2048, 512) == pytest.approx(0.3)
    assert auto_strength(724, 724, 512) == pytest.approx(0.65, abs=0.001)
    assert 0.3 < auto_strength(768, 768, 512) < 0.7


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([64, 512, 768, 1024]))
def test_larger_is_never_stronger(a, b, c, d, trained):
    small, large = sorted([(a, b), (c, d)], key=math.prod)
    assert 0.3 <= auto_strength(*large, trained) <= auto_strength(*small, trained) <= 1.0
    assert auto_strength(a, b, trained) == auto_strength(b, a, trained)


@given(SIDES, SIDES)
def test_continuous(height, width):
    assert abs(auto_strength(height, width, 512) - auto_strength(height + 8, width, 512)) <= 0.36 * math.log2(
        (height + 8) / height
    )


@pytest.mark.parametrize("size", [(0, 8, 8), (8, -1, 8), (8, 8, 0)])
def test_no_such_size(size):
    with pytest.raises(ValueError, match="must be positive"):
        auto_strength(*size)


def test_warnings_outside_the_stated_range():
    stated = OFFICIAL_RANGES["resadapter_v1_sd1.5"]
    assert range_warning(128, 128, stated) is None
    assert range_warning(1024, 1024, stated) is None
    assert range_warning(512, 1024, stated) is None
    assert "size (root of the area) of 64 pixels" in range_warning(64, 64, stated)
    assert "trained for 128 to 1024" in range_warning(1200, 1100, stated)
    assert "1032x512 has an aspect ratio of 2.02" in range_warning(512, 1032, stated)
    assert range_warning(1, 100_000, None) is None


@pytest.mark.parametrize("values", [(512, 128, 2.0), (0, 128, 2.0), (1, 2, 0.5), (1, math.inf, 2.0)])
def test_impossible_ranges(values):
    with pytest.raises(ValueError, match="training range"):
        TrainingRange(*values)
