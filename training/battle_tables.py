"""What a battle of backbones says: losses at equal images, operations and CPU time, and how firm the order is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

AXES = {"images": "images", "operations": "counted operations", "cpu_seconds": "process CPU seconds"}


@dataclass(frozen=True)
class Curve:
    """One network, one seed: held-out loss over training.

    Attributes:
        network: its name in the battle.
        seed: of weights and data order.
        images: seen in training at each point, rising.
        losses: held-out paired loss of the averaged weights at each point.
        operations: floating-point operations of training on one image, forward and backward.
        cpu_seconds: processor time of training on one image.
    """

    network: str
    seed: int
    images: Sequence[int]
    losses: Sequence[float]
    operations: float
    cpu_seconds: float

    def spent(self, axis: str) -> np.ndarray:
        """What each point has cost."""
        unit = {"images": 1.0, "operations": self.operations, "cpu_seconds": self.cpu_seconds}[axis]
        return np.asarray(self.images, dtype=float) * unit

    def loss_at(self, axis: str, budget: float) -> float:
        """The loss when `budget` is spent, between two points linear in what is spent.

        Raises:
            ValueError: for a budget outside the curve.
        """
        spent = self.spent(axis)
        if not spent[0] <= budget <= spent[-1] * (1 + 1e-9):
            raise ValueError(
                f"`budget` is {budget:.4g} {AXES[axis]}, but the curve of {self.network} goes from {spent[0]:.4g} to "
                f"{spent[-1]:.4g}; train longer, or log earlier (`run.sample_images`)."
            )
        return float(np.interp(budget, spent, self.losses))


def standings(curves: Sequence[Curve]) -> dict[str, dict]:
    """The table of each axis, at the largest budget that every curve reaches.

    Returns:
        For each of `AXES`: `budget`; `networks`, from best to worst, each with `losses` by seed, `mean`, `spread` (the
        standard deviation over seeds, 0 for one seed); and what `order_stability` says.
    """
    seeds = sorted({curve.seed for curve in curves})
    tables = {}
    for axis in AXES:
        budget = min(curve.spent(axis)[-1] for curve in curves)
        losses: dict[str, dict[int, float]] = {}
        for curve in curves:
            losses.setdefault(curve.network, {})[curve.seed] = curve.loss_at(axis, budget)
        rows = {
            name: {
                "losses": values,
                "mean": float(np.mean(list(values.values()))),
                "spread": float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else 0.0,
            }
            for name, values in losses.items()
        }
        order = sorted(rows, key=lambda name: rows[name]["mean"])
        complete = [seed for seed in seeds if all(seed in values for values in losses.values())]
        tables[axis] = {
            "budget": float(budget),
            "networks": {name: rows[name] for name in order},
            **order_stability([{name: losses[name][seed] for name in losses} for seed in complete]),
        }
    return tables


def order_stability(losses_by_seed: Sequence[dict[str, float]]) -> dict:
    """How far the order of the networks depends on the seed.

    Returns:
        `kendall_tau`: mean over pairs of seeds, 1 for the same order, -1 for the reverse, `None` with one seed;
        `winners`: the best network of each seed.
    """
    pairs = list(combinations(losses_by_seed, 2))
    return {
        "kendall_tau": float(np.mean([_kendall_tau(*pair) for pair in pairs])) if pairs else None,
        "winners": [min(losses, key=losses.get) for losses in losses_by_seed],
    }


def _kendall_tau(first: dict[str, float], second: dict[str, float]) -> float:
    """Pairs of networks in the same order less those in the other, over all pairs."""
    signs = [np.sign(first[a] - first[b]) * np.sign(second[a] - second[b]) for a, b in combinations(sorted(first), 2)]
    return float(np.mean(signs)) if signs else 1.0
