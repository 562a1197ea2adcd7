"""What a battle of backbones says: losses at equal images, operations and seconds, and how firm the order is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean

import numpy as np

from brickwork.eval.studies.core import compare_pairs, kendall_tau, mean_and_spread

# What a budget can be counted in.
AXES = ("images", "operations", "seconds")


@dataclass(frozen=True)
class Curve:
    """One network, one seed: held-out loss over training.

    Attributes:
        network: its name in the battle.
        seed: of weights and data order.
        images: seen in training at each point, above 0 and rising.
        losses: held-out paired loss of the averaged weights at each point.
        operations: floating-point operations of training on one image, forward and backward; `None` if not counted.
        seconds: of processor or GPU, of training on one image; `None` if not timed.
    """

    network: str
    seed: int
    images: Sequence[int]
    losses: Sequence[float]
    operations: float | None = None
    seconds: float | None = None

    def price(self, axis: str) -> float | None:
        """What training on one image costs, in units of one of `AXES`."""
        return {"images": 1.0, "operations": self.operations, "seconds": self.seconds}[axis]

    def loss_at(self, images: float) -> float:
        """The loss after `images`, between two points linear in the logarithm of images; never beyond the curve.

        Raises:
            ValueError: for images outside the curve.
        """
        first, last = self.images[0], self.images[-1]
        # A budget of seconds or operations comes back as images with the last digit lost.
        if not first * (1 - 1e-9) <= images <= last * (1 + 1e-9):
            raise ValueError(
                f"images: got {images:.6g}, but the curve of {self.network}, seed {self.seed}, goes from {first} to "
                f"{last}; a loss is only read between its points"
            )
        return float(np.interp(np.log(images), np.log(self.images), self.losses))


def standings(curves: Sequence[Curve]) -> dict[str, dict]:
    """The table of each axis, at the largest budget that every run reached.

    Returns:
        For each of `AXES` that at least one curve can be placed on: `budget`; `networks` from best to worst, each
        with `network`, `rank`, `images` that the budget is for it, `losses` by seed, `mean`, `spread` (standard
        deviation over seeds; `None` for one) and `ranks` by seed (of the seeds that every network has); `left_out`,
        what keeps networks out of the table, by name; `neighbours` (see `compare_neighbours`) and `kendall_tau` (see
        `agreement_of_seeds`).
    """
    tables = {}
    for axis in AXES:
        placed = [curve for curve in curves if curve.price(axis) is not None]
        if placed:
            tables[axis] = _table(axis, placed, sorted({c.network for c in curves} - {c.network for c in placed}))
    return tables


def _table(axis: str, curves: Sequence[Curve], unpriced: Sequence[str]) -> dict:
    budget = min(curve.images[-1] * curve.price(axis) for curve in curves)
    left_out = dict.fromkeys(unpriced, f"its {axis} were not measured")
    for curve in curves:
        if budget / curve.price(axis) < curve.images[0]:
            left_out[curve.network] = f"its curve begins beyond the budget, at {curve.images[0]:,} images"
    losses: dict[str, dict[int, float]] = {}
    seen = {}
    for curve in curves:
        if curve.network not in left_out:
            seen[curve.network] = budget / curve.price(axis)
            losses.setdefault(curve.network, {})[curve.seed] = curve.loss_at(seen[curve.network])
    order = sorted(losses, key=lambda network: fmean(losses[network].values()))
    ranks = _ranks(losses)
    rows = [
        {
            "network": network,
            "rank": place,
            "images": seen[network],
            "losses": losses[network],
            **dict(zip(("mean", "spread"), mean_and_spread(list(losses[network].values())))),
            "ranks": {seed: order_of_seed[network] for seed, order_of_seed in ranks.items()},
        }
        for place, network in enumerate(order, 1)
    ]
    return {
        "budget": budget,
        "networks": rows,
        "left_out": left_out,
        "neighbours": [compare_neighbours(better, worse, losses) for better, worse in pairwise(order)],
        "kendall_tau": agreement_of_seeds(losses),
    }


def _ranks(losses: Mapping[str, Mapping[int, float]]) -> dict[int, dict[str, int]]:
    """Each network's place by seed, for the seeds that every network has."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in losses.values()))) if losses else []
    ranks = {}
    for seed in seeds:
        order = sorted(losses, key=lambda network, seed=seed: losses[network][seed])
        ranks[seed] = {network: place for place, network in enumerate(order, 1)}
    return ranks


def compare_neighbours(better: str, worse: str, losses: Mapping[str, Mapping[int, float]]) -> dict:
    """How firmly one network stands before the next, over the seeds that both have.

    Returns:
        `better` and `worse`; `seeds` compared; `gap`, the mean difference of their losses seed by seed, and its
        `spread`; `reversed`, the seeds in which the worse one is not behind; `separated`: the gap exceeds its spread
        and no seed reverses it (`None` where there is no spread).
    """
    found = compare_pairs(losses[better], losses[worse])
    return {
        "better": better, "worse": worse, "seeds": found.keys, "gap": found.mean, "spread": found.spread,
        "reversed": found.reversed, "separated": found.exceeds,
    }  # fmt: skip


def agreement_of_seeds(losses: Mapping[str, Mapping[int, float]]) -> dict | None:
    """Kendall's tau between the orders of each two seeds, over the networks that both have.

    Returns:
        `pairs` (`[seed, seed, tau]`), `mean` and `least`; `None` where no two seeds share two networks.
    """
    seeds = sorted({seed for by_seed in losses.values() for seed in by_seed})
    pairs = []
    for one, other in combinations(seeds, 2):
        shared = [by_seed for by_seed in losses.values() if one in by_seed and other in by_seed]
        tau = kendall_tau([by_seed[one] for by_seed in shared], [by_seed[other] for by_seed in shared])
        if tau is not None:
            pairs.append([one, other, tau])
    if not pairs:
        return None
    taus = [tau for *_, tau in pairs]
    return {"pairs": pairs, "mean": fmean(taus), "least": min(taus)}
