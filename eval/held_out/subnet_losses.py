"""The paired held-out loss of a network's subnets at the noise levels of a sampler.

Where the run of one subnet hands out the estimates of others too (see `SubnetFamily.within`), these are read off it:
all 2^B - 1 sets of a LEGO stack's bricks cost the runs of those that end in its last brick.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from brickwork.eval.held_out.paired_loss import PairedSet, estimates
from brickwork.gen.subnets import SubnetFamily, evenly, family_of
from brickwork.pipelines.schedules import step_sigmas


@dataclass(frozen=True)
class Step:
    """One step of a sampler.

    Attributes:
        start, end: noise level at its beginning, by which a schedule decides, and where it lands.
        levels: noise level of each evaluation of the network, two for Heun's steps but the last.
    """

    start: float
    end: float
    levels: tuple[float, ...]


def sampler_steps(scheduler) -> list[Step]:
    """The steps of a scheduler, once `set_timesteps` has been called; the last one lands at no noise.

    Noise levels are those by which schedules decide (see `brickwork.pipelines.schedules.step_sigmas`).
    """
    order, sigmas = scheduler.order, getattr(scheduler, "sigmas", None)
    sigmas = [*step_sigmas(scheduler), 0.0] if sigmas is None else [float(sigma) for sigma in sigmas]
    last = len(scheduler.timesteps)
    return [Step(sigmas[i], sigmas[i + 1], tuple(sigmas[i : min(i + order, last)])) for i in range(0, last, order)]


def distinct_levels(steps: Sequence[Step]) -> list[float]:
    """Every noise level at which the network is evaluated, falling; equal but for rounding counts as one."""
    levels: list[float] = []
    for sigma in sorted((sigma for step in steps for sigma in step.levels), reverse=True):
        if not levels or sigma < levels[-1] * (1 - 1e-6):
            levels.append(sigma)
    return levels


@torch.no_grad()
def subnet_losses(
    model,
    pairs: PairedSet,
    objective,
    levels: Sequence[float] | None,
    subnets: Iterable[str],
    batch_size: int = 32,
    on_batch: Callable[[], None] | None = None,
) -> dict[str, np.ndarray]:
    """Score subnets on one frozen list.

    Args:
        model: a network, or several by name, in evaluation mode.
        pairs: images, labels and the seed of the noise.
        objective: what the network was trained for (see `brickwork.gen.parameterization`).
        levels: noise levels, in the unit of schedules (`objective.sigma_of`); image i at level j meets one noise.
            `None` for those of the list.
        subnets: their names.
        batch_size: images at once.
        on_batch: called after each batch of each run, for a progress bar.

    Returns:
        For each subnet, and those that its run hands out too, the losses `(len(levels), images)` in float64.
    """
    runs = runs_of(model, subnets)
    if levels is None:
        levels = objective.sigma_of(objective.noise_levels(torch.tensor(pairs.levels))).tolist()
    losses = {name: np.zeros((len(levels), len(pairs.images))) for run in runs for name in run}
    first = next(iter(model.values())) if isinstance(model, Mapping) else model
    device = next(first.parameters()).device
    for level, sigma in enumerate(levels):
        for start in range(0, len(pairs.images), batch_size):
            part = slice(start, start + batch_size)
            images = pairs.images[part].to(device)
            labels = None if pairs.labels is None else pairs.labels[part].to(device)
            noise = pairs.noise(level, start, start + len(images)).to(device)
            sigmas = objective.level_of(torch.full((len(images),), sigma, device=device))
            sample, timestep = objective.network_inputs(images, noise, sigmas)
            for run in runs:
                if isinstance(model, Mapping):
                    found = estimates(model[run[-1]], sample, timestep, labels)[-1:]
                else:
                    found = estimates(model, sample, timestep, labels, run[-1])
                for name, estimate in zip(run, found):
                    scored = objective.losses(estimate, images, noise, sigmas)
                    losses[name][level, part] = scored.double().cpu().numpy()
                if on_batch is not None:
                    on_batch()
    return losses


def runs_of(model, subnets: Iterable[str]) -> list[tuple[str, ...]]:
    """The runs that yield the estimates of all subnets: what each hands out in order, the last of which is run."""
    runs = {family_of(model).within(name) for name in subnets}
    return sorted(runs - {run[:length] for run in runs for length in range(len(run))})


def candidate_subnets(
    costs: Mapping[str, int], limit: int, score: Callable[[list[str]], dict[str, np.ndarray]], family: SubnetFamily
) -> list[str]:
    """The subnets worth choosing from: all there are, or where there are many a search among them.

    Up to `limit` all are taken. Beyond, the search starts from a few, and goes on from those that are best for their
    cost at some noise level (on the lower convex hull of loss over cost, which is where a budget shared between levels
    chooses) to their neighbours, until nothing new is on a hull or `limit` of them have been scored.

    Args:
        costs: operations of each subnet, the network itself among them.
        limit: how many may be scored.
        score: names => the mean loss of each at every noise level.
        family: says where to start and what the neighbours are.
    """
    if len(costs) <= limit:
        return list(costs)
    by_cost = sorted(costs, key=lambda name: (-costs[name], name))  # the network itself is scored first
    fresh, near = family.starts(by_cost, max(2, limit // 2)), family.neighbours(by_cost)
    scores: dict[str, np.ndarray] = {}
    grown: set[str] = set()
    while fresh:
        scores |= score(evenly(fresh, limit - len(scores)))
        if len(scores) >= limit:
            break
        levels = range(len(next(iter(scores.values()))))
        best = set().union(*(hull_of(scores, costs, level) for level in levels)) - grown
        grown |= best
        wanted = set().union(*(near[name] for name in best)) - set(scores)
        fresh = [name for name in by_cost if name in wanted]
    return sorted(scores)


def hull_of(scores: Mapping[str, np.ndarray], costs: Mapping[str, int], level: int) -> set[str]:
    """The subnets on the lower convex hull of loss over cost at a noise level, from the cheapest to the best."""
    hull: list[tuple[float, float, str]] = []
    for point in sorted((costs[name], float(values[level]), name) for name, values in scores.items()):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _not_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return {name for _, _, name in hull}


def _not_below(a: tuple, b: tuple, c: tuple) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
