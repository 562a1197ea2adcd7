"""Series as pictures and back."""

import math

import numpy as np
import pytest
import torch

from brickwork.gen.blocks.timesblock import TimesBlock
from brickwork.gen.period_fold import PeriodFold


@pytest.mark.parametrize("periods", [[7], [24, 7], [5, 9, 12]])
@pytest.mark.parametrize("length", [48, 61])
@pytest.mark.parametrize("weights", [False, True])
def test_unfold_undoes_fold_bit_for_bit(periods, length, weights):
    fold = PeriodFold(periods, [0.7, 0.1, 3.0][: len(periods)] if weights else None)
    series = torch.randn(3, 2, length, generator=torch.Generator().manual_seed(0))
    folded = fold.fold(series)
    assert [tuple(picture.shape) for picture in folded] == [(3, 2, -(-length // p), p) for p in periods]
    assert torch.equal(folded[0][0, 1, 1, 3], series[0, 1, periods[0] + 3])
    assert torch.equal(fold.unfold(folded, length), series)


def test_the_merge_is_the_weighted_mean():
    fold = PeriodFold([4, 6], weights=[3, 1])
    assert fold.weights == [0.75, 0.25]
    folded = [torch.full((1, 1, 3, 4), 2.0), torch.full((1, 1, 2, 6), 10.0)]
    assert torch.equal(fold.unfold(folded, 12), torch.full((1, 1, 12), 4.0))


def test_periods_of_a_training_set():
    time = np.arange(600)
    first = 2 * np.sin(2 * np.pi * time / 24) + 0.02 * time  # a trend is no period
    second = np.sin(2 * np.pi * time / 7 + 1) + 100
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 600))
    fold = PeriodFold.fit(np.stack([first, second]) + noise, top_k=2)
    assert fold.periods == [24, 7]
    assert fold.weights[0] == pytest.approx(2 / 3, abs=0.05)
    assert PeriodFold.fit(first, top_k=1).periods == [24]
    batch = torch.from_numpy(np.stack([first, second]))[:, None]
    assert PeriodFold.fit(batch).periods == [24, 7]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: PeriodFold([1]), "`periods` has 1; give whole numbers from 2 up"),
        (lambda: PeriodFold([7, 7]), "each once"),
        (lambda: PeriodFold([]), "give one or more"),
        (lambda: PeriodFold([7.5]), "`periods` has 7.5"),
        (lambda: PeriodFold([7, 5], weights=[1]), "a positive number for each"),
        (lambda: PeriodFold([7], weights=[math.nan]), "a positive number for each"),
        (
            lambda: PeriodFold([24]).fold(torch.zeros(1, 1, 47)),
            "fewer than two cycles of the period 24; give at least 48",
        ),
        (lambda: PeriodFold([24]).fold(torch.zeros(1, 47)), r"give \(batch, variables, length\)"),
        (lambda: PeriodFold([4]).unfold([torch.zeros(1, 1, 2, 4)], 9), "holds 1 to 8 steps"),
        (lambda: PeriodFold([4, 3]).unfold([torch.zeros(1, 1, 2, 4)], 8), "give one each"),
        (lambda: PeriodFold.fit([1.0, 2.0, math.nan, 1.0, 2.0, 1.0]), "has gaps"),
        (lambda: PeriodFold.fit([1.0, 2.0]), "two cycles of a period"),
        (lambda: PeriodFold.fit(np.arange(50.0)), "has no period"),
        (lambda: PeriodFold.fit(np.zeros(50), top_k=0), "`top_k` is 0"),
    ],
)
def test_what_cannot_be_folded_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_block_reads_a_map_row_by_row():
    """The periods of its options and those of the spectrum are the same where the spectrum has them alone."""
    torch.manual_seed(0)
    block = TimesBlock(3, 4, periods=(8,), num_kernels=2)
    time = torch.arange(64.0)
    maps = torch.sin(2 * torch.pi * time / 8).view(1, 1, 8, 8).repeat(2, 3, 1, 1)
    given = block.merged(maps.flatten(2))
    block.periods, block.top_k = None, 1
    torch.testing.assert_close(block.merged(maps.flatten(2)), given)
    with pytest.raises(ValueError, match="`top_k` is 0"):
        TimesBlock(3, 4, top_k=0)
