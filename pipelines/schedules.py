"""Which subnet of a network runs at which noise level: of any network, and brick by brick of a LEGO stack.

A noise level is the noise's standard deviation over the signal's, or what a scheduler's `sigmas` say where it has
some. Instead of a network there may be several of one objective, `{name: network}`, each of which is then a subnet:
a small one for the coarse and a large one for the fine (T-Stitch, arXiv 2402.14167).
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Self

from brickwork.files import read_json
from brickwork.gen.subnets import FULL, BrickFamily, bricks_of, family_of, find_subnet, name_of

# The noise levels that EDM samples by default (Karras et al., arXiv 2206.00364, table 1); within them a schedule must
# always leave at least one brick to run.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
# Schedulers round their noise levels, so a rule's ends are met with this relative tolerance.
_TOLERANCE = 1e-4


def subnet_names(model: Any) -> list[str]:
    """The subnets of a network, or the names of several; the last is the network itself, or the largest."""
    if isinstance(model, Mapping):
        return sorted(model, key=lambda name: name == FULL)  # last, as in a network; the others keep their order
    if not hasattr(model, "subnets"):
        return [FULL]
    side, length = (getattr(model.config, name, None) for name in ("sample_size", "length"))  # series have a length
    return list(model.subnets(*((side, side) if side else (length,))))


def subnet_costs(model: Any, height: int, width: int) -> dict[str, int]:
    """Counted operations of one evaluation of each subnet, of a network or of several by name."""
    if isinstance(model, Mapping):
        return {name: max(network.subnets(height, width).values()) for name, network in model.items()}
    return model.subnets(height, width)


def step_sigmas(scheduler: Any) -> list[float]:
    """The noise level that each step begins at, once `scheduler.set_timesteps` has been called."""
    firsts = range(0, len(scheduler.timesteps), scheduler.order)
    if getattr(scheduler, "sigmas", None) is not None:
        return [float(scheduler.sigmas[first]) for first in firsts]
    signal = [float(scheduler.alphas_cumprod[int(scheduler.timesteps[first])]) for first in firsts]
    return [math.sqrt((1 - share) / share) for share in signal]


def noise_level_at(scheduler: Any, timestep: Any) -> float:
    """The noise level of the evaluation that a sampling loop of diffusers is at, with its timestep."""
    if getattr(scheduler, "sigmas", None) is not None and hasattr(scheduler, "step_index"):
        index = scheduler.step_index
        if index is None:
            index = getattr(scheduler, "begin_index", None) or 0
        return float(scheduler.sigmas[index])
    share = float(scheduler.alphas_cumprod[int(timestep)])
    return math.sqrt((1 - share) / share)


class Schedule(ABC):
    """What pipelines, search and benchmarks know of a schedule."""

    @abstractmethod
    def subnet_at(self, sigma: float, progress: float = 0.0) -> str:
        """The subnet that runs at noise level `sigma`, when the share `progress` of the steps (below 1) is done."""

    @abstractmethod
    def validate(self, model: Any) -> None:
        """Raise a `ValueError` unless the schedule is for this network, and for subnets that it was trained for."""

    @abstractmethod
    def to_dict(self) -> dict[str, list]:
        """The schedule as plain JSON values."""

    def subnet_steps(self, scheduler: Any) -> list[str]:
        """The subnet of each step, once `scheduler.set_timesteps` has been called.

        Both evaluations of a second-order step use the subnet of its beginning.
        """
        sigmas = step_sigmas(scheduler)
        return [self.subnet_at(sigma, step / len(sigmas)) for step, sigma in enumerate(sigmas)]

    def operations(self, model: Any, scheduler: Any, height: int, width: int) -> int:
        """Counted operations of the network's evaluations for one image, once `scheduler.set_timesteps` was called.

        Heun's second evaluations are included; guidance, which evaluates everything twice, is not. Height and width
        are those of what the network sees (for latent models, of the latents).
        """
        costs, order = subnet_costs(model, height, width), scheduler.order
        return sum(
            len(scheduler.timesteps[step * order : (step + 1) * order]) * costs[name]
            for step, name in enumerate(self.subnet_steps(scheduler))
        )


@dataclass(frozen=True)
class SubnetSchedule(Schedule):
    """One subnet of a network at each noise level; an immutable value that saves as plain JSON.

    Build one with `full`, `from_rules` or `from_levels`, which check it against the model it is for.

    Attributes:
        subnets: their names, from low noise to high.
        breaks: the rising noise levels at which one takes over from the one before.
    """

    subnets: tuple[str, ...]
    breaks: tuple[float, ...] = ()

    def __post_init__(self):
        rise = all(a < b for a, b in pairwise((0.0, *self.breaks, math.inf)))
        if len(self.subnets) != len(self.breaks) + 1 or not rise:
            raise ValueError(
                f"The schedule has the subnets {self.subnets} and breaks {self.breaks}; give one subnet more than "
                "breaks, which rise and lie above 0."
            )

    @classmethod
    def full(cls, model: Any) -> Self:
        """The network itself at every noise level."""
        return cls((subnet_names(model)[-1],))

    @classmethod
    def from_rules(cls, model: Any, rules: Mapping[str, Sequence]) -> Self:
        """Say for each subnet in which range of noise levels it runs.

        Args:
            model: a network with subnets, or several networks of one objective by name.
            rules: `{subnet: (sigma_low, sigma_high)}`, or a list of such pairs; `None` is an open end. Together they
                cover all levels from 0 to infinity, once each.

        Raises:
            ValueError: for unknown subnets, and for noise levels with none or with several.
        """
        if not isinstance(rules, Mapping) or not rules:
            raise ValueError(f"`rules` is {rules!r}; give a dictionary {{subnet: (sigma_low, sigma_high)}}.")
        known, end, stretches = subnet_names(model), 0.0, []
        ranges = [(*ends, find_subnet(name, known)) for name, rule in rules.items() for ends in _ranges(name, rule)]
        for low, high, name in sorted(ranges):
            if low != end or high <= low:
                found = "none" if low > end else "several subnets, or a range that ends where it begins,"
                raise ValueError(
                    f"`rules` has {found} at the noise levels between {min(low, end):g} and {max(low, end):g}; let "
                    "the ranges follow one another from 0 to None (infinity), so that one subnet runs at each level."
                )
            stretches.append((low, name))
            end = high
        if end < math.inf:
            raise ValueError(f"`rules` has none above the noise level {end:g}; let the last range end with None.")
        return cls(*_merged(stretches))

    @classmethod
    def from_levels(cls, model: Any, levels: Mapping[float, str]) -> Self:
        """Say at some noise levels which subnet runs; anywhere else, that of the level nearest in logarithm.

        Args:
            model: a network with subnets, or several networks of one objective by name.
            levels: `{sigma: subnet}`, such as the levels of a sampler's steps and what is to run in each.

        Raises:
            ValueError: for levels that are not above zero, and unknown subnets.
        """
        known = subnet_names(model)
        ordered = _rising(levels, "subnet")
        lows = [0.0, *_middles(ordered)]
        return cls(*_merged([(low, find_subnet(levels[sigma], known)) for low, sigma in zip(lows, ordered)]))

    def subnet_at(self, sigma: float, progress: float = 0.0) -> str:
        return self.subnets[bisect_right(self.breaks, sigma * (1 + _TOLERANCE))]

    resolve = Schedule.subnet_steps

    @classmethod
    def examples(cls, model: Any, shares: Sequence[float]) -> dict[str, Self]:
        """Schedules known without a search, by name: none."""
        return {}

    def validate(self, model: Any) -> None:
        known = subnet_names(model)
        for name in self.subnets:
            find_subnet(name, known)

    def to_dict(self) -> dict[str, list]:
        return {"subnets": list(self.subnets), "breaks": list(self.breaks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`; unknown and missing keys are errors."""
        subnets, breaks = _exactly("A subnet schedule", values, ("subnets", "breaks"))
        if not all(isinstance(name, str) for name in subnets):
            raise ValueError(f"`subnets` is {subnets!r}; give a list of names.")
        return cls(tuple(subnets), tuple(_number("breaks", level, math.nan) for level in breaks))

    def __str__(self) -> str:
        """A table with one line a stretch of noise levels, from high noise to low."""
        ends = [0.0, *self.breaks, math.inf]
        lines = [f"{_describe_noise(*ends)}: {name}" for ends, name in zip(pairwise(ends), self.subnets)]
        return "\n".join(reversed(lines))


