"""Schedules as a command line names them: by a word, or by a file."""

from pathlib import Path
from typing import Any

from brickwork.files import read_json
from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule, read_schedule, schedule_kind


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
