"""Which bricks of a LEGO stack run at which noise level."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brickwork.gen.subnets import subnet_name

# The noise levels that EDM samples by default (Karras et al., arXiv 2206.00364, table 1); within them a schedule must
# always leave at least one brick to run.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
# Schedulers round their noise levels, so a rule's ends are met with this relative tolerance.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class BrickRule:
    """When one brick runs: always, never, within ranges of noise levels, or within shares of the steps.

    Attributes:
        unit: `"always"`, `"never"`, `"sigma"` or `"steps"`.
        low: lower end; a noise level for `"sigma"`, a share of the steps done for `"steps"` (0 is the start, at the
            highest noise).
        high: upper end, in the same unit. Noise ranges include both ends, shares of the steps only the lower one.
        further: more ranges `(low, high)` of the same unit, each above the one before.
    """

    unit: str = "always"
    low: float = 0.0
    high: float = math.inf
    further: tuple[tuple[float, float], ...] = ()

    def __post_init__(self):
        if self.unit not in ("always", "never", "sigma", "steps"):
            raise ValueError(f"`unit` is {self.unit!r}; choose one of always, never, sigma, steps.")
        ends = self.ends
        if not 0 <= ends[0] or not all(a < b for a, b in zip(ends, ends[1:])):
            listed = ", ".join(f"{low} to {high}" for low, high in self.ranges)
            raise ValueError(f"The rule runs from {listed}; the ends must rise and not be below 0.")

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Every range `(low, high)`, rising."""
        return ((self.low, self.high), *self.further)

    @property
    def ends(self) -> list[float]:
        """The ends of every range, rising."""
        return [end for one in self.ranges for end in one]

    def runs(self, sigma: float, progress: float) -> bool:
        """Whether the brick runs at noise level `sigma`, when the share `progress` of the steps is done."""
        if self.unit == "sigma":
            return any(low * (1 - _TOLERANCE) <= sigma <= high * (1 + _TOLERANCE) for low, high in self.ranges)
        if self.unit == "steps":
            return any(low <= progress + 1e-9 < high for low, high in self.ranges)
        return self.unit == "always"

    def to_list(self) -> list:
        """`["sigma", low, high, …]`, two ends a range, fit for JSON: an open upper end is `None`."""
        if self.unit in ("always", "never"):
            return [self.unit]
        return [self.unit, *(None if math.isinf(end) else end for end in self.ends)]

    @classmethod
    def from_list(cls, values: Sequence) -> "BrickRule":
        """Undo `to_list`."""
        well_formed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) % 2 == 1
        if not well_formed or (len(values) == 1) != (values[0] in ("always", "never")):
            raise ValueError(
                f"A rule is {values!r}; write ['always'], ['never'] or ['sigma' | 'steps', low, high, …]."
            )
        if len(values) == 1:
            return cls(values[0])
        unit, *ends = values
        return cls.of_ranges(unit, list(zip(ends[::2], ends[1::2])))

    @classmethod
    def of_ranges(cls, unit: str, ranges: Sequence[tuple[float | None, float | None]]) -> "BrickRule":
        """A rule of one range or several, rising; `None` is an open end."""
        pairs = [(_number(f"{unit}_low", low, 0.0), _number(f"{unit}_high", high, math.inf)) for low, high in ranges]
        return cls(unit, *pairs[0], further=tuple(pairs[1:]))

    def __str__(self) -> str:
        if self.unit in ("always", "never"):
            return self.unit
        describe = _describe_noise if self.unit == "sigma" else _describe_steps
        return " and ".join(describe(low, high) for low, high in self.ranges)


