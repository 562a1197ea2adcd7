"""A study: its conditions, its cells stage by stage, and the report of what they found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brickwork.eval.studies.core.cells import Cell, StudyFolder
from brickwork.eval.studies.core.processes import run_cells
from brickwork.files import plain, write_json

Columns = Mapping[str, Callable[[Any], Any]]


@dataclass(frozen=True)
class Study:
    """What is compared, and how it is told.

    Attributes:
        name: of the study, and of its report's files: `NAME.md`, `NAME.json`, pictures beside `index.html`.
        conditions: what is equal for all cells: data, seeds, budgets; JSON values.
        stages: each gives the cells of one stage, from the results so far by the cells' names; those of a stage do
            not depend on one another.
        report: gives the report and further values for `NAME.json`, from the folder; `None` for none.
        free: dotted keys of the conditions that may change under way, as they change no result.
    """

    name: str
    conditions: Mapping[str, Any]
    stages: Sequence[Callable[[Mapping[str, Any]], Sequence[Cell]]]
    report: Callable[[StudyFolder], tuple[Any, Mapping[str, Any]]] | None
    free: Sequence[str] = ()

    def open(self, folder: str | Path, write: bool = True) -> StudyFolder:
        """Its folder, begun or continued, or only checked; a `ValueError` for one of other conditions."""
        return StudyFolder(folder, self.name, self.conditions, self.free, write=write)


def run_study(study: Study, folder: str | Path, jobs: int = 1) -> bool:
    """Compute the cells that are not there yet, and write the report.

    Args:
        study: to run.
        folder: of the study; a finished cell is never computed again, and other conditions are refused.
        jobs: processes at a time.

    Returns:
        Whether it is over; not after SIGTERM or SIGINT, after which the same call goes on.

    Raises:
        ValueError: for a folder of other conditions, and for cells that fail, by their names.
    """
    if jobs < 1:
        raise ValueError(f"`--jobs` is {jobs}; give at least 1.")
    kept = study.open(folder)
    results: dict[str, Any] = {}
    for stage in study.stages:
        found = run_cells(kept, stage(results), jobs)
        if found is None:
            print("Stopped; the same command goes on from there.", flush=True)
            return False
        results |= found
    if study.report is not None:
        write_report(kept, study.report)
    return True


def write_report(folder: StudyFolder, report: Callable[[StudyFolder], tuple[Any, Mapping[str, Any]]]) -> None:
    """Write the report of a study, finished or not, into its folder; an earlier report of it is replaced.

    Args:
        folder: of the study.
        report: see `Study`.
    """
    told, values = report(folder)
    told.write(folder.path, folder.study)
    everything = {"format": f"brickwork-{folder.study}/1", "conditions": folder.conditions, **values}
    write_json(folder.path / f"{folder.study}.json", plain(everything))
    print(f"The report is in {folder.path}: index.html, {folder.study}.md, {folder.study}.json.", flush=True)


def table_of(rows: Sequence[Any], columns: Columns, caption: str = "") -> Any:
    """A table of the report: what each column makes of each row; a column that makes `None` of all is left out."""
    from brickwork.eval.report.blocks import Table

    made = {title: [make(row) for row in rows] for title, make in columns.items()}
    shown = {title: cells for title, cells in made.items() if not rows or any(cell is not None for cell in cells)}
    return Table(list(shown), list(zip(*shown.values())), caption)
