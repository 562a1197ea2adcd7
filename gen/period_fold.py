"""Series folded into pictures, a row for each cycle of a period, a column for each phase (TimesNet, 2210.02186)."""

from collections.abc import Sequence
from typing import Any

import torch

from brickwork.errors import whole_number

SHORTEST = 2  # of periods


class PeriodFold:
    """Folds series by several periods, and merges what became of the foldings.

    Args:
        periods: in steps of the series, each at least 2.
        weights: of the foldings in the merge, positive; equal where `None`.

    Attributes:
        periods: as given.
        weights: their shares, which sum to 1.
    """

    def __init__(self, periods: Sequence[int], weights: Sequence[float] | None = None):
        self.periods = list(periods) if isinstance(periods, Sequence) else [periods]
        for period in self.periods:
            if isinstance(period, bool) or not isinstance(period, int) or period < SHORTEST:
                raise ValueError(f"`periods` has {period!r}; give whole numbers from {SHORTEST} up, in steps.")
        if not self.periods or len(set(self.periods)) < len(self.periods):
            raise ValueError(f"`periods` is {self.periods}; give one or more, each once.")
        weights = [1.0] * len(self.periods) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(self.periods) or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(
                f"`weights` is {weights} for {len(self.periods)} periods; give a positive number for each."
            )
        self.weights = [weight / sum(weights) for weight in weights]

    @classmethod
    def fit(cls, series: Any, top_k: int = 2, longest: int | None = None) -> "PeriodFold":
        """The strongest periods of a training set, weighted by their amplitudes.

        Mean and straight line are taken from each series first. A period is the length over the frequency of a peak
        of the mean amplitude, rounded; one longer than half a series cannot be told from its trend, and is left out.

        Args:
            series: `(L,)`, `(C, L)` or `(B, C, L)`, numbers without gaps.
            top_k: how many periods at most; fewer where the spectrum has fewer peaks of different periods.
            longest: that a period may be, in steps; `None` for half of the series.

        Raises:
            ValueError: for gaps, for a series too short for two cycles of the shortest period, and for one without
                any period.
        """
        whole_number("top_k", top_k)
        values = torch.as_tensor(series, dtype=torch.float64)
        if values.ndim not in (1, 2, 3) or values.shape[-1] < 2 * SHORTEST + 1 or not values.numel():
            raise ValueError(
                f"`series` has shape {tuple(values.shape)}; give (L,), (C, L) or (B, C, L) with at least "
                f"{2 * SHORTEST + 1} steps: two cycles of a period."
            )
        if not values.isfinite().all():
            raise ValueError("`series` has gaps or infinite numbers; fill them, or fit on a part without.")
        amplitudes = torch.fft.rfft(_without_line(values), dim=-1).abs().reshape(-1, values.shape[-1] // 2 + 1).mean(0)
        found = _peaks(amplitudes, values.shape[-1], top_k, longest or values.shape[-1] // 2)
        if not found:
            raise ValueError(
                f"`series` has no period of {SHORTEST} to {longest or values.shape[-1] // 2} steps; name the periods: "
                "PeriodFold([24])."
            )
        return cls(list(found), list(found.values()))

    def check_length(self, name: str, length: int) -> None:
        """Raise a `ValueError` for a series `name` that is shorter than two cycles of the longest period."""
        longest = max(self.periods)
        if length < 2 * longest:
            raise ValueError(
                f"`{name}` has {length} steps, fewer than two cycles of the period {longest}; give at least "
                f"{2 * longest}, or shorter periods."
            )

    def fold(self, series: torch.Tensor) -> list[torch.Tensor]:
        """`(B, C, L)` => for each period `(B, C, cycles, period)`, the last cycle filled up with zeros.

        Raises:
            ValueError: for another shape, and for a series shorter than two cycles.
        """
        if series.ndim != 3:
            raise ValueError(f"`series` has shape {tuple(series.shape)}; give (batch, variables, length).")
        self.check_length("series", series.shape[-1])
        return [fold_once(series, period) for period in self.periods]

    def unfold(self, folded: Sequence[torch.Tensor], length: int) -> torch.Tensor:
        """For each period `(B, C, cycles, period)` => their weighted mean `(B, C, length)`.

        Where all agree, that is their value bit for bit: `unfold(fold(series), length)` is the series.
        """
        if len(folded) != len(self.periods):
            raise ValueError(f"`folded` has {len(folded)} entries for {len(self.periods)} periods; give one each.")
        first, *others = [unfold_once(picture, length) for picture in folded]
        merged = first
        for series, weight in zip(others, self.weights[1:]):
            merged = merged + weight * (series - first)
        return merged

    def __repr__(self) -> str:
        return f"PeriodFold({self.periods}, weights={[round(weight, 4) for weight in self.weights]})"


def fold_once(series: torch.Tensor, period: int) -> torch.Tensor:
    """`(B, C, L)` => `(B, C, cycles, period)`, filled up with zeros."""
    missing = -series.shape[-1] % period
    return torch.nn.functional.pad(series, (0, missing)).unflatten(-1, (-1, period))


def unfold_once(folded: torch.Tensor, length: int) -> torch.Tensor:
    """`(B, C, cycles, period)` => `(B, C, length)`."""
    series = folded.flatten(-2)
    if not 0 < length <= series.shape[-1]:
        raise ValueError(f"`length` is {length}; this folding holds 1 to {series.shape[-1]} steps.")
    return series[..., :length]


def _without_line(values: torch.Tensor) -> torch.Tensor:
    """The series `(…, L)` without mean and straight line (least squares)."""
    time = torch.arange(values.shape[-1], dtype=values.dtype)
    time = time - time.mean()
    centred = values - values.mean(-1, keepdim=True)
    slope = (centred * time).sum(-1, keepdim=True) / time.square().sum()
    return centred - slope * time


def _peaks(amplitudes: torch.Tensor, length: int, top_k: int, longest: int) -> dict[int, float]:
    """The amplitudes of the highest peaks by their periods; the ends of the spectrum are none."""
    found: dict[int, float] = {}
    values = amplitudes.tolist()
    floor = 1e-9 * max(values[1:], default=0.0)
    for frequency in sorted(range(2, len(values) - 1), key=lambda f: -values[f]):
        around = values[frequency - 1], values[frequency + 1]
        period = round(length / frequency)
        if not SHORTEST <= period <= longest:
            continue
        if values[frequency] < max(around) or values[frequency] <= floor or period in found:
            continue
        found[period] = values[frequency]
        if len(found) == top_k:
            break
    return found
