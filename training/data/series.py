"""The endless stream of windows of a series, with what is to be known of each; all of it follows from the seed."""

import numpy as np
import torch
from torch.utils.data import Dataset

from brickwork.eval.sets.series import SeriesTable
from brickwork.training.data.buckets import SAMPLE, ShuffledRows, random_numbers

SHORTEST_GAP = 0.05  # of a window


class SeriesWindows(Dataset):
    """Windows of a table's first steps; those with gaps are left out.

    Args:
        table: the series.
        length: of a window.
        steps: how many of the table's steps are for training.
        seed: of the run.
        forecasts: share of the windows of which the beginning is known.
        gaps: share of those that are known but for some stretches.

    Attributes:
        mean: of each variable in the training steps `(variables,)`.
        std: likewise, above 0.
    """

    def __init__(
        self, table: SeriesTable, length: int, steps: int, seed: int, forecasts: float = 0.4, gaps: float = 0.4
    ):
        part = table.values[:, :steps]
        self.starts = window_starts(part, length)
        if not len(self.starts):
            raise ValueError(
                f"`data.length` is {length}, but the training part of {table.source!r} ({steps} steps) has no such "
                "stretch without gaps; shorten it, or lower `data.held_out`."
            )
        self.mean, std = np.nanmean(part, axis=1), np.nanstd(part, axis=1)
        if not (std > 0).all():
            name = table.names[int((std == 0).argmax())]
            raise ValueError(f"{table.source!r} has the same number everywhere in {name!r}; leave that column out.")
        self.std, self.length, self.seed = std, length, seed
        self.values = ((part - self.mean[:, None]) / std[:, None]).astype(np.float32)
        self.shares, self.fingerprint = (forecasts, gaps), table.fingerprint
        self.row = ShuffledRows(np.arange(len(self.starts)), seed)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """`image (C, L)`, `mask` and `noise` like it; `level` normal; `broken` -1."""
        start = self.starts[self.row(position)]
        window = self.values[:, start : start + self.length]
        random = random_numbers(self.seed, SAMPLE, position)
        return {
            "image": torch.from_numpy(window.copy()),
            "mask": torch.from_numpy(draw_mask(random, *window.shape, *self.shares)),
            "level": torch.tensor(random.standard_normal(), dtype=torch.float32),
            "noise": torch.from_numpy(random.standard_normal(window.shape, dtype=np.float32)),
            "broken": torch.tensor(-1),
        }


def window_starts(values: np.ndarray, length: int) -> np.ndarray:
    """Where windows of `(variables, steps)` begin that hold no gap."""
    complete = np.isfinite(values).all(axis=0)
    if len(complete) < length:
        return np.zeros(0, dtype=int)
    return np.flatnonzero(np.convolve(complete, np.ones(length, dtype=int), mode="valid") == length)


def draw_mask(random: np.random.Generator, variables: int, length: int, forecasts: float, gaps: float) -> np.ndarray:
    """What of a window is known, float32 `(variables, length)` of ones and zeros."""
    mask, kind = np.zeros((variables, length), dtype=np.float32), random.random()
    if kind < forecasts:  # half of it or more
        mask[:, : int(random.integers(length // 2, length))] = 1
    elif kind < forecasts + gaps:
        mask[:] = 1
        if random.random() < 0.5:  # single steps
            mask[random.random(mask.shape) < random.uniform(0.1, 0.7)] = 0
        else:  # stretches
            for _ in range(int(random.integers(1, 4))):
                long = int(random.integers(max(1, int(SHORTEST_GAP * length)), max(2, length // 3)))
                first = int(random.integers(0, length - long + 1))
                mask[random.random(variables) < 0.8 if variables > 1 else slice(None), first : first + long] = 0
    return mask