_ALWAYS = ((0.0, math.inf),)
_WORDS = {"always": _ALWAYS, "never": ()}  # rules of noise levels that have a name


@dataclass(frozen=True)
class BrickRule:
    """When one brick runs: within ranges of noise levels, or within shares of the steps.

    Attributes:
        unit: `"sigma"` for noise levels, or `"steps"` for shares of the steps done (0 is the start, at the highest
            noise).
        ranges: `(low, high)` each, rising, by default all levels; none for a brick that never runs. Noise ranges
            include both ends, shares of the steps only the lower one.
    """

    unit: str = "sigma"
    ranges: tuple[tuple[float, float], ...] = _ALWAYS

    def __post_init__(self):
        if self.unit not in ("sigma", "steps"):
            raise ValueError(f"`unit` is {self.unit!r}; choose one of always, never, sigma, steps.")
        if min(self.ends, default=0.0) < 0 or not all(a < b for a, b in pairwise(self.ends)):
            listed = ", ".join(f"{low} to {high}" for low, high in self.ranges)
            raise ValueError(f"The rule runs from {listed}; the ends must rise and not be below 0.")

    @property
    def ends(self) -> list[float]:
        """The ends of every range, rising."""
        return [end for one in self.ranges for end in one]

    @property
    def word(self) -> str | None:
        """`"always"` or `"never"`, where it is one of these."""
        return next((word for word, ranges in _WORDS.items() if (self.unit, self.ranges) == ("sigma", ranges)), None)

    def runs(self, sigma: float, progress: float) -> bool:
        """Whether the brick runs at noise level `sigma`, when the share `progress` of the steps is done."""
        if self.unit == "sigma":
            return any(low * (1 - _TOLERANCE) <= sigma <= high * (1 + _TOLERANCE) for low, high in self.ranges)
        return any(low <= progress + 1e-9 < high for low, high in self.ranges)

    def to_list(self) -> list:
        """`["always"]`, `["never"]`, or `["sigma", low, high, …]`, fit for JSON: an open upper end is `None`."""
        return [self.word] if self.word else [self.unit, *(None if math.isinf(end) else end for end in self.ends)]

    @classmethod
    def from_list(cls, values: Sequence) -> "BrickRule":
        """Undo `to_list`."""
        well_formed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) % 2 == 1
        if not well_formed or (len(values) == 1) != (values[0] in ("always", "never")):
            raise ValueError(
                f"A rule is {values!r}; write ['always'], ['never'] or ['sigma' | 'steps', low, high, …]."
            )
        unit, *ends = values
        return cls(unit, _numbers(unit, zip(ends[::2], ends[1::2]))) if ends else cls("sigma", _WORDS[unit])

    def __str__(self) -> str:
        describe = _describe_noise if self.unit == "sigma" else _describe_steps
        return self.word or " and ".join(describe(low, high) for low, high in self.ranges)


