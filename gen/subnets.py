"""The networks inside a network: cheaper versions of it that share its weights, by name.

Every network of ours has `subnets(height, width) -> {name: operations}`, from the cheap ones to the network itself,
and `forward(…, subnet=name)`. One without cheaper versions has `"full"` alone; LEGO's are sets of bricks (`"0+2"`).
Search, schedules and pipelines know nothing else of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from brickwork.errors import advice, one_of

FULL = "full"
FULL_NAMES = (None, FULL, "whole")


class Subnets(dict[str, int]):
    """Operations of a forward pass of one image by subnet; `"full"` and `"whole"` find the last, the full network."""

    def __missing__(self, name: str) -> int:
        if name in FULL_NAMES and self:
            return list(self.values())[-1]
        raise KeyError(name)


def find_subnet(name: str | None, known: Sequence[str], argument: str = "subnet") -> str:
    """One of the `known` names, the last of which is the network itself: what `None`, `"full"` and `"whole"` mean.

    Raises:
        ValueError: for an unknown name, with the one that comes near.
    """
    return known[-1] if name in FULL_NAMES else one_of(argument, name, known)


def name_of(bricks: Iterable[int]) -> str:
    """`(0, 2)` => `"0+2"`."""
    return "+".join(str(brick) for brick in bricks)


def bricks_of(name: str | None, num_bricks: int | None = None) -> tuple[int, ...]:
    """`"0+2"` => `(0, 2)`.

    Args:
        name: brick numbers joined by `+`; of `num_bricks` also `None`, `"full"` and `"whole"` for all.
        num_bricks: of the stack, `None` if it does not matter.

    Raises:
        ValueError: for anything else.
    """
    if name in FULL_NAMES and num_bricks is not None:
        return tuple(range(num_bricks))
    try:
        return tuple(int(part) for part in name.split("+"))
    except (AttributeError, ValueError):
        hint = advice(name, [FULL], "a subnet of bricks is their numbers joined by '+', such as '0+2', or")
        raise ValueError(f"`subnet` is {name!r}; {hint}") from None


def patch_of(config: Mapping[str, Any], subnet: str | None = None) -> int:
    """The largest patch of a network of this configuration, or of a set of its bricks: no image may be smaller."""
    sides = config.get("patch_sizes")
    return max(sides[brick] for brick in bricks_of(subnet, len(sides))) if sides else config.get("patch_size") or 1


def brick_subsets(num_bricks: int, kind: str) -> list[tuple[int, ...]]:
    """The subsets of a stack that were trained: early exits (`"prefix"`), or every non-empty set (`"any"`)."""
    if one_of("kind", kind, ("prefix", "any")) == "prefix":
        return [tuple(range(length)) for length in range(1, num_bricks + 1)]
    bricks = range(num_bricks)
    return [subset for length in range(1, num_bricks + 1) for subset in combinations(bricks, length)]


class SubnetFamily:
    """How subnets are related, for a search among many: by their costs alone, unless a network says more.

    A network whose subnets share work has its own as `subnet_family`; names come from the costly to the cheap.
    """

    def within(self, name: str) -> tuple[str, ...]:
        """The subnets whose estimates one run hands out, in order; the last is the one that runs."""
        return (name,)

    def starts(self, names: Sequence[str], count: int) -> list[str]:
        """About `count` of them to begin a search with."""
        return evenly(names, count)

    def neighbours(self, names: Sequence[str]) -> dict[str, set[str]]:
        """For each, those to try next where it is good."""
        return {name: set(names[max(0, i - 1) : i + 2]) for i, name in enumerate(names)}

    def examples(self, names: Sequence[str], count: int) -> list[str]:
        """About `count` of them to be shown running throughout."""
        return evenly(names, count)


class BrickFamily(SubnetFamily):
    """Sets of bricks: a run hands out the estimate of every brick, so that of each set which begins it too."""

    def within(self, name: str) -> tuple[str, ...]:
        bricks = bricks_of(name)
        return tuple(name_of(bricks[: length + 1]) for length in range(len(bricks)))

    def starts(self, names: Sequence[str], count: int) -> list[str]:
        return self.examples(names, count)

    def neighbours(self, names: Sequence[str]) -> dict[str, set[str]]:
        sets = {name: bricks_of(name) for name in names}
        return {name: {name_of(b[:i] + b[i + 1 :]) for i in range(len(b)) if len(b) > 1} for name, b in sets.items()}

    def examples(self, names: Sequence[str], count: int) -> list[str]:
        """Every early exit and single brick, whatever the count."""
        return [name for name in names if len(bricks := bricks_of(name)) in (1, bricks[-1] + 1)]


def family_of(model: object) -> SubnetFamily:
    """How the subnets of a network, or of several by name, are related."""
    return getattr(model, "subnet_family", SubnetFamily())


def evenly(names: Sequence[str], count: int) -> list[str]:
    """At most so many of the names, at even distances, the first and (beyond one) the last among them."""
    last, count = len(names) - 1, min(count, len(names))
    return [names[i * last // max(count - 1, 1)] for i in range(count)]


subnet_name, subnet_bricks = name_of, bricks_of  # the former names
