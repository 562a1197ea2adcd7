"""Who leads at equal images, operations and seconds, read off curves of held-out loss, and how firm the order is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean
from typing import Any

import numpy as np

from brickwork.eval.report.blocks import Panels, Plot, Table
from brickwork.eval.report.numbers import column, in_units
from brickwork.eval.studies.core.statistics import compare_pairs, kendall_tau, mean_and_spread

AXES = ("images", "operations", "seconds")  # what a budget can be counted in
FIRST_SHARE = 0.2  # of the common budget, where curves begin to be drawn; before it all fall alike, and far
COLUMNS_EXPLAINED = (
    "By seed: the ranks at each seed. Lead: how far the loss of the next network is above, mean over seeds ± the "
    "standard deviation of this difference. Reversed: at how many seeds the next network is in front."
)


@dataclass(frozen=True)
class Curve:
    """One network, one seed: held-out loss over training.

    Attributes:
        network: its name in the study.
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
        For each of `AXES` that at least one curve has a price on: `budget`; `networks` from best to worst, each
        with `network`, `rank`, `images` that the budget is for it, `losses` by seed, `mean`, `spread` (standard
        deviation over seeds; `None` for one) and `ranks` by seed (of the seeds that every network has); `left_out`,
        what keeps networks out of the table, by name; `neighbours` (see `compare_neighbours`) and `kendall_tau` (see
        `agreement_of_seeds`).
    """
    tables = {}
    for axis in AXES:
        priced = [curve for curve in curves if curve.price(axis) is not None]
        if priced:
            tables[axis] = _table(axis, priced, sorted({c.network for c in curves} - {c.network for c in priced}))
    return tables


def _table(axis: str, curves: Sequence[Curve], unpriced: Sequence[str]) -> dict:
    budget = min(curve.images[-1] * curve.price(axis) for curve in curves)
    left_out = dict.fromkeys(unpriced, f"its {axis} were not measured")
    for curve in curves:
        if budget / curve.price(axis) < curve.images[0]:
            left_out[curve.network] = f"its curve begins beyond the budget, at {curve.images[0]:,} images"
    losses: dict[str, dict[int, float]] = {}
    seen = {}
    for curve in [curve for curve in curves if curve.network not in left_out]:
        seen[curve.network] = budget / curve.price(axis)
        losses.setdefault(curve.network, {})[curve.seed] = curve.loss_at(seen[curve.network])
    order, ranks = sorted(losses, key=lambda network: fmean(losses[network].values())), _ranks(losses)
    rows = [
        {
            "network": network,
            "rank": rank,
            "images": seen[network],
            "losses": losses[network],
            **dict(zip(("mean", "spread"), mean_and_spread(list(losses[network].values())))),
            "ranks": {seed: order_of_seed[network] for seed, order_of_seed in ranks.items()},
        }
        for rank, network in enumerate(order, 1)
    ]
    return {
        "budget": budget,
        "networks": rows,
        "left_out": left_out,
        "neighbours": [compare_neighbours(better, worse, losses) for better, worse in pairwise(order)],
        "kendall_tau": agreement_of_seeds(losses),
    }


def _ranks(losses: Mapping[str, Mapping[int, float]]) -> dict[int, dict[str, int]]:
    """Each network's rank by seed, for the seeds that every network has."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in losses.values()))) if losses else []
    orders = {seed: sorted(losses, key=lambda network, seed=seed: losses[network][seed]) for seed in seeds}
    return {seed: {network: rank for rank, network in enumerate(order, 1)} for seed, order in orders.items()}


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
    pairs = []
    for one, other in combinations(sorted({seed for by_seed in losses.values() for seed in by_seed}), 2):
        shared = [by_seed for by_seed in losses.values() if one in by_seed and other in by_seed]
        tau = kendall_tau([by_seed[one] for by_seed in shared], [by_seed[other] for by_seed in shared])
        if tau is not None:
            pairs.append([one, other, tau])
    taus = [tau for *_, tau in pairs]
    return {"pairs": pairs, "mean": fmean(taus), "least": min(taus)} if pairs else None


def amount(axis: str, budget: float) -> str:
    """A budget, in the units of its axis."""
    if axis == "operations":
        return in_units(budget, "FLOP")
    return f"{budget:,.{0 if axis == 'images' or budget >= 100 else 1}f}"


