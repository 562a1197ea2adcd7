"""The best schedule of subnets within a budget of operations, found by measuring rather than by rule.

Every subnet (of a LEGO stack, every set of bricks that the weights were trained for) is scored on one frozen list of
(image, noise level, noise), at the very noise levels at which the sampler evaluates the network. A schedule takes one
subnet a step; its loss is the weighted mean over the steps' evaluations, its cost the sum of their counted operations.
Choosing one a step under a bound on the sum is a multiple-choice knapsack, and with a few dozen steps it is solved
exactly, for all budgets at once.

**How levels are weighted.** In the loss of the raw network output F (EDM's weighted denoising loss, arXiv
2206.00364), an error e of F over a step from σ to σ' moves a sample of Gaussian data by σ_data·e·(θ - θ') by the time
it is done, where θ = arctan(σ / σ_data). So `weighting="sampler"` weighs each step by the angle that it covers: what
counts is how far a sample ends from where it should, and steps at the lowest noise, whose loss is highest and whose
pixels hardly change, weigh next to nothing. `"training"` weighs by the share of training noise that falls within each
step, the mean that other paired losses report. `"even"` weighs all steps alike: real data have many modes, and errors
at high noise decide which of them a seed leads to, so this charges for a picture other than the full schedule's of the
same seed. Of the three, `"sampler"` ranks schedules of lego-avatars-64 most nearly as the kernel distance of their
samples does (docs/schedules.md).
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from brickwork.errors import one_of
from brickwork.eval.held_out.subnet_losses import (
    Step,
    candidate_subnets,
    distinct_levels,
    runs_of,
    sampler_steps,
    subnet_losses,
)
from brickwork.eval.report.blocks import Panels, Table
from brickwork.eval.search.frontier import cost_loss_frontier
from brickwork.eval.search.plot import plot_search
from brickwork.eval.search.searched import Searched
from brickwork.files import write_file, write_json
from brickwork.gen.parameterization import EDMObjective, objective_of
from brickwork.gen.subnets import family_of
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.pipelines.schedules import Schedule, schedule_kind, steps_text, subnet_costs

WEIGHTINGS = ("sampler", "training", "even")
BREAKS = (0.25, 0.5, 0.75)
# Random schedules drawn for each that is wanted, before it is taken that there are no more.
DRAWS = 50
SEARCH_FORMAT = "brickwork-search/2"
# Subnets that are shown running throughout, at even distances of cost.
SHOWN = 6


@dataclass(frozen=True)
class ScheduleScore:
    """What a schedule costs and what it loses.

    Attributes:
        operations: counted operations of an image, without guidance (which doubles them).
        share: of the full schedule's operations.
        loss: weighted paired loss.
        change: loss over the full schedule's, minus 1.
        error: its standard error over the images; `None` for a single image.
        subnets: of each step.
    """

    operations: int
    share: float
    loss: float
    change: float
    error: float | None
    subnets: tuple[str, ...]

    def to_dict(self) -> dict:
        """As it is stored."""
        return {**vars(self), "subnets": list(self.subnets)}


def step_weights(steps: Sequence[Step], objective, weighting: str) -> np.ndarray:
    """The weight of each step `(len(steps),)`, summing to 1 (see the module's text).

    Args:
        steps: of the sampler.
        objective: what the network was trained for.
        weighting: one of `WEIGHTINGS`.
    """
    if one_of("weighting", weighting, WEIGHTINGS) == "sampler":
        weights = np.array([_displacement(objective, step.start, step.end) for step in steps])
    elif weighting == "training":
        quantiles = (torch.arange(2**14, dtype=torch.float64) + 0.5) / 2**14
        drawn = objective.sigma_of(objective.noise_levels(torch.special.ndtri(quantiles))).numpy()
        # The first step stands for all noise above it too, the last one for all below.
        ends = [math.inf, *(step.end for step in steps[:-1]), 0.0]
        weights = np.array([np.mean((low <= drawn) & (drawn < high)) for high, low in zip(ends, ends[1:])])
    else:
        weights = np.ones(len(steps))
    return weights / weights.sum()


def _displacement(objective, start: float, end: float) -> float:
    """How far an error of one in the network's output, over a step from noise level `start` to `end`, moves a sample.

    For EDM this is the angle that the step covers (see the module's text), up to a factor.
    """
    if isinstance(objective, EDMObjective):
        return math.atan(start / objective.sigma_data) - math.atan(end / objective.sigma_data)
    points = torch.linspace(end**0.5, start**0.5, 257, dtype=torch.float64) ** 2  # closer where it is steep
    return float(torch.trapezoid(objective.displacement(points), points))


class ScheduleSearch:
    """What a search measured and found; made by `search_brick_schedule`.

    Attributes:
        schedule: the best schedule within the budget, of the kind that suits the network, for
            `pipe.brick_schedule = …`, `pipe.subnet_schedule = …` or a pipeline's call.
        score: its cost and loss.
        budget: what it had to keep to.
        subnets: those that were scored, from the cheap to the costly. operations: of each, for one evaluation.
        levels: noise levels, falling. losses: subnet => `(levels, images)`.
        steps: of the sampler. weights: of the steps.
        frontier: the best loss for every cost, by numbers in `subnets`.
    """

    def __init__(
        self,
        model,
        scheduler,
        losses: Mapping[str, np.ndarray],
        operations: Mapping[str, int],
        weights: np.ndarray,
        budget: float,
        settings: Mapping | None = None,
        num_images: int | None = None,
    ):
        self.model, self.scheduler, self.budget, self.settings = model, scheduler, budget, dict(settings or {})
        self.losses, self.weights, self.steps = dict(losses), weights, sampler_steps(scheduler)
        self.subnets = sorted(losses, key=lambda name: (operations[name], name))
        self.operations = {name: operations[name] for name in self.subnets}
        self.levels = distinct_levels(self.steps)
        self.num_images = num_images or next(iter(self.losses.values())).shape[1]
        self._evaluations = np.array([len(step.levels) for step in self.steps])
        rows = [[int(np.argmin([abs(x - s) for x in self.levels])) for s in step.levels] for step in self.steps]
        # (steps, images): the share of each step in a schedule's loss, for every image.
        self._step_losses = {
            name: np.stack([w * values[r].mean(axis=0) for w, r in zip(weights, rows)])
            for name, values in self.losses.items()
        }
        costs = np.array([[count * self.operations[name] for name in self.subnets] for count in self._evaluations])
        means = np.stack([self._step_losses[name].mean(axis=1) for name in self.subnets], axis=1)
        self.frontier = cost_loss_frontier(costs, means)
        self.full_operations = int(self._evaluations.sum()) * max(self.operations.values())
        self._full = self._of_each_image([self.subnets[-1]] * len(self.steps))
        self.schedule = self.best(budget)
        self.score = self.score_of(self.schedule)

    def best(self, budget: float) -> Schedule:
        """The best schedule within another budget, from the same measurement."""
        check_budget(budget, self.operations)
        choices = self.frontier.choices[self.frontier.within(budget * self.full_operations * (1 + 1e-9))]
        return self._schedule([self.subnets[i] for i in choices])

    def _schedule(self, names: Sequence[str]) -> Schedule:
        """The schedule that runs a subnet in each step."""
        return schedule_kind(self.model).from_levels(self.model, {s.start: n for s, n in zip(self.steps, names)})

    def score_of(self, schedule: Schedule) -> ScheduleScore:
        """Cost and loss of any schedule of the network, from the same measurement.

        Raises:
            ValueError: for a schedule of another network, or one that runs a subnet that was not scored.
        """
        schedule.validate(self.model)
        names = schedule.subnet_steps(self.scheduler)
        missing = sorted(set(names) - set(self.subnets))
        if missing:
            raise ValueError(f"`schedule` runs the subnet {missing[0]}, which this search did not score.")
        return self._score(names)

    def _score(self, names: Sequence[str]) -> ScheduleScore:
        operations = int(sum(n * self.operations[name] for n, name in zip(self._evaluations, names)))
        values, full = self._of_each_image(names), self._full
        # Images that were met with several noises count once: their noises are no independent pictures. One comes up
        # every `num_images` values.
        count = min(self.num_images, len(values))
        differences = np.array([(values - full)[i :: self.num_images].mean() for i in range(count)])
        loss, base, error = values.mean(), full.mean(), None
        if len(differences) > 1:
            error = float(differences.std(ddof=1) / math.sqrt(len(differences)) / base)
        share = operations / self.full_operations
        return ScheduleScore(operations, share, float(loss), float(loss / base - 1), error, tuple(names))

    def _of_each_image(self, names: Sequence[str]) -> np.ndarray:
        return sum(self._step_losses[name][step] for step, name in enumerate(names))

    def compared(self) -> dict[str, Schedule]:
        """Schedules to stand beside the one found: full, those known without a search, and one subnet alone."""
        full, alone = self.subnets[-1], family_of(self.model).examples(self.subnets[:-1], SHOWN)
        schedules = {"full": self._schedule([full] * len(self.steps))}
        schedules |= schedule_kind(self.model).examples(self.model, BREAKS)
        return schedules | {f"only {name}": self._schedule([name] * len(self.steps)) for name in alone}

    def one_break(self) -> list[ScheduleScore]:
        """Schedules of one subnet above a noise level and another below it, at every step and for every two."""
        count = len(self.steps)
        pairs = [(a, b) for a in self.subnets for b in self.subnets if a != b]
        return [self._score([a] * n + [b] * (count - n)) for a, b in pairs for n in range(1, count)]

    def random_schedules(self, count: int, seed: int = 0) -> dict[str, Schedule]:
        """Schedules of two to four stretches of steps with subnets drawn for each: a test of what the loss says.

        No two run the same subnets, and none is the full schedule; there may be fewer than `count` such schedules.
        """
        random, schedules = np.random.default_rng(seed), {}
        seen = {(self.subnets[-1],) * len(self.steps)}
        for _ in range(DRAWS * count):
            cuts = random.choice(np.arange(1, len(self.steps)), min(len(self.steps) - 1, random.integers(1, 4)), False)
            drawn = random.integers(len(self.subnets), size=len(cuts) + 1)
            stretch = (np.arange(len(self.steps))[:, None] >= cuts).sum(axis=1)
            names = tuple(self.subnets[drawn[i]] for i in stretch)
            if names not in seen:
                seen.add(names)
                schedules[f"random {len(schedules)}"] = self._schedule(names)
            if len(schedules) == count:
                break
        return schedules

    def reweighted(self, weights: np.ndarray) -> "ScheduleSearch":
        """The same measurement with other weights of the steps."""
        return ScheduleSearch(
            self.model, self.scheduler, self.losses, self.operations, weights, self.budget, self.settings,
            self.num_images,
        )  # fmt: skip

    def scores(self, further: Mapping[str, Schedule] | None = None) -> dict[str, ScheduleScore]:
        """Score by name: of `compared`, of what was found, and of further schedules."""
        named = {**self.compared(), f"searched {self.budget:g}": self.schedule, **(further or {})}
        return {name: self.score_of(schedule) for name, schedule in named.items()}

    def table(self, further: Mapping[str, Schedule] | None = None) -> str:
        """What was chosen from, as text: every schedule's share, operations and loss, and the subnets it runs."""
        rows = []
        for name, s in self.scores(further).items():
            change = f"{s.change:+.1%}" + ("" if s.error is None else f" ± {s.error:.1%}")
            figures = f"{s.share:.1%}", f"{s.operations / 1e9:.4g}", f"{s.loss:.4f}", "" if name == "full" else change
            rows.append((name, *figures, steps_text(s.subnets)))
        columns = ["schedule", "share", "GFLOP", "loss", "against full", "subnets, from high noise to low"]
        return Table(columns, rows).text(left=len(columns))

    def to_dict(self, further: Mapping[str, Schedule] | None = None) -> dict:
        """Everything as plain JSON values; the frontier is thinned to 200 points."""
        shown = np.unique(np.linspace(0, len(self.frontier.costs) - 1, 200).round().astype(int))
        return {
            "format": SEARCH_FORMAT,
            "budget": self.budget,
            "schedule": self.schedule.to_dict(),
            "settings": {**self.settings, "images": self.num_images},
            "operations": self.operations,
            "levels": [
                {"sigma": sigma, **{name: float(self.losses[name][i].mean()) for name in self.subnets}}
                for i, sigma in enumerate(self.levels)
            ],
            "weights": self.weights.tolist(),
            "schedules": {name: score.to_dict() for name, score in self.scores(further).items()},
            "frontier": [
                [float(self.frontier.costs[i] / self.full_operations), float(self.frontier.losses[i])] for i in shown
            ],
        }

    def save(self, path: str | Path, further: Mapping[str, Schedule] | None = None) -> None:
        """Write `to_dict` as JSON, in one step."""
        write_json(path, self.to_dict(further))

    def plot(self, path: str | Path, further: Mapping[str, Schedule] | None = None) -> None:
        """Draw loss against operations as a PNG: every one-break schedule, the frontier, and the named schedules."""
        write_file(path, self.panels(further).png())

    def panels(self, further: Mapping[str, Schedule] | None = None, metric: Mapping | None = None) -> Panels:
        """The figure of `plot`, for a report; `metric` is a second panel (see `plot_search`)."""
        return plot_search(self, self.scores(further), metric)


def check_share(budget: float) -> None:
    """Raise a `ValueError` for a budget that is no share of the full schedule's operations."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise ValueError(
            f"`budget` is {budget!r}; give a share of the full schedule's operations, above 0 and up to 1."
        )


def check_budget(budget: float, operations: Mapping[str, int]) -> None:
    """Raise a `ValueError` for a budget that is no share, or that not even the cheapest subnet fits into."""
    check_share(budget)
    cheapest = min(operations, key=operations.get)
    least = operations[cheapest] / max(operations.values())
    if least > budget * (1 + 1e-9):
        raise ValueError(
            f"`budget` is {budget:g}, but the cheapest schedule, subnet {cheapest} in every step, takes "
            f"{least:.3f} of the full one's operations; give at least {math.ceil(least * 1000) / 1000:g}."
        )


def search_brick_schedule(
    model,
    data,
    budget: float = 0.6,
    *,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 18,
    scheduler=None,
    objective=None,
    weighting: str = "sampler",
    num_pairs: int = 128,
    max_subnets: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
    max_subsets: int | None = None,
    networks: Mapping[str, Any] | None = None,
) -> ScheduleSearch:
    """Measure a network's subnets and find the schedule of least loss within a budget of operations.

    Args:
        model: a pipeline, or a network of pixels with `subnets`, or several networks of one objective by name, of
            which the costliest is the full schedule's; with `networks` also a `StableDiffusionPipeline`. Of LEGO,
            weights trained with brick dropout (`trained_subsets="any"`) may leave out any bricks, others the last ones
            only.
        data: pictures that the network was not trained on, with labels or captions if it is conditional: whatever
            `open_image_set` opens, an `ImageSet`, or a `PairedSet` of what the network sees (its noise levels are not
            used), of the training size or of the size asked for.
        budget: share of the full schedule's operations, above 0 and up to 1, over every evaluation of the sampler.
            Guidance doubles both, so shares do not depend on it.
        height, width: of the images whose operations are counted, in pixels; by default the training size.
        num_inference_steps: steps of the sampler. The schedule is made of noise ranges, and so holds for others too.
        scheduler: by default the pipeline's, or `EDMHeunScheduler()`. It is not changed.
        objective: what the network was trained for, by default what the scheduler is for: EDM's, flow matching, or
            epsilon or v under its betas. What it says of the distribution of noise matters to `weighting="training"`
            alone.
        weighting: how noise levels are weighted, `"sampler"`, `"training"` or `"even"`; see the module's text.
        num_pairs: how many pictures and noises each level is scored with; fewer pictures are used again with other
            noise, of more an even selection is used. A `PairedSet` is used as it is.
        max_subnets: networks with more subnets are searched for those worth scoring (`candidate_subnets`).
        batch_size: images at once.
        seed: of the noise.
        progress: show a bar.
        max_subsets: the former name of `max_subnets`.
        networks: further networks by name, or pipelines that have them, to share the steps of the pipeline `model`,
            whose own is then `"full"` (see `stitch_trajectory`); its subnets are not searched.

    Raises:
        ValueError: for a budget outside (0, 1] or below the cheapest schedule, and for data of the wrong size,
            channels or classes, or without labels.
    """
    one_of("weighting", weighting, WEIGHTINGS)
    searched = Searched.of(model, networks)
    scheduler = copy.deepcopy(scheduler or getattr(model, "scheduler", None)) or EDMHeunScheduler()
    of_scheduler = objective_of(scheduler)  # which says what is wrong with schedulers of none
    scheduler.set_timesteps(num_inference_steps)
    objective = objective or of_scheduler
    network, size = searched.network, searched.size(height, width)
    costs = subnet_costs(network, *size)
    check_budget(budget, costs)
    pairs, num_images = searched.pairs(data, size, num_pairs, seed)
    levels = distinct_levels(sampler_steps(scheduler))
    weights = step_weights(sampler_steps(scheduler), objective, weighting)

    losses = _score_subnets(network, pairs, objective, levels, costs, max_subsets or max_subnets, batch_size, progress)
    settings = {
        "height": size[0] * searched.factor,
        "width": size[1] * searched.factor,
        "num_inference_steps": num_inference_steps,
        "scheduler": type(scheduler).__name__,
        "objective": {"class": type(objective).__name__, "sigma_data": getattr(objective, "sigma_data", None)},
        "weighting": weighting,
        "pairs": len(pairs.images),
        "seed": pairs.seed,
        "all_subnets": len(losses) == len(costs),
    }
    return ScheduleSearch(network, scheduler, losses, costs, weights, budget, settings, num_images)


def _score_subnets(
    network, pairs, objective, levels, costs: Mapping[str, int], limit: int, batch_size: int, progress: bool
) -> dict[str, np.ndarray]:
    """The losses of the subnets to choose from, in evaluation mode."""
    losses: dict[str, np.ndarray] = {}
    models = list(network.values()) if isinstance(network, Mapping) else [network]

    def measure(names: Sequence[str]) -> dict[str, np.ndarray]:
        batches = len(levels) * math.ceil(len(pairs.images) / batch_size) * len(runs_of(network, names))
        with tqdm(total=batches, unit="batch", desc="scoring subnets", disable=not progress, leave=False) as bar:
            losses.update(subnet_losses(network, pairs, objective, levels, names, batch_size, bar.update))
        return {name: losses[name].mean(axis=1) for name in names}

    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        missing = set(candidate_subnets(costs, limit, measure, family_of(network))) - set(losses)
        if missing:
            measure(sorted(missing))
    finally:
        for model, before in zip(models, training):
            model.train(before)
    return losses
