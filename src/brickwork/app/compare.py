"""Pictures side by side: full and fast, an adapter off and at several strengths, from the same seeds."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from brickwork.app.drawing import Settings, Strength


class Comparison(BaseModel):
    """What is compared.

    Attributes:
        settings: that all share.
        schedules: in turn; empty for that of the settings.
        adapter: by the name it was loaded by, at each of `strengths`.
        strengths: 0 is off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    settings: Settings
    schedules: Annotated[list[str], Field(max_length=8)] = []
    adapter: str | None = None
    strengths: Annotated[list[Strength], Field(max_length=8)] = []


def variants(comparison: Comparison) -> list[tuple[str, Settings]]:
    """Caption and settings of each: every schedule at every strength.

    Raises:
        ValueError: for fewer than two, and strengths without an adapter.
    """
    if comparison.strengths and not comparison.adapter:
        raise ValueError("`strengths` are of an adapter; name it, or leave them empty.")
    schedules = list(dict.fromkeys(comparison.schedules)) or [None]
    strengths = list(dict.fromkeys(comparison.strengths)) or [None]
    found: list[tuple[str, Settings]] = []
    for schedule in schedules:
        for strength in strengths:
            changed: dict[str, Any] = {} if schedule is None else {"schedule": schedule}
            if strength is not None:
                changed["adapters"] = comparison.settings.adapters | {comparison.adapter: strength}
            words = [schedule or ""]
            if strength is not None:
                words.append(f"adapter {strength:g}" if strength else "adapter off")
            found.append((", ".join(filter(None, words)), comparison.settings.model_copy(update=changed)))
    if len(found) < 2:
        raise ValueError("`schedules` and `strengths` give one picture; choose two of either to compare.")
    return found
