"""The wording of errors: what was given, what is allowed, what comes near.

One wording for the package: "`argument` is VALUE; …" names the argument as its user knows it, the value, and
what to do. Imports nothing of ours.
"""

import difflib
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxdict, _BRIEF.maxlist, _BRIEF.maxtuple = 3, 6, 12, 12
_BRIEF.maxstring = _BRIEF.maxother = 200


class MissingFile(OSError, ValueError):
    """Something to be read is not there. diffusers' callers look for an `OSError`, ours for a `ValueError`."""


def shown(value: Any) -> str:
    """A value as an error shows it: `repr`, cut short, so that no value makes an error long or slow."""
    return _BRIEF.repr(value)


def near_names(name: object, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Those of `known` that `name` may have been meant to be, the nearest first; case does not matter."""
    by_folded = {str(entry).casefold(): str(entry) for entry in known}
    found = difflib.get_close_matches(str(name)[:200].casefold(), by_folded, n=count, cutoff=cutoff)
    return [by_folded[entry] for entry in found]


def advice(name: object, known: Iterable[str], allowed: str = "choose one of", limit: int = 40) -> str:
    """`"did you mean 'dit'?"`, or where nothing comes near, `"choose one of dit, i2rmb, …."`."""
    known = list(map(str, known))
    near = near_names(name, known)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = ", ".join(known[:limit])
    return f"{allowed} {shown}{', …' if len(known) > limit else ''}." if known else "there is none to choose."


def one_of(argument: str, value: Any, choices: Collection[str] | Mapping[str, Any]) -> Any:
    """`value`, or what `choices` maps it to.

    Args:
        argument: as its user knows it: a keyword, `section.key`, or `--option`.
        value: what was given.
        choices: names, or a registry by name.

    Raises:
        ValueError: for a value that is not among them, with the one that comes near.
    """
    if isinstance(value, str) and value in choices:
        return choices[value] if isinstance(choices, Mapping) else value
    raise ValueError(f"`{argument}` is {shown(value)}; {advice(value, choices)}")


def counted(number: int, noun: str = "image") -> str:
    """`1` => `"1 image"`, `1600` => `"1,600 images"`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def loader_of(argument: str, value: str, loaders: Mapping[str, Callable]) -> Callable:
    """What loads `value`: one of the names, or one that ends in a colon, bound to the folder or hub id behind it.

    Raises:
        ValueError: as `one_of` does.
    """
    kind, colon, source = value.partition(":")
    if source and kind + colon in loaders:
        return partial(loaders[kind + colon], source)
    known = {f"{name}<folder or hub id>" if name.endswith(":") else name: load for name, load in loaders.items()}
    return one_of(argument, value, known)


def whole_number(argument: str, value: Any, least: int = 1, of: str = "", more: str = "") -> int:
    """`value`, or a `ValueError` unless it is a whole number from `least` up.

    Args:
        argument: as for `one_of`.
        value: what was given.
        least: the smallest that is allowed.
        of: what it counts, for the error.
        more: further advice, for the error.
    """
    if type(value) is not int or value < least:
        raise ValueError(
            f"`{argument}` is {shown(value)}; give a whole number{of and f' of {of}'} from {least} up{more}."
        )
    return value


def no_unknown(argument: str, given: Iterable[str], known: Iterable[str], owner: str = "it") -> None:
    """Raise a `ValueError` for the first of the `given` keys that is not `known`, with the one that comes near.

    Args:
        argument: what holds the keys.
        given: keys.
        known: those allowed.
        owner: who takes them, for the error.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            fix = advice(key, known, f"{owner} takes")
            raise ValueError(f"`{argument}` has {shown(key)}, which {owner} does not take; {fix}")


@contextmanager
def explained(text: str, *errors: type[Exception], kind: type[ValueError] = ValueError) -> Iterator[None]:
    """A `with` block whose errors become a `ValueError` that says what is wrong: the text, a colon, the error.

    Args:
        text: such as "`model.wrap` is 'x'".
        errors: which; by default those of files that are missing or hold something else, `OSError` and `ValueError`.
        kind: of the error, such as `MissingFile`.
    """
    errors = errors or (OSError, ValueError)
    try:
        yield
    except errors as error:
        raise kind(f"{text}: {error}") from error


def count_and_name(items: Sequence[str], limit: int = 5) -> str:
    """`"7 (a.png, b.png, c.png, d.png, e.png, …)"`: how many, and the first few by name."""
    shown = ", ".join(items[:limit])
    return f"{len(items)} ({shown}{', …' if len(items) > limit else ''})"
