"""The paired held-out loss of sets of bricks at the noise levels of a sampler.

A set that begins another one is read off the same run: the network hands out the estimate of every brick that ran, so
that all 2^B - 1 sets of a stack cost the runs of those that end in its last brick.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from brickwork.eval.held_out.paired_loss import PairedSet, estimates

Bricks = tuple[int, ...]


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
    """The steps of a scheduler of the EDM family, once `set_timesteps` has been called."""
    order, sigmas = scheduler.order, [float(sigma) for sigma in scheduler.sigmas]
    firsts = range(0, len(scheduler.timesteps), order)
    last = len(scheduler.timesteps)
    return [Step(sigmas[i], sigmas[i + 1], tuple(sigmas[i : min(i + order, last)])) for i in firsts]


def distinct_levels(steps: Sequence[Step]) -> list[float]:
    """Every noise level at which the network is evaluated, falling; equal but for rounding counts as one."""
    levels: list[float] = []
    for sigma in sorted((sigma for step in steps for sigma in step.levels), reverse=True):
        if not levels or sigma < levels[-1] * (1 - 1e-6):
            levels.append(sigma)
    return levels


@torch.no_grad()
def subset_losses(
    model,
    pairs: PairedSet,
    objective,
    levels: Sequence[float],
    subsets: Iterable[Bricks],
    batch_size: int = 32,
    on_batch: Callable[[], None] | None = None,
) -> dict[Bricks, np.ndarray]:
    """Score sets of bricks on one frozen list.

    Args:
        model: a `LegoTransformer2DModel`, in evaluation mode.
        pairs: images, labels and the seed of the noise; its own levels are not used.
        objective: what the network was trained for (see `brickwork.gen.parameterization`).
        levels: noise levels, in the objective's unit (σ for EDM); image i at level j meets one noise.
        subsets: sets of bricks.
        batch_size: images at once.
        on_batch: called after each batch of each run, for a progress bar.

    Returns:
        For each set, and for those that begin it, the losses `(len(levels), images)` in float64.
    """
    runs = maximal_runs(subsets)
    prefixes = {run[: length + 1] for run in runs for length in range(len(run))}
    losses = {subset: np.zeros((len(levels), len(pairs.images))) for subset in prefixes}
    parameter = next(model.parameters())
    for level, sigma in enumerate(levels):
        for start in range(0, len(pairs.images), batch_size):
            part = slice(start, start + batch_size)
            images = pairs.images[part].to(parameter.device)
            labels = None if pairs.labels is None else pairs.labels[part].to(parameter.device)
            noise = pairs.noise(level, start, start + len(images)).to(parameter.device)
            sigmas = torch.full((len(images),), sigma, device=parameter.device)
            sample, timestep = objective.network_inputs(images, noise, sigmas)
            for run in runs:
                for length, estimate in enumerate(estimates(model, sample, timestep, labels, run)):
                    scored = objective.losses(estimate, images, noise, sigmas)
                    losses[run[: length + 1]][level, part] = scored.double().cpu().numpy()
                if on_batch is not None:
                    on_batch()
    return losses


def maximal_runs(subsets: Iterable[Bricks]) -> list[Bricks]:
    """Those sets that begin no other one: running them yields the estimates of all."""
    subsets = set(subsets)
    begun = {subset[:length] for subset in subsets for length in range(len(subset))}
    return sorted(subsets - begun)


def candidate_subsets(
    trained: Sequence[Bricks],
    limit: int,
    score: Callable[[list[Bricks]], dict[Bricks, np.ndarray]],
    cost: Callable[[Bricks], float],
) -> list[Bricks]:
    """The sets of bricks worth choosing from: all that were trained, or for tall stacks a search among them.

    Up to `limit` sets all are taken. Beyond, the search starts from the full stack, the early exits and the single
    bricks, and leaves one brick more out of those sets that are best for their cost at some noise level (on the lower
    convex hull of loss over cost, which is where a budget shared between levels chooses), until nothing new is on a
    hull or `limit` sets have been scored.

    Args:
        trained: every set that the weights were trained for, the full stack among them.
        limit: how many sets may be scored.
        score: sets => the mean loss of each at every noise level.
        cost: operations of a set.
    """
    if len(trained) <= limit:
        return list(trained)
    scores: dict[Bricks, np.ndarray] = {}
    grown: set[Bricks] = set()
    fresh = sorted((s for s in trained if len(s) in (1, s[-1] + 1)), key=lambda s: (-len(s), s))
    while fresh:
        scores |= score(fresh[: limit - len(scores)])
        if len(scores) >= limit:
            break
        best = set().union(*(hull_of(scores, cost, level) for level in range(len(scores[fresh[0]])))) - grown
        grown |= best
        smaller = {s[:i] + s[i + 1 :] for s in best for i in range(len(s)) if len(s) > 1}
        fresh = sorted((smaller & set(trained)) - set(scores), key=lambda s: (-len(s), s))
    return sorted(scores)


def hull_of(scores: dict[Bricks, np.ndarray], cost: Callable[[Bricks], float], level: int) -> set[Bricks]:
    """The sets on the lower convex hull of loss over cost at a noise level, from the cheapest to the best."""
    hull: list[tuple[float, float, Bricks]] = []
    for point in sorted((cost(subset), float(values[level]), subset) for subset, values in scores.items()):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _not_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return {subset for _, _, subset in hull}


def _not_below(a: tuple, b: tuple, c: tuple) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
