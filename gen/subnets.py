"""The cheaper versions of a network that live inside it, by name.

A network with subnets has `subnets(height, width) -> {name: operations}` and runs one by the bricks in its name.
"""

from collections.abc import Iterable
from itertools import combinations


def subnet_name(bricks: Iterable[int]) -> str:
    """`(0, 2)` => `"0+2"`."""
    return "+".join(str(brick) for brick in bricks)


def subnet_bricks(name: str) -> tuple[int, ...]:
    """`"0+2"` => `(0, 2)`."""
    try:
        return tuple(int(part) for part in name.split("+"))
    except ValueError:
        raise ValueError(f"`name` is {name!r}; a subnet is brick numbers joined by '+', such as '0+2'.") from None


def brick_subsets(num_bricks: int, kind: str) -> list[tuple[int, ...]]:
    """The subsets of a stack that were trained: early exits (`"prefix"`), or every non-empty set (`"any"`)."""
    if kind == "prefix":
        return [tuple(range(length)) for length in range(1, num_bricks + 1)]
    if kind == "any":
        bricks = range(num_bricks)
        return [subset for length in range(1, num_bricks + 1) for subset in combinations(bricks, length)]
    raise ValueError(f"`kind` is {kind!r}; choose 'prefix' or 'any'.")
