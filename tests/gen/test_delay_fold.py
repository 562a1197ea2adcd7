"""Delay embedding and back; the pictures are the authors' (tests/data/delay_fold.json, with the command)."""

import json
from pathlib import Path

import pytest
import torch

from brickwork import DelayFold

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "delay_fold.json").read_text())["cases"]


@pytest.mark.parametrize("case", AUTHORS, ids=lambda case: f"{case['length']}-{case['delay']}-{case['rows']}")
def test_the_pictures_of_the_authors(case):
    series = torch.arange(1.0, case["length"] + 1).view(1, 1, -1)
    (picture,) = DelayFold(case["delay"], case["rows"]).fold(series)
    assert torch.equal(picture[0, 0], torch.tensor(case["picture"]))


@pytest.mark.parametrize("delay, rows", [(1, 4), (3, 8), (5, 5), (7, 12)])
@pytest.mark.parametrize("length", [12, 24, 25, 61])
def test_unfold_undoes_fold_bit_for_bit(delay, rows, length):
    fold, series = DelayFold(delay, rows), torch.randn(3, 2, length, generator=torch.Generator().manual_seed(0))
    folded = fold.fold(series)
    assert folded[0].shape == (3, 2, rows, fold.columns(length))
    assert torch.equal(fold.unfold(folded, length), series)


def test_where_columns_differ_their_mean_is_taken_and_all_of_them_learn():
    fold = DelayFold(2, 4)
    picture = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()  # columns from steps 0, 2, 4 and 6, cut at 8
    series = fold.unfold([picture], 8)
    expected = [0, 4, (8 + 1) / 2, (12 + 5) / 2, (9 + 2) / 2, (13 + 6) / 2, (10 + 3) / 2, (14 + 7) / 2]
    torch.testing.assert_close(series[0, 0], torch.tensor(expected))
    series.sum().backward()
    inside = torch.arange(4)[:, None] + 2 * torch.arange(4) < 8
    assert torch.equal(picture.grad[0, 0] != 0, inside)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: DelayFold(9, 8), "`delay` is 9 for columns of 8 steps; give at most 8"),
        (lambda: DelayFold(0, 8), "`delay` is 0"),
        (lambda: DelayFold(1, 2.5), "`rows` is 2.5"),
        (lambda: DelayFold(3, 8).fold(torch.zeros(1, 1, 7)), "7 steps, fewer than a column .* at least 8"),
        (lambda: DelayFold(3, 8).fold(torch.zeros(1, 24)), r"give \(batch, variables, length\)"),
        (lambda: DelayFold(3, 8).unfold([torch.zeros(1, 1, 8, 3)], 24), "24 steps make one of 8 by 7"),
    ],
)
def test_what_cannot_be_folded_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
