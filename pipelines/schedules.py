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
    """When one brick runs: always, never, within a range of noise levels, or within a share of the steps.

    Attributes:
        unit: `"always"`, `"never"`, `"sigma"` or `"steps"`.
        low: lower end; a noise level for `"sigma"`, a share of the steps done for `"steps"` (0 is the start, at the
            highest noise).
        high: upper end, in the same unit. Noise ranges include both ends, shares of the steps only the lower one.
    """

    unit: str = "always"
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self):
        if self.unit not in ("always", "never", "sigma", "steps"):
            raise ValueError(f"`unit` is {self.unit!r}; choose one of always, never, sigma, steps.")
        if not 0 <= self.low < self.high:
            raise ValueError(f"The rule runs from {self.low} to {self.high}; the ends must rise and not be below 0.")

    def runs(self, sigma: float, progress: float) -> bool:
        """Whether the brick runs at noise level `sigma`, when the share `progress` of the steps is done."""
        if self.unit == "sigma":
            return self.low * (1 - _TOLERANCE) <= sigma <= self.high * (1 + _TOLERANCE)
        if self.unit == "steps":
            return self.low <= progress + 1e-9 < self.high
        return self.unit == "always"

    def to_list(self) -> list:
        """`["sigma", low, high]`, fit for JSON: an open upper end is `None`."""
        if self.unit in ("always", "never"):
            return [self.unit]
        return [self.unit, self.low, None if math.isinf(self.high) else self.high]

    @classmethod
    def from_list(cls, values: Sequence) -> "BrickRule":
        """Undo `to_list`."""
        well_formed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) in (1, 3)
        if not well_formed or (len(values) == 1) != (values[0] in ("always", "never")):
            raise ValueError(f"A rule is {values!r}; write ['always'], ['never'] or ['sigma' | 'steps', low, high].")
        if len(values) == 1:
            return cls(values[0])
        unit, low, high = values
        return cls(unit, _number("low", low, 0.0), _number("high", high, math.inf))

    def __str__(self) -> str:
        if self.unit == "sigma":
            upper = "and above" if math.isinf(self.high) else f"to {self.high:g}"
            return f"at noise {self.low:g} {upper}"
        if self.unit == "steps":
            if self.low <= 0:
                return f"in the first {self.high:.0%} of the steps (high noise)"
            if self.high >= 1:
                return f"in the last {1 - self.low:.0%} of the steps (low noise)"
            return f"from {self.low:.0%} to {self.high:.0%} of the steps"
        return self.unit


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
    def from_rules(cls, model: Any, rules: Mapping[int, tuple[float | None, float | None] | None]) -> "BrickSchedule":
        """Say for each brick in which range of noise levels it runs.

        Args:
            model: a `LegoTransformer2DModel`.
            rules: `{brick: (sigma_low, sigma_high)}`, both ends included, `None` for an open end. `{brick: None}`
                leaves a brick out altogether; bricks without a rule always run.

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
        sigmas = _points({end for rule in rules if rule.unit == "sigma" for end in (rule.low, rule.high)})
        shares = sorted({0.0, *(end for rule in rules if rule.unit == "steps" for end in (rule.low, rule.high))})
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


def _sigma_rule(brick: int, rules: Mapping[int, tuple[float | None, float | None] | None]) -> BrickRule:
    if brick not in rules:
        return BrickRule()
    rule = rules[brick]
    if rule is None:
        return BrickRule("never")
    if not isinstance(rule, Sequence) or len(rule) != 2:
        raise ValueError(
            f"`rules[{brick}]` is {rule!r}; give (sigma_low, sigma_high), or None to leave the brick out."
        )
    return BrickRule("sigma", _number("sigma_low", rule[0], 0.0), _number("sigma_high", rule[1], math.inf))


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