@dataclass(frozen=True)
class BrickSchedule:
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
        windows = _windows_of(model)
        if len(windows) < 2:
            raise ValueError("`model` has one brick, so there is none to leave out; use BrickSchedule.full(model).")
        t_break = _number("t_break", t_break, 0.5)
        if not 0 <= t_break <= 1:
            raise ValueError(f"`t_break` is {t_break}; give a share of the steps from 0 to 1.")
        layout = stack_layout(windows)
        if layout is None:
            raise ValueError(
                f"`model` has windows of {_arrows(windows)} pixels, which neither grow, nor shrink, nor shrink and "
                "then grow, so which brick to leave out when is not known; say it with BrickSchedule.from_rules."
            )
        if t_break == 0:
            last = BrickRule()
        elif t_break == 1:
            last = BrickRule("never")
        elif layout == "PR":
            last = BrickRule("steps", t_break, 1.0)
        else:
            last = BrickRule("steps", 0.0, 1 - t_break)
        return cls(windows, (*(BrickRule() for _ in windows[1:]), last))

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
        schedule = cls(windows, tuple(_sigma_rule(brick, rules) for brick in range(len(windows))))
        schedule.validate(model)
        return schedule

    @classmethod
    def from_levels(cls, model: Any, levels: Mapping[float, Sequence[int]]) -> "BrickSchedule":
        """Say at some noise levels which bricks run; anywhere else, those of the level nearest in logarithm.

        Args:
            model: a `LegoTransformer2DModel`.
            levels: `{sigma: bricks}`, such as the levels of a sampler's steps and what is to run in each.

        Raises:
            ValueError: for levels that are not above zero, unknown bricks, a level without any, and sets of bricks
                that the model's weights were not trained for.
        """
        windows = _windows_of(model)
        if not isinstance(levels, Mapping) or not levels or not all(0 < sigma < math.inf for sigma in levels):
            raise ValueError(f"`levels` is {levels!r}; give {{sigma: bricks}} with noise levels above zero.")
        ordered = sorted(levels)
        bricks = [tuple(levels[sigma]) for sigma in ordered]
        for sigma, running in zip(ordered, bricks):
            if not running or not set(running) <= set(range(len(windows))):
                raise ValueError(
                    f"`levels` has the bricks {running} at noise level {sigma:.4g}; this stack has 0 to "
                    f"{len(windows) - 1}, and one at least must run."
                )
        schedule = cls(windows, tuple(_rule_of_levels(brick, ordered, bricks) for brick in range(len(windows))))
        schedule.validate(model)
        return schedule

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
        return subnet_name(self.bricks_at(sigma, progress))

    def resolve(self, scheduler: Any) -> list[tuple[int, ...]]:
        """The bricks of each step, once `scheduler.set_timesteps` has been called.

        Both evaluations of a second-order step use the bricks of its beginning.
        """
        num_steps = math.ceil(len(scheduler.timesteps) / scheduler.order)
        sigmas = [float(scheduler.sigmas[step * scheduler.order]) for step in range(num_steps)]
        return [self.bricks_at(sigma, step / num_steps) for step, sigma in enumerate(sigmas)]

    def operations(self, model: Any, scheduler: Any, height: int, width: int) -> int:
        """Counted operations of the network's evaluations for one image, once `scheduler.set_timesteps` was called.

        Heun's second evaluations are included. Guidance evaluates everything twice and so doubles the number.

        Args:
            model: a `LegoTransformer2DModel`.
            scheduler: the sampler's.
            height: of what the network sees (for latent models, of the latents).
            width: likewise.
        """
        costs, order = model.subnets(height, width), scheduler.order
        return sum(
            len(scheduler.timesteps[step * order : (step + 1) * order]) * costs[subnet_name(bricks)]
            for step, bricks in enumerate(self.resolve(scheduler))
        )

    def validate(self, model: Any) -> None:
        """Raise a `ValueError` unless the schedule is for this stack, and for subsets its weights were trained for."""
        windows = _windows_of(model)
        if windows != self.window_sizes:
            raise ValueError(
                f"The schedule is for {len(self.window_sizes)} bricks with windows of {_arrows(self.window_sizes)} "
                f"pixels, the model has {len(windows)} with {_arrows(windows)}; build one for this model, for example "
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
        """The schedule as plain JSON values."""
        return {"window_sizes": list(self.window_sizes), "rules": [rule.to_list() for rule in self.rules]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BrickSchedule":
        """Undo `to_dict`; unknown and missing keys are errors."""
        keys = {"window_sizes", "rules"}
        if not isinstance(values, Mapping) or set(values) != keys:
            came = sorted(map(str, values)) if isinstance(values, Mapping) else values
            raise ValueError(f"A brick schedule has exactly the keys {sorted(keys)}, not {came!r}.")
        windows = values["window_sizes"]
        if not isinstance(windows, Sequence) or not all(type(window) is int for window in windows):
            raise ValueError(f"`window_sizes` is {windows!r}; give a list of whole numbers.")
        if not isinstance(values["rules"], Sequence):
            raise ValueError(f"`rules` is {values['rules']!r}; give a list with one rule a brick.")
        return cls(tuple(windows), tuple(BrickRule.from_list(rule) for rule in values["rules"]))

    def __str__(self) -> str:
        """A table with one line a brick."""
        lines = ["brick  window  runs"]
        lines += [
            f"{brick:<5}  {window:<6}  {rule}"
            for brick, (window, rule) in enumerate(zip(self.window_sizes, self.rules))
        ]
        return "\n".join(lines)

    def _check_points(self) -> list[tuple[float, float]]:
        """Noise levels and shares of the steps between which nothing changes: every end, and the middles."""
        rules = self.rules
        sigmas = _points({end for rule in rules if rule.unit == "sigma" for end in rule.ends})
        shares = sorted({0.0, *(end for rule in rules if rule.unit == "steps" for end in rule.ends)})
        return [(sigma, share) for share in shares if share < 1 for sigma in sigmas]


def stack_layout(window_sizes: Sequence[int]) -> str | None:
    """The paper's name for a stack, from its windows: `"PG"` (they grow), `"PR"` (they shrink), `"U"` (they shrink,
    then grow), or `None`."""
    steps = [b - a for a, b in zip(window_sizes, window_sizes[1:]) if b != a]
    grows = [step > 0 for step in steps]
    if not steps or grows != sorted(grows):
        return None
    if all(grows):
        return "PG"
    return "U" if any(grows) else "PR"


def _windows_of(model: Any) -> tuple[int, ...]:
    windows = getattr(getattr(model, "config", None), "window_sizes", None)
    if windows is None:
        raise ValueError(f"`model` is a {type(model).__name__}; brick schedules need a LegoTransformer2DModel.")
    return tuple(windows)


def _arrows(window_sizes: Sequence[int]) -> str:
    return ", ".join(str(window) for window in window_sizes)


def _sigma_rule(brick: int, rules: Mapping[int, Sequence | None]) -> BrickRule:
    if brick not in rules:
        return BrickRule()
    rule = rules[brick]
    if rule is None:
        return BrickRule("never")
    pairs = rule if isinstance(rule, Sequence) and rule and _is_pair(rule[0]) else [rule]
    if not all(_is_pair(pair) for pair in pairs):
        raise ValueError(
            f"`rules[{brick}]` is {rule!r}; give (sigma_low, sigma_high), a list of such pairs, or None to leave the "
            "brick out."
        )
    return BrickRule.of_ranges("sigma", pairs)


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _rule_of_levels(brick: int, levels: Sequence[float], bricks: Sequence[tuple[int, ...]]) -> BrickRule:
    """When a brick runs, from the rising noise levels and the bricks that run at each."""
    middles = [float(f"{math.sqrt(a * b):.6g}") for a, b in zip(levels, levels[1:])]
    ends, ranges = [0.0, *middles, math.inf], []
    for low, high, running in zip(ends, ends[1:], bricks):
        if brick in running and ranges and ranges[-1][1] == low:
            ranges[-1] = (ranges[-1][0], high)
        elif brick in running:
            ranges.append((low, high))
    if not ranges:
        return BrickRule("never")
    return BrickRule() if ranges == [(0.0, math.inf)] else BrickRule.of_ranges("sigma", ranges)


def _describe_noise(low: float, high: float) -> str:
    upper = "and above" if math.isinf(high) else f"to {high:g}"
    return f"at noise {low:g} {upper}"


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
    return sorted([*ordered, *(math.sqrt(a * b) for a, b in zip(ordered, ordered[1:]))])