@dataclass(frozen=True)
class BrickSchedule(Schedule):
    """Which bricks of one stack run at which noise level; an immutable value that saves as plain JSON.

    Build one with `full`, `fast` or `from_rules`, which check it against the model it is for.

    Attributes:
        window_sizes: side of each brick's windows, by which a stack is recognised.
        rules: one rule a brick.
    """

    window_sizes: tuple[int, ...]
    rules: tuple[BrickRule, ...]

    def __post_init__(self):
        if not self.window_sizes or len(self.window_sizes) != len(self.rules):
            raise ValueError(
                f"The schedule has {len(self.rules)} rules for {len(self.window_sizes)} bricks; give one rule each, "
                "and at least one brick."
            )
        for sigma, progress in self._check_points():
            self.bricks_at(sigma, progress)

    @classmethod
    def full(cls, model: Any) -> "BrickSchedule":
        """Every brick at every noise level."""
        windows = _windows_of(model)
        return cls(windows, tuple(BrickRule() for _ in windows))

    @classmethod
    def fast(cls, model: Any, t_break: float = 0.5) -> "BrickSchedule":
        """The paper's early exit: the last brick is left out of a share of the steps.

        Stacks whose windows grow (PG), or shrink and then grow (U), leave it out at the end, where noise is low;
        stacks whose windows shrink (PR) at the start, where noise is high. In the paper, on ImageNet 256, PG-XL keeps
        its FID up to about 0.3 and PR-XL up to about 0.4; beyond 0.7 both break.

        Args:
            model: a `LegoTransformer2DModel` of at least two bricks.
            t_break: share of the steps without the last brick, from 0 to 1.

        Raises:
            ValueError: for a stack of another shape, whose schedule only its owner can know.
        """
        windows, t_break = _windows_of(model), _number("t_break", t_break, 0.5)
        if len(windows) < 2:
            raise ValueError("`model` has one brick, so there is none to leave out; use BrickSchedule.full(model).")
        if not 0 <= t_break <= 1:
            raise ValueError(f"`t_break` is {t_break}; give a share of the steps from 0 to 1.")
        layout = stack_layout(windows)
        if layout is None:
            raise ValueError(
                f"`model` has windows of {_listed(windows)} pixels, which neither grow, nor shrink, nor shrink and "
                "then grow, so which brick to leave out when is not known; say it with BrickSchedule.from_rules."
            )
        last = BrickRule("sigma", () if t_break else _ALWAYS)
        if 0 < t_break < 1:
            last = BrickRule("steps", ((t_break, 1.0) if layout == "PR" else (0.0, 1 - t_break),))
        return cls(windows, (*(BrickRule() for _ in windows[1:]), last))

    @classmethod
    def examples(cls, model: Any, shares: Sequence[float]) -> "dict[str, BrickSchedule]":
        """Schedules known without a search, by name: `fast` for shares of the steps, where the stack's form allows."""
        known = stack_layout(_windows_of(model)) is not None
        return {f"fast {share:g}": cls.fast(model, share) for share in shares if known}

    @classmethod
    def from_rules(cls, model: Any, rules: Mapping[int, Sequence | None]) -> "BrickSchedule":
        """Say for each brick in which range of noise levels it runs.

        Args:
            model: a `LegoTransformer2DModel`.
            rules: `{brick: (sigma_low, sigma_high)}`, both ends included, `None` for an open end; a list of such pairs
                for several ranges. `{brick: None}` leaves a brick out altogether; bricks without a rule always run.

        Raises:
            ValueError: for unknown bricks, for noise levels at which no brick would run, and for sets of bricks that
                the model's weights were not trained for.
        """
        windows = _windows_of(model)
        if not isinstance(rules, Mapping):
            raise ValueError(f"`rules` is {rules!r}; give a dictionary {{brick: (sigma_low, sigma_high)}}.")
        unknown = [brick for brick in rules if not isinstance(brick, int) or not 0 <= brick < len(windows)]
        if unknown:
            raise ValueError(f"`rules` names the bricks {unknown}; this stack has 0 to {len(windows) - 1}.")
        given = enumerate(rules.get(brick, (0, None)) for brick in range(len(windows)))
        ranges = [() if rule is None else _ranges(n, rule, ", or None to leave it out") for n, rule in given]
        return cls._of_ranges(model, ranges)

    @classmethod
    def _of_ranges(cls, model: Any, ranges: Sequence[list[tuple[float, float]]]) -> "BrickSchedule":
        schedule = cls(_windows_of(model), tuple(BrickRule("sigma", tuple(pairs)) for pairs in ranges))
        schedule.validate(model)
        return schedule

    @classmethod
    def from_levels(cls, model: Any, levels: Mapping[float, Sequence[int] | str]) -> "BrickSchedule":
        """Say at some noise levels which bricks run; anywhere else, those of the level nearest in logarithm.

        Args:
            model: a `LegoTransformer2DModel`.
            levels: `{sigma: bricks}`, such as the levels of a sampler's steps and what is to run in each; bricks as
                numbers or as the name of a subnet.

        Raises:
            ValueError: for levels that are not above zero, unknown bricks, a level without any, and sets of bricks
                that the model's weights were not trained for.
        """
        windows, ordered = _windows_of(model), _rising(levels, "bricks")
        bricks = [bricks_of(levels[s]) if isinstance(levels[s], str) else tuple(levels[s]) for s in ordered]
        for sigma, running in zip(ordered, bricks):
            if not running or not set(running) <= set(range(len(windows))):
                raise ValueError(
                    f"`levels` has the bricks {running} at noise level {sigma:.4g}; this stack has 0 to "
                    f"{len(windows) - 1}, and one at least must run."
                )
        stretches = list(zip(pairwise([0.0, *_middles(ordered), math.inf]), bricks))
        runs = [[ends for ends, running in stretches if brick in running] for brick in range(len(windows))]
        return cls._of_ranges(model, [_joined(ranges) for ranges in runs])

    def bricks_at(self, sigma: float, progress: float = 0.0) -> tuple[int, ...]:
        """The bricks that run at noise level `sigma`, when the share `progress` of the steps (below 1) is done."""
        bricks = tuple(brick for brick, rule in enumerate(self.rules) if rule.runs(sigma, progress))
        if not bricks:
            raise ValueError(
                f"The schedule runs no brick at noise level {sigma:.4g}; let at least one brick run there.\n{self}"
            )
        return bricks

    def subnet_at(self, sigma: float, progress: float = 0.0) -> str:
        """`bricks_at` as the name of a subnet, a key of `model.subnets(height, width)`."""
        return name_of(self.bricks_at(sigma, progress))

    def resolve(self, scheduler: Any) -> list[tuple[int, ...]]:
        """`subnet_steps` as bricks: those of each step, once `scheduler.set_timesteps` has been called."""
        return [bricks_of(name) for name in self.subnet_steps(scheduler)]

    def validate(self, model: Any) -> None:
        windows = _windows_of(model)
        if windows != self.window_sizes:
            raise ValueError(
                f"The schedule is for {len(self.window_sizes)} bricks with windows of {_listed(self.window_sizes)} "
                f"pixels, the model has {len(windows)} with {_listed(windows)}; build one for this model, for example "
                "BrickSchedule.full(model)."
            )
        if model.config.trained_subsets == "any":
            return
        for sigma, progress in self._check_points():
            bricks = self.bricks_at(sigma, progress)
            if bricks != tuple(range(len(bricks))):
                raise ValueError(
                    f"At noise level {sigma:.4g} the schedule runs the bricks {bricks}, but these weights were "
                    "trained to leave out the last bricks only; to leave out others, train with brick dropout (config "
                    "trained_subsets='any')."
                )

    def to_dict(self) -> dict[str, list]:
        return {"window_sizes": list(self.window_sizes), "rules": [rule.to_list() for rule in self.rules]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BrickSchedule":
        """Undo `to_dict`; unknown and missing keys are errors."""
        windows, rules = _exactly("A brick schedule", values, ("window_sizes", "rules"))
        if not all(type(window) is int for window in windows):
            raise ValueError(f"`window_sizes` is {windows!r}; give a list of whole numbers.")
        return cls(tuple(windows), tuple(BrickRule.from_list(rule) for rule in rules))

    def __str__(self) -> str:
        """A table with one line a brick."""
        rows = enumerate(zip(self.window_sizes, self.rules))
        return "\n".join(["brick  window  runs", *(f"{n:<5}  {window:<6}  {rule}" for n, (window, rule) in rows)])

    def _check_points(self) -> list[tuple[float, float]]:
        """Noise levels and shares of the steps between which nothing changes: every end, and the middles."""
        rules = self.rules
        sigmas = _points({end for rule in rules if rule.unit == "sigma" for end in rule.ends})
        shares = sorted({0.0, *(end for rule in rules if rule.unit == "steps" for end in rule.ends)})
        return [(sigma, share) for share in shares if share < 1 for sigma in sigmas]


def schedule_kind(model: Any) -> type[BrickSchedule] | type[SubnetSchedule]:
    """The schedules that suit a network, or several by name: of bricks for a LEGO stack, else of subnets."""
    return BrickSchedule if isinstance(family_of(model), BrickFamily) else SubnetSchedule


def read_schedule(values: Mapping[str, Any]) -> BrickSchedule | SubnetSchedule:
    """The schedule that `to_dict` of either kind wrote."""
    bricks = isinstance(values, Mapping) and "window_sizes" in values
    return (BrickSchedule if bricks else SubnetSchedule).from_dict(values)


def steps_text(subnets: Sequence[str]) -> str:
    """What runs in each step, in short: `"0 ×5, 0+1 ×13"`."""
    return ", ".join(f"{name} ×{len(list(run))}" for name, run in groupby(subnets))


def stack_layout(window_sizes: Sequence[int]) -> str | None:
    """The paper's name for a stack, from its windows: `"PG"` (they grow), `"PR"` (they shrink), `"U"` (they shrink,
    then grow), or `None`."""
    grows = [b > a for a, b in pairwise(window_sizes) if b != a]
    if not grows or grows != sorted(grows):
        return None
    return "PG" if all(grows) else "U" if any(grows) else "PR"


def _windows_of(model: Any) -> tuple[int, ...]:
    windows = getattr(getattr(model, "config", None), "window_sizes", None)
    if windows is None:
        raise ValueError(f"`model` is a {type(model).__name__}; brick schedules need a LegoTransformer2DModel.")
    return tuple(windows)


def _listed(window_sizes: Sequence[int]) -> str:
    return ", ".join(map(str, window_sizes))


def _ranges(name: Any, rule: Any, otherwise: str = "") -> tuple[tuple[float, float], ...]:
    """The ranges of noise levels `(low, high)` of a rule as a person writes it, one pair or a list of pairs."""
    pairs = rule if isinstance(rule, Sequence) and rule and _is_pair(rule[0]) else [rule]
    if not all(_is_pair(pair) for pair in pairs):
        raise ValueError(
            f"`rules[{name!r}]` is {rule!r}; give (sigma_low, sigma_high), a list of such pairs{otherwise}."
        )
    return _numbers("sigma", pairs)


def _numbers(unit: str, pairs: Iterable[Sequence]) -> tuple[tuple[float, float], ...]:
    return tuple((_number(f"{unit}_low", low, 0.0), _number(f"{unit}_high", high, math.inf)) for low, high in pairs)


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _merged(stretches: Sequence[tuple[float, str]]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Subnets and the breaks between them, from rising `(low, subnet)`; neighbours of one name become one."""
    kept = [one for before, one in pairwise([(0.0, None), *stretches]) if one[1] != before[1]]
    return tuple(name for _, name in kept), tuple(low for low, _ in kept[1:])


def _rising(levels: Any, what: str) -> list[float]:
    if not isinstance(levels, Mapping) or not levels or not all(0 < sigma < math.inf for sigma in levels):
        raise ValueError(f"`levels` is {levels!r}; give {{sigma: {what}}} with noise levels above zero.")
    return sorted(levels)


def _middles(levels: Sequence[float]) -> list[float]:
    """What lies halfway in logarithm between rising noise levels."""
    return [float(f"{math.sqrt(a * b):.6g}") for a, b in pairwise(levels)]


def _exactly(what: str, values: Any, keys: tuple[str, ...]) -> list[Sequence]:
    """The lists under just these keys."""
    if not isinstance(values, Mapping) or set(values) != set(keys):
        came = sorted(map(str, values)) if isinstance(values, Mapping) else values
        raise ValueError(f"{what} has exactly the keys {sorted(keys)}, not {came!r}.")
    for key in keys:
        if not isinstance(values[key], Sequence) or isinstance(values[key], str):
            raise ValueError(f"`{key}` is {values[key]!r}; give a list.")
    return [values[key] for key in keys]


def _joined(ranges: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Rising ranges, those that meet as one."""
    lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
    return list(zip([low for low in lows if low not in highs], [high for high in highs if high not in lows]))


def _describe_noise(low: float, high: float) -> str:
    return f"at noise {low:g} {'and above' if math.isinf(high) else f'to {high:g}'}"


def _describe_steps(low: float, high: float) -> str:
    if low <= 0:
        return f"in the first {high:.0%} of the steps (high noise)"
    if high >= 1:
        return f"in the last {1 - low:.0%} of the steps (low noise)"
    return f"from {low:.0%} to {high:.0%} of the steps"


def _number(name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"`{name}` is {value!r}; give a number, or None for an open end.")
    return float(value)


def _points(ends: set[float]) -> list[float]:
    """EDM's lowest and highest noise level, the ends between them, and what lies halfway in logarithm."""
    ordered = sorted({SIGMA_MIN, SIGMA_MAX, *(end for end in ends if SIGMA_MIN <= end <= SIGMA_MAX)})
    return sorted([*ordered, *(math.sqrt(a * b) for a, b in pairwise(ordered))])


def schedule_from_file(path: str | Path) -> BrickSchedule | SubnetSchedule:
    """A schedule from a file that `brickwork search` wrote, or from `to_dict` as JSON.

    Raises:
        ValueError: for a file that is none.
    """
    values = read_json(path, "schedule of `brickwork search`")
    return read_schedule(values["schedule"] if isinstance(values.get("schedule"), dict) else values)


def named_schedule(name: str, model: Any) -> BrickSchedule | SubnetSchedule | None:
    """The schedule that a command line names: `full`, `fast` (of LEGO), a JSON file, or `saved`, which is `None`."""
    if name == "saved":
        return None
    if name == "full":
        return schedule_kind(model).full(model)
    if name == "fast":
        return BrickSchedule.fast(model)
    if Path(name).suffix != ".json" or not Path(name).is_file():
        raise ValueError(f"`--schedule` is {name!r}; choose saved, full, fast, or an existing .json file.")
    return schedule_from_file(name)
