"""The networks inside a network: cheaper versions of it that share its weights, by name.

Every network of ours has `subnets(height, width) -> {name: operations}`, from the cheap ones to the network itself,
and `forward(…, subnet=name)`. One without cheaper versions has `"full"` alone; LEGO's are sets of bricks (`"0+2"`).
Search, schedules and pipelines know nothing else of them.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

from brickwork.errors import advice, one_of

FULL = "full"
_FULL_NAMES = (None, FULL, "whole")


class Subnets(dict[str, int]):
    """Operations of a forward pass of one image by subnet; `"full"` and `"whole"` find the last, the full network."""

    def __missing__(self, name: str) -> int:
        if name in _FULL_NAMES and self:
            return list(self.values())[-1]
        raise KeyError(name)


def find_subnet(name: str | None, known: Sequence[str]) -> str:
    """One of the `known` names, the last of which is the network itself: what `None`, `"full"` and `"whole"` mean.

    Raises:
        ValueError: for an unknown name, with the one that comes near.
    """
    return known[-1] if name in _FULL_NAMES else one_of("subnet", name, known)


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
    if name in _FULL_NAMES and num_bricks is not None:
        return tuple(range(num_bricks))
    try:
        return tuple(int(part) for part in name.split("+"))
    except (AttributeError, ValueError):
        hint = advice(name, [FULL], "a subnet of bricks is their numbers joined by '+', such as '0+2', or")
        raise ValueError(f"`subnet` is {name!r}; {hint}") from None


def brick_subsets(num_bricks: int, kind: str) -> list[tuple[int, ...]]:
    """The subsets of a stack that were trained: early exits (`"prefix"`), or every non-empty set (`"any"`)."""
    if one_of("kind", kind, ("prefix", "any")) == "prefix":
        return [tuple(range(length)) for length in range(1, num_bricks + 1)]
    bricks = range(num_bricks)
    return [subset for length in range(1, num_bricks + 1) for subset in combinations(bricks, length)]


subnet_name, subnet_bricks = name_of, bricks_of  # the former names
