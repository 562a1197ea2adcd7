"""Cells of a study: what each result depends on, and where it is kept, so that nothing is computed twice.

A study's folder holds `study.json`, its conditions, and for each finished cell `CELL/cell.json`: its identity, a
digest of that and of the conditions, and the result.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brickwork.files import digest, plain, read_json, write_json

STUDY, TASK, RESULT = "study.json", "task.json", "cell.json"
STOPPED = 3  # exit status of a cell that was asked to stop
MISSING = object()


class Stopped(Exception):
    """A cell was asked to stop and has kept what it needs to go on."""


@dataclass(frozen=True)
class Cell:
    """One result of a study, in a folder of its own.

    Attributes:
        name: of its folder below the study's, such as `"cells/dit-seed0"`; messages call the cell so.
        run: computes the result, a JSON value; called as `run(folder, **identity, **settings)`. `"module:function"` is
            called in a process of its own, a function in this one.
        identity: what the result depends on beside the study's conditions; JSON values.
        settings: what it does not depend on: where things lie, how many at once.
        alone: never while another cell is at work, because it measures time or memory.
        describe: a line on its result, for the terminal.
    """

    name: str
    run: str | Callable[..., Any]
    identity: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False
    describe: Callable[[Any], str] = field(default=lambda result: "done", repr=False)


class StudyFolder:
    """A study's folder, begun or continued.

    Args:
        path: of the folder.
        study: name of the study.
        conditions: what is equal for all cells; JSON values. A folder of other conditions is refused.
        free: dotted keys of conditions that may change under way: where data lie, how many workers load them.
        write: begin or continue it; otherwise it is only checked.
        overwrite: begin an earlier one of this study anew, whatever its conditions: its results are forgotten.

    Raises:
        ValueError: for a folder of other conditions or of something else, naming the difference.
    """

    def __init__(
        self,
        path: str | Path,
        study: str,
        conditions: Mapping[str, Any],
        free: Iterable[str] = (),
        write: bool = True,
        overwrite: bool = False,
    ):
        self.path, self.study = Path(path), study
        self.conditions, self.free = plain(conditions), tuple(free)
        self._check(overwrite)
        if write:
            for name in self.results() if overwrite else ():
                (self.path / name / RESULT).unlink()
            write_json(self.path / STUDY, {"study": study, "free": list(self.free), "conditions": self.conditions})

    @classmethod
    def read(cls, path: str | Path, study: str) -> "StudyFolder":
        """The folder of a study as it is, finished or not.

        Raises:
            ValueError: for a folder without a study of this name.
        """
        file = Path(path) / STUDY
        found = read_json(file, "study") if file.is_file() else {}
        if found.get("study") != study or not isinstance(found.get("conditions"), dict):
            raise ValueError(f"{str(path)!r} holds no {study} (no {STUDY} of one); name the folder of one.")
        return cls(path, study, found["conditions"], found.get("free", ()), write=False)

    def _check(self, overwrite: bool) -> None:
        file, named = self.path / STUDY, f"`--output` is {str(self.path)!r}"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{named}, which is a file; name a folder.")
        if not file.is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise ValueError(f"{named}, which holds something else and no {self.study}; name another folder.")
            return
        found = read_json(file, "study")
        if found.get("study") != self.study:
            raise ValueError(f"{named}, which holds a {found.get('study')} and no {self.study}; name another folder.")
        changed = changes(found["conditions"], self.conditions, self.free)
        if changed and not overwrite:
            raise ValueError(
                f"{named}, which holds another {self.study}: {'; '.join(changed[:4])}. Put the values back to go on, "
                "or name another folder."
            )

    def head(self, cell: Cell) -> dict[str, Any]:
        """What a cell's file says beside the result."""
        identity = plain(cell.identity)
        equal = {key: value for key, value in leaves(self.conditions).items() if key not in self.free}
        return {
            "cell": cell.name,
            "digest": digest(json.dumps([equal, identity], sort_keys=True)),
            "identity": identity,
        }

    def find(self, cell: Cell) -> Any:
        """A cell's result, `MISSING` where there is none yet.

        Raises:
            ValueError: for the result of another identity, naming the difference, or a file that cannot be read.
        """
        file = self.path / cell.name / RESULT
        if not file.is_file():
            return MISSING
        found, head = read_json(file, "result"), self.head(cell)
        if found.get("digest") != head["digest"]:
            changed = changes(found.get("identity") or {}, head["identity"]) or ["the study's conditions have changed"]
            raise ValueError(
                f"{str(file)!r} was computed otherwise: {'; '.join(changed[:4])}. Put the values back, remove the "
                "file, or name another folder."
            )
        return found["result"]

    def compute(self, cell: Cell) -> Any:
        """A cell's result, computed in this process where it is not there yet, and kept."""
        result = self.find(cell)
        if result is MISSING:
            folder = self.path / cell.name
            result = keep(folder, self.head(cell), lambda: cell.run(folder, **cell.identity, **cell.settings))
        return result

    def results(self, under: str = "") -> dict[str, Any]:
        """What is finished, by the cells' names, in their order; `under` a part of the folder, such as `"cells"`."""
        files = sorted((self.path / under).rglob(RESULT))
        found = {str(file.parent.relative_to(self.path)): read_json(file, "result") for file in files}
        return {name: content["result"] for name, content in found.items() if "digest" in content}


def keep(folder: Path, head: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """Compute a result and write it beside what it depends on, with the seconds that it took."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    result = plain(compute())
    write_json(folder / RESULT, {**head, "seconds": round(time.monotonic() - started, 3), "result": result})
    return result


def folder_name(name: str) -> str:
    """A name as part of a cell's: whatever is no letter or digit becomes a hyphen."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    """`{"run": {"seed": 0}}` => `{"run.seed": 0}`."""
    if not isinstance(values, Mapping) or not values:
        return {path: values}
    parts = [leaves(value, f"{path}.{key}" if path else str(key)) for key, value in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def changes(before: Mapping[str, Any], now: Mapping[str, Any], free: Iterable[str] = ()) -> list[str]:
    """What differs between two sets of plain values, one text a key."""
    old, new = leaves(before), leaves(now)
    return [
        f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if key not in free and old.get(key) != new.get(key)
    ]
