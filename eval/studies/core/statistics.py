"""Numbers over seeds: mean and spread, differences of what belongs together, and whether two orders agree."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, sqrt
from statistics import fmean, stdev


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation, which is `None` for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """How far one thing is above another, over what both were measured on.

    Attributes:
        keys: what both have: seeds, pictures.
        mean: of the differences, key by key; `None` without a key.
        spread: their standard deviation, `None` for fewer than two.
        error: the standard error of the mean, likewise.
        reversed: keys at which it is not above.
    """

    keys: list
    mean: float | None
    spread: float | None
    error: float | None
    reversed: list

    @property
    def exceeds(self) -> bool | None:
        """Whether the difference exceeds its spread, and no key reverses it; `None` where there is no spread."""
        return None if self.spread is None else self.mean > self.spread and not self.reversed


def compare_pairs(
    lower: Mapping[Hashable, float] | Sequence[float], upper: Mapping[Hashable, float] | Sequence[float]
) -> Difference:
    """Subtract `lower` from `upper`, key by key (or position by position), over the keys that both have.

    A shift that a key gives to both, such as a seed or a hard picture, does not count.
    """
    first, second = (dict(enumerate(v)) if not isinstance(v, Mapping) else v for v in (lower, upper))
    keys = sorted(first.keys() & second.keys())
    differences = [second[key] - first[key] for key in keys]
    mean, spread = mean_and_spread(differences) if keys else (None, None)
    error = None if spread is None else spread / sqrt(len(keys))
    return Difference(keys, mean, spread, error, [key for key, by in zip(keys, differences) if by <= 0])


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Agreement of two orders (tau-b, Kendall 1945): 1 for the same, -1 for the reverse; `None` if one is all ties."""
    import torch  # here, as `--help` does not wait for it
    from torchmetrics.functional import kendall_rank_corrcoef

    orders = (torch.tensor([*values], dtype=torch.float64) for values in (first, second))
    tau = kendall_rank_corrcoef(*orders).item()
    return None if isnan(tau) else tau
