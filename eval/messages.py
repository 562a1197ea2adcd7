"""The wording of errors that several parts of the evaluation share."""

import difflib
from collections.abc import Iterable, Sequence


def choice_error(argument: str, value: object, choices: Iterable[str]) -> ValueError:
    """The error for a name that is not among `choices`, with the nearest one offered."""
    choices = sorted(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{argument}: got {value!r}, need one of {', '.join(choices)}{hint}")


def count_and_name(items: Sequence[str], limit: int = 5) -> str:
    """`"7 (a.png, b.png, c.png, d.png, e.png, …)"`: how many, and the first few by name."""
    shown = ", ".join(items[:limit])
    return f"{len(items)} ({shown}{', …' if len(items) > limit else ''})"
