"""The best brick schedule within a budget of operations, found by measuring rather than by rule.

Every set of bricks that the weights were trained for is scored on one frozen list of (image, noise level, noise), at
the very noise levels at which the sampler evaluates the network. A schedule takes one set a step; its loss is the
weighted mean over the steps' evaluations, its cost the sum of their counted operations. Choosing one set a step under
a bound on the sum is a multiple-choice knapsack, and with a few dozen steps it is solved exactly, for all budgets at
once.

**How levels are weighted.** In the loss of the raw network output F (EDM's weighted denoising loss, arXiv
2206.00364), an error e of F over a step from σ to σ' moves a sample of Gaussian data by σ_data·e·(θ - θ') by the time
it is done, where θ = arctan(σ / σ_data). So `weighting="sampler"` weighs each step by the angle that it covers: what
counts is how far a sample ends from where it should, and steps at the lowest noise, whose loss is highest and whose
pixels hardly change, weigh next to nothing. `"training"` weighs by the share of training noise that falls within each
step, the mean that other paired losses report. `"even"` weighs all steps alike: real data have many modes, and errors
at high noise decide which of them a seed leads to, so this charges for a picture other than the full schedule's of the
same seed. Of the three, `"sampler"` ranks schedules of lego-emoji-64 most nearly as the kernel distance of their
samples does (docs/schedules.md).
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from brickwork.errors import one_of
from brickwork.eval.held_out.paired_loss import PairedSet
from brickwork.eval.held_out.pictures import held_out_pairs
from brickwork.eval.held_out.subset_losses import (
    Bricks,
    Step,
    candidate_subsets,
    distinct_levels,
    maximal_runs,
    sampler_steps,
    subset_losses,
)
from brickwork.eval.report.blocks import Table
from brickwork.eval.search.plot import plot_search
from brickwork.files import write_file, write_json
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.parameterization import EDMObjective
from brickwork.gen.subnets import subnet_bricks, subnet_name
from brickwork.pipelines.schedules import BrickSchedule, stack_layout

WEIGHTINGS = ("sampler", "training", "even")
# Combinations kept while steps are added: none is dropped below this number, and the result is then exact.
MAX_STATES = 100_000
BREAKS = (0.25, 0.5, 0.75)
# Random schedules drawn for each that is wanted, before it is taken that there are no more.
DRAWS = 50
SEARCH_FORMAT = "brickwork-search/1"


@dataclass(frozen=True)
class ScheduleScore:
    """What a schedule costs and what it loses.

    Attributes:
        operations: counted operations of an image, without guidance (which doubles them).
        share: of the full schedule's operations.
        loss: weighted paired loss.
        change: loss over the full schedule's, minus 1. error: its standard error over the images.
        bricks: the bricks of each step.
    """

    operations: int
    share: float
    loss: float
    change: float
    error: float
    bricks: tuple[Bricks, ...]

    def to_dict(self) -> dict:
        """As it is stored."""
        return {**vars(self), "bricks": [subnet_name(bricks) for bricks in self.bricks]}


def step_weights(steps: Sequence[Step], objective, weighting: str) -> np.ndarray:
    """The weight of each step `(len(steps),)`, summing to 1 (see the module's text).

    Args:
        steps: of the sampler.
        objective: what the network was trained for.
        weighting: one of `WEIGHTINGS`.
    """
    if weighting == "sampler":
        scale = objective.sigma_data
        weights = np.array([math.atan(step.start / scale) - math.atan(step.end / scale) for step in steps])
    elif weighting == "training":
        quantiles = (torch.arange(2**14, dtype=torch.float64) + 0.5) / 2**14
        drawn = objective.noise_levels(torch.special.ndtri(quantiles)).numpy()
        # The first step stands for all noise above it too, the last one for all below.
        ends = [math.inf, *(step.end for step in steps[:-1]), 0.0]
        weights = np.array([np.mean((low <= drawn) & (drawn < high)) for high, low in zip(ends, ends[1:])])
    elif weighting == "even":
        weights = np.ones(len(steps))
    else:
        one_of("weighting", weighting, WEIGHTINGS)
    return weights / weights.sum()


@dataclass(frozen=True)
class Frontier:
    """The best loss for every cost, and the choices that reach it.

    Attributes:
        costs: rising `(n,)`. losses: falling `(n,)`.
        choices: `(n, steps)`, numbers of the choices.
    """

    costs: np.ndarray
    losses: np.ndarray
    choices: np.ndarray

    def within(self, cost: float) -> int:
        """The position of the best that costs no more."""
        return int(np.searchsorted(self.costs, cost, side="right")) - 1


def cost_loss_frontier(costs: np.ndarray, losses: np.ndarray, max_states: int = MAX_STATES) -> Frontier:
    """Solve the multiple-choice knapsack for all budgets: one choice a step, sums of costs against sums of losses.

    Steps are added one by one and only combinations are kept that nothing beats in both sums (Nemhauser & Ullmann,
    1969), which loses none. Where more than `max_states` of them remain, the range of costs is cut into as many cells
    and the lowest loss of each is kept: costs stay true, and the loss for a budget is at least as good as the exact
    one for a budget smaller by `steps / max_states` of the range.

    Args:
        costs: `(steps, choices)`, whole numbers.
        losses: `(steps, choices)`.
        max_states: how many combinations are kept.
    """
    cost, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail = []
    for step_costs, step_losses in zip(costs, losses):
        all_costs = (cost[:, None] + step_costs[None]).ravel()
        all_losses = (loss[:, None] + step_losses[None]).ravel()
        order = np.lexsort((all_losses, all_costs))
        best = np.minimum.accumulate(all_losses[order])
        keep = order[np.concatenate([[True], best[1:] < best[:-1]])]
        if len(keep) > max_states:
            cells = (all_costs[keep] - all_costs[keep[0]]) * max_states // (np.ptp(all_costs[keep]) + 1)
            keep = keep[np.concatenate([cells[1:] != cells[:-1], [True]])]
        cost, loss = all_costs[keep], all_losses[keep]
        trail.append(np.divmod(keep, len(step_costs)))
    choices, place = np.empty((len(cost), len(trail)), dtype=np.int64), np.arange(len(cost))
    for step in reversed(range(len(trail))):
        before, chosen = trail[step]
        choices[:, step], place = chosen[place], before[place]
    return Frontier(cost, loss, choices)


class ScheduleSearch:
    """What a search measured and found; made by `search_brick_schedule`.

    Attributes:
        schedule: the best `BrickSchedule` within the budget, for `pipe.brick_schedule = …` or a pipeline's call.
        score: its cost and loss.
        budget: what it had to keep to.
        subsets: the sets of bricks that were scored. operations: of each, for one evaluation.
        levels: noise levels, falling. losses: set => `(levels, images)`.
        steps: of the sampler. weights: of the steps.
        frontier: the best loss for every cost, by numbers in `subsets`.
    """

    def __init__(
        self,
        model: LegoTransformer2DModel,
        scheduler,
        losses: Mapping[Bricks, np.ndarray],
        operations: Mapping[Bricks, int],
        weights: np.ndarray,
        budget: float,
        settings: Mapping | None = None,
        num_images: int | None = None,
    ):
        self.model, self.scheduler, self.budget, self.settings = model, scheduler, budget, dict(settings or {})
        self.losses, self.weights, self.steps = dict(losses), weights, sampler_steps(scheduler)
        self.subsets = sorted(losses, key=lambda subset: (operations[subset], subset))
        self.operations = {subset: operations[subset] for subset in self.subsets}
        self.levels = distinct_levels(self.steps)
        self.num_images = num_images or next(iter(self.losses.values())).shape[1]
        self._evaluations = np.array([len(step.levels) for step in self.steps])
        rows = [[int(np.argmin([abs(x - s) for x in self.levels])) for s in step.levels] for step in self.steps]
        # (steps, images): the share of each step in a schedule's loss, for every image.
        self._step_losses = {
            subset: np.stack([w * values[r].mean(axis=0) for w, r in zip(weights, rows)])
            for subset, values in self.losses.items()
        }
        costs = np.array([[count * self.operations[s] for s in self.subsets] for count in self._evaluations])
        means = np.stack([self._step_losses[s].mean(axis=1) for s in self.subsets], axis=1)
        self.frontier = cost_loss_frontier(costs, means)
        self.full_operations = int(self._evaluations.sum()) * max(self.operations.values())
        self._full = self._of_each_image([self.subsets[-1]] * len(self.steps))
        self.schedule = self.best(budget)
        self.score = self.score_of(self.schedule)

    def best(self, budget: float) -> BrickSchedule:
        """The best schedule within another budget, from the same measurement."""
        check_budget(budget, self.operations)
        place = self.frontier.within(budget * self.full_operations * (1 + 1e-9))
        chosen = {step.start: self.subsets[i] for step, i in zip(self.steps, self.frontier.choices[place])}
        return BrickSchedule.from_levels(self.model, chosen)

    def score_of(self, schedule: BrickSchedule) -> ScheduleScore:
        """Cost and loss of any schedule of the stack, from the same measurement.

        Raises:
            ValueError: for a schedule of another stack, or one that runs a set of bricks that was not scored.
        """
        schedule.validate(self.model)
        bricks = schedule.resolve(self.scheduler)
        missing = sorted(set(bricks) - set(self.subsets))
        if missing:
            raise ValueError(f"`schedule` runs the bricks {missing[0]}, which this search did not score.")
        return self._score(bricks)

    def _score(self, bricks: Sequence[Bricks]) -> ScheduleScore:
        operations = int(sum(n * self.operations[s] for n, s in zip(self._evaluations, bricks)))
        values, full = self._of_each_image(bricks), self._full
        # Images that were met with several noises count once: their noises are no independent pictures.
        differences = _by_image(values - full, self.num_images)
        error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        loss, base = values.mean(), full.mean()
        share = operations / self.full_operations
        return ScheduleScore(
            operations, share, float(loss), float(loss / base - 1), float(error / base), tuple(bricks)
        )

    def _of_each_image(self, bricks: Sequence[Bricks]) -> np.ndarray:
        return sum(self._step_losses[subset][step] for step, subset in enumerate(bricks))

    def compared(self) -> dict[str, BrickSchedule]:
        """Schedules to stand beside the one found: all bricks, the paper's early exits, one set throughout."""
        schedules = {"full": BrickSchedule.full(self.model)}
        if len(self.model.config.window_sizes) > 1 and stack_layout(self.model.config.window_sizes):
            schedules |= {f"fast {share:g}": BrickSchedule.fast(self.model, share) for share in BREAKS}
        for subset in self.subsets[:-1]:
            if len(subset) == 1 or subset == tuple(range(len(subset))):
                schedules[f"only {subnet_name(subset)}"] = BrickSchedule.from_levels(self.model, {1.0: subset})
        return schedules

    def one_break(self) -> list[ScheduleScore]:
        """Schedules of one set above a noise level and another below it, at every step and for every two sets."""
        count = len(self.steps)
        pairs = [(a, b) for a in self.subsets for b in self.subsets if a != b]
        return [self._score([a] * n + [b] * (count - n)) for a, b in pairs for n in range(1, count)]

    def random_schedules(self, count: int, seed: int = 0) -> dict[str, BrickSchedule]:
        """Schedules of two to four stretches of steps with bricks drawn for each: a test of what the loss says.

        No two run the same bricks, and none is the full schedule; there may be fewer than `count` such schedules.
        """
        random, schedules = np.random.default_rng(seed), {}
        seen = {(self.subsets[-1],) * len(self.steps)}
        for _ in range(DRAWS * count):
            cuts = random.choice(np.arange(1, len(self.steps)), min(len(self.steps) - 1, random.integers(1, 4)), False)
            drawn = random.integers(len(self.subsets), size=len(cuts) + 1)
            stretch = (np.arange(len(self.steps))[:, None] >= cuts).sum(axis=1)
            bricks = tuple(self.subsets[drawn[i]] for i in stretch)
            if bricks not in seen:
                seen.add(bricks)
                chosen = {step.start: subset for step, subset in zip(self.steps, bricks)}
                schedules[f"random {len(schedules)}"] = BrickSchedule.from_levels(self.model, chosen)
            if len(schedules) == count:
                break
        return schedules

    def reweighted(self, weights: np.ndarray) -> "ScheduleSearch":
        """The same measurement with other weights of the steps."""
        return ScheduleSearch(
            self.model, self.scheduler, self.losses, self.operations, weights, self.budget, self.settings,
            self.num_images,
        )  # fmt: skip

    def scores(self, further: Mapping[str, BrickSchedule] | None = None) -> dict[str, ScheduleScore]:
        """Score by name: of `compared`, of what was found, and of further schedules."""
        named = {**self.compared(), f"searched {self.budget:g}": self.schedule, **(further or {})}
        return {name: self.score_of(schedule) for name, schedule in named.items()}

    def table(self, further: Mapping[str, BrickSchedule] | None = None) -> str:
        """What was chosen from, as text: every schedule's share, operations and loss, and the bricks it runs."""
        rows = []
        for name, s in self.scores(further).items():
            change = "" if name == "full" else f"{s.change:+.1%} ± {s.error:.1%}"
            gflop = f"{s.operations / 1e9:.4g}"
            rows.append((name, f"{s.share:.1%}", gflop, f"{s.loss:.4f}", change, _runs(s.bricks)))
        head = ["schedule", "share", "GFLOP", "loss", "against full", "bricks, from high noise to low"]
        return Table(head, rows).text(left=len(head))

    def to_dict(self, further: Mapping[str, BrickSchedule] | None = None) -> dict:
        """Everything as plain JSON values; the frontier is thinned to 200 points."""
        shown = np.unique(np.linspace(0, len(self.frontier.costs) - 1, 200).round().astype(int))
        return {
            "format": SEARCH_FORMAT,
            "budget": self.budget,
            "schedule": self.schedule.to_dict(),
            "settings": {**self.settings, "images": self.num_images},
            "operations": {subnet_name(subset): count for subset, count in self.operations.items()},
            "levels": [
                {"sigma": sigma} | {subnet_name(s): float(self.losses[s][i].mean()) for s in self.subsets}
                for i, sigma in enumerate(self.levels)
            ],
            "weights": self.weights.tolist(),
            "schedules": {name: score.to_dict() for name, score in self.scores(further).items()},
            "frontier": [
                [float(self.frontier.costs[i] / self.full_operations), float(self.frontier.losses[i])] for i in shown
            ],
        }

    def save(self, path: str | Path, further: Mapping[str, BrickSchedule] | None = None) -> None:
        """Write `to_dict` as JSON, in one step."""
        write_json(path, self.to_dict(further))

    def plot(self, path: str | Path, further: Mapping[str, BrickSchedule] | None = None) -> None:
        """Draw loss against operations as a PNG: every one-break schedule, the frontier, and the named schedules."""
        write_file(path, plot_search(self, self.scores(further)).png())


def check_share(budget: float) -> None:
    """Raise a `ValueError` for a budget that is no share of the full schedule's operations."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise ValueError(
            f"`budget` is {budget!r}; give a share of the full schedule's operations, above 0 and up to 1."
        )


def check_budget(budget: float, operations: Mapping[Bricks, int]) -> None:
    """Raise a `ValueError` for a budget that is no share, or that not even the cheapest set of bricks fits into."""
    check_share(budget)
    cheapest = min(operations, key=operations.get)
    least = operations[cheapest] / max(operations.values())
    if least > budget * (1 + 1e-9):
        raise ValueError(
            f"`budget` is {budget:g}, but the cheapest schedule, bricks {subnet_name(cheapest)} in every step, takes "
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
    max_subsets: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> ScheduleSearch:
    """Measure a stack's sets of bricks and find the schedule of least loss within a budget of operations.

    Args:
        model: a `LegoPipeline`, or a `LegoTransformer2DModel` of pixels. Weights trained with brick dropout
            (`trained_subsets="any"`) may leave out any bricks, others the last ones only.
        data: pictures that the network was not trained on, with labels if it is conditional: whatever
            `open_image_set` opens, an `ImageSet`, or a `PairedSet` of what the network sees (its noise levels are not
            used), of the training size or of the size asked for.
        budget: share of the full schedule's operations, above 0 and up to 1, over every evaluation of the sampler.
            Guidance doubles both, so shares do not depend on it.
        height, width: of the images whose operations are counted, in pixels; by default the training size.
        num_inference_steps: steps of the sampler. The schedule is made of noise ranges, and so holds for others too.
        scheduler: by default the pipeline's, or `EDMHeunScheduler()`. It is not changed.
        objective: what the network was trained for, by default EDM's with the scheduler's `sigma_data`. What it says
            of the distribution of noise matters to `weighting="training"` alone.
        weighting: how noise levels are weighted, `"sampler"`, `"training"` or `"even"`; see the module's text.
        num_pairs: how many pictures and noises each level is scored with; fewer pictures are used again with other
            noise, of more an even selection is used. A `PairedSet` is used as it is.
        max_subsets: taller stacks than have so many sets are searched for sets worth scoring (`candidate_subsets`).
        batch_size: images at once.
        seed: of the noise.
        progress: show a bar.

    Raises:
        ValueError: for a budget outside (0, 1] or below the cheapest schedule, and for data of the wrong size,
            channels or classes, or without labels.
    """
    network, vae_factor = getattr(model, "transformer", model), getattr(model, "vae_scale_factor", 1)
    if not isinstance(network, LegoTransformer2DModel):
        raise ValueError(f"`model` is a {type(model).__name__}; give a LegoPipeline or a LegoTransformer2DModel.")
    one_of("weighting", weighting, WEIGHTINGS)
    scheduler = _scheduler_of(model, scheduler)
    scheduler.set_timesteps(num_inference_steps)
    objective = objective or EDMObjective(sigma_data=scheduler.config.sigma_data)
    size = _size_of(network, vae_factor, height, width)
    costs = {subnet_bricks(name): count for name, count in network.subnets(*size).items()}
    check_budget(budget, costs)
    pairs, num_images = _pairs_of(model, network, data, size, num_pairs, seed)
    levels = distinct_levels(sampler_steps(scheduler))
    weights = step_weights(sampler_steps(scheduler), objective, weighting)

    losses = _score_subsets(network, pairs, objective, levels, costs, max_subsets, batch_size, progress)
    settings = {
        "height": size[0] * vae_factor,
        "width": size[1] * vae_factor,
        "num_inference_steps": num_inference_steps,
        "scheduler": type(scheduler).__name__,
        "objective": {"class": type(objective).__name__, "sigma_data": objective.sigma_data},
        "weighting": weighting,
        "pairs": len(pairs.images),
        "seed": pairs.seed,
        "all_subsets": len(losses) == len(costs),
    }
    return ScheduleSearch(network, scheduler, losses, costs, weights, budget, settings, num_images)


def _score_subsets(
    network, pairs, objective, levels, costs: Mapping[Bricks, int], max_subsets: int, batch_size: int, progress: bool
) -> dict[Bricks, np.ndarray]:
    """The losses of the sets of bricks to choose from, in evaluation mode."""
    losses: dict[Bricks, np.ndarray] = {}

    def measure(subsets: Sequence[Bricks]) -> dict[Bricks, np.ndarray]:
        batches = len(levels) * math.ceil(len(pairs.images) / batch_size) * len(maximal_runs(subsets))
        with _bar(batches, progress) as bar:
            losses.update(subset_losses(network, pairs, objective, levels, subsets, batch_size, bar.update))
        return {subset: losses[subset].mean(axis=1) for subset in subsets}

    training = network.training
    network.eval()
    try:
        missing = set(candidate_subsets(list(costs), max_subsets, measure, costs.get)) - set(losses)
        if missing:
            measure(sorted(missing))
    finally:
        network.train(training)
    return losses


def _scheduler_of(model, scheduler):
    """A copy of the scheduler, checked."""
    from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler

    scheduler = copy.deepcopy(scheduler or getattr(model, "scheduler", None)) or EDMHeunScheduler()
    if not hasattr(scheduler, "precondition_outputs") or scheduler.config.prediction_type != "epsilon":
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__}; give one of the EDM family with prediction_type='epsilon', "
            "such as EDMHeunScheduler()."
        )
    return scheduler


def _size_of(network, factor: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of what the network sees."""
    size, patch = [], max(network.config.patch_sizes)
    for name, value in (("height", height), ("width", width)):
        value = network.config.sample_size * factor if value is None else value
        if not isinstance(value, int) or value % factor or value < patch * factor:
            multiple = f", a multiple of the VAE's {factor}" if factor > 1 else ""
            raise ValueError(
                f"`{name}` is {value!r}; give a whole number of pixels from {patch * factor} up (one patch){multiple}."
            )
        size.append(value // factor)
    return size[0], size[1]


def _pairs_of(model, network, data, size: tuple[int, int], num_pairs: int, seed: int) -> tuple[PairedSet, int]:
    """The frozen list, and the number of distinct pictures in it."""
    if not isinstance(data, PairedSet):
        return held_out_pairs(model, data, num_pairs, seed)
    config, shape = network.config, tuple(data.images.shape)
    allowed = {(config.in_channels, config.sample_size, config.sample_size), (config.in_channels, *size)}
    if len(shape) != 4 or shape[0] < 1 or shape[1:] not in allowed:
        listed = " or ".join("(N, " + ", ".join(map(str, one)) + ")" for one in sorted(allowed))
        raise ValueError(f"`data` has images of shape {shape}; this network is scored on {listed}. Resize them.")
    labels, classes = data.labels, config.num_classes
    if classes is not None and (labels is None or labels.min() < 0 or labels.max() > classes):
        came = "no labels" if labels is None else f"labels from {labels.min()} to {labels.max()}"
        raise ValueError(
            f"`data` has {came}; give each image the number of its class, 0 to {classes - 1} ({classes}: no class)."
        )
    return data, shape[0]


def _by_image(values: np.ndarray, num_images: int) -> np.ndarray:
    """Means of those values that belong to one image, which comes up every `num_images` values."""
    return np.array([values[i::num_images].mean() for i in range(min(num_images, len(values)))])


def _runs(bricks: Sequence[Bricks]) -> str:
    """`0 ×5, 0+1 ×13`."""
    runs: list[list] = []
    for subset in bricks:
        if runs and runs[-1][0] == subset:
            runs[-1][1] += 1
        else:
            runs.append([subset, 1])
    return ", ".join(f"{subnet_name(subset)} ×{count}" for subset, count in runs)


def _bar(total: int, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="batch", desc="scoring bricks", disable=not progress, leave=False)