def standings_table(
    axis: str, table: dict, label: Callable[[str], str], further: Mapping[str, Mapping[str, Any]] | None = None
) -> Table:
    """The table of an axis.

    Args:
        axis: one of `AXES`.
        table: of the axis, see `standings`.
        label: what tables call a network.
        further: columns of value and spread by network.
    """
    rows, counts = table["networks"], {len(row["losses"]) for row in table["networks"]}
    columns = {"": [f"{row['rank']}" for row in rows], "network": [label(row["network"]) for row in rows]}
    if axis != "images":
        columns["images"] = [f"{row['images']:,.0f}" for row in rows]
    columns["held-out loss"] = column([(row["mean"], row["spread"]) for row in rows])
    if len(counts) > 1:
        columns["seeds"] = [f"{len(row['losses'])}" for row in rows]
    if len(rows[0]["ranks"]) > 1:
        columns["by seed"] = [", ".join(map(str, row["ranks"].values())) for row in rows]
    pairs = [pair if pair["seeds"] else None for pair in table["neighbours"]] + [None]
    columns["lead"] = column([(pair["gap"], pair["spread"]) if pair else None for pair in pairs])
    columns["reversed"] = [f"{len(pair['reversed'])} of {len(pair['seeds'])}" if pair else "–" for pair in pairs]
    for title, values in (further or {}).items():
        columns[title] = column([values.get(row["network"]) for row in rows])
    return Table(list(columns), list(zip(*columns.values())))


def firmness(table: dict, label: Callable[[str], str]) -> str:
    """How much of the order of a table (see `standings`) is more than chance, in words."""

    def pairs(separated: bool | None) -> str:
        found = [pair for pair in table["neighbours"] if pair["separated"] is separated]
        return "; ".join(f"{label(pair['better'])} and {label(pair['worse'])}" for pair in found)

    tau, close, firm, unknown = table["kendall_tau"], pairs(False), pairs(True), pairs(None)
    sentences = [
        tau
        and f"Kendall's tau between the orders of two seeds: {tau['mean']:.2f} on average, {tau['least']:.2f} at "
        f"least (pairs of seeds: {len(tau['pairs'])}; 1 is the same order, -1 the reverse).",
        close
        and "Not separated by the spread over seeds (the lead is within its standard deviation, or a seed turns "
        f"it round): {close}.",
        not close
        and firm
        and "Every lead that has a standard deviation over seeds exceeds it, and no seed turns one round.",
        unknown and f"Too few seeds in common to say anything of {unknown}.",
        *(f"{label(network)} is left out: {reason}." for network, reason in table["left_out"].items()),
    ]
    return " ".join(filter(None, sentences))


def curve_panels(
    curves: Sequence[Curve], tables: Mapping[str, dict], titles: Mapping[str, str], label: Callable[[str], str],
    colours: Mapping[str, str], name: str,
) -> Panels:  # fmt: skip
    """Losses over what training has cost, a panel for each table: mean over seeds, a band of one standard deviation.

    Args:
        curves: of all networks, in their order.
        tables: see `standings`.
        titles: of the axes.
        label: what plots call a network.
        colours: by label.
        name: of the picture.
    """
    caption = (
        "Held-out loss over what training has cost: mean over seeds, in a band of one standard deviation to either "
        f"side. Dotted: the budget of the table. The panels begin at {FIRST_SHARE:.0%} of it; both axes are "
        "logarithmic."
    )
    return Panels(
        [_panel(curves, axis, table["budget"], titles[axis], label, colours) for axis, table in tables.items()],
        caption=caption, name=name,
    )  # fmt: skip


def _panel(
    curves: Sequence[Curve], axis: str, budget: float, title: str, label: Callable, colours: Mapping[str, str]
) -> Plot:
    series, bands, heights = {}, {}, []
    for network in dict.fromkeys(curve.network for curve in curves):
        course = _course([curve for curve in curves if curve.network == network], axis)
        if not course:
            continue
        spent, means, spreads = zip(*course)
        lows, highs = ([mean + sign * s for mean, s in zip(means, spreads)] for sign in (-1, 1))
        series[label(network)], bands[label(network)] = (spent, means), (lows, highs)
        shown = [i for i, cost in enumerate(spent) if cost >= FIRST_SHARE * budget] or [-1]
        heights += [line[i] for i in shown for line in (lows, highs)]
    return Plot(
        series, title, "paired held-out loss", log_x=True, log_y=True, bands=bands, marks={"": budget},
        colours=colours, x_limits=(FIRST_SHARE * budget, None), y_limits=(0.99 * min(heights), 1.01 * max(heights)),
    )  # fmt: skip


def _course(curves: Sequence[Curve], axis: str) -> list[tuple[float, float, float]]:
    """What was spent, mean loss and spread at every point that lies within all of a network's curves."""
    if not curves or curves[0].price(axis) is None:
        return []
    first, last = max(c.images[0] for c in curves), min(c.images[-1] for c in curves)
    course = []
    for images in sorted({n for curve in curves for n in curve.images if first <= n <= last}):
        mean, spread = mean_and_spread([curve.loss_at(images) for curve in curves])
        course.append((images * curves[0].price(axis), mean, spread or 0.0))
    return course
