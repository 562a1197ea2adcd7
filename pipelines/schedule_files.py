"""Schedules as a command line names them: by a word, or by a file."""

import json
from pathlib import Path
from typing import Any

from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule, read_schedule, schedule_kind


def schedule_from_file(path: str | Path) -> BrickSchedule | SubnetSchedule:
    """A schedule from a file that `brickwork search` wrote, or from `to_dict` as JSON.

    Raises:
        ValueError: for a file that is none.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"`--schedule` is {str(path)!r}, which is no JSON ({error}); give what `brickwork search` wrote."
        ) from None
    nested = isinstance(values, dict) and isinstance(values.get("schedule"), dict)
    return read_schedule(values["schedule"] if nested else values)


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
