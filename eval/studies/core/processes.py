"""Cells at work: each in a process of its own, several at a time, or one after another in this process."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Self

from brickwork.errors import count_and_name
from brickwork.eval.studies.core.cells import MISSING, STOPPED, TASK, Cell, StudyFolder
from brickwork.files import write_json

LOG = "log.txt"


def run_cells(folder: StudyFolder, cells: Sequence[Cell], jobs: int = 1) -> dict | None:
    """The results of cells by name; those that are there are not computed again.

    Cells whose `run` is a function are computed in this process first, where Ctrl-C ends the one under way.

    Args:
        folder: of the study.
        cells: of different names.
        jobs: processes at a time.

    Returns:
        `None` after SIGTERM or SIGINT, when the cells at work have ended.

    Raises:
        ValueError: for a cell that fails, by its name and its last words, after the others have ended.
    """
    if jobs < 1:
        raise ValueError(f"`--jobs` is {jobs}; give at least 1.")
    found = {cell.name: folder.find(cell) for cell in cells}
    if len(found) < len(cells):
        raise ValueError(
            f"`cells` has names twice: {count_and_name([cell.name for cell in cells])}; each needs its own."
        )
    waiting = [cell for cell in cells if found[cell.name] is MISSING]

    def done(cell: Cell, started: float) -> None:
        number = sum(result is not MISSING for result in found.values())
        minutes = (time.monotonic() - started) / 60
        told = f"{cell.describe(found[cell.name])} ({minutes:.1f} min)"
        print(f"[{number}/{len(cells)}] {cell.name}: {told}", flush=True)

    for cell in [cell for cell in waiting if callable(cell.run)]:
        started = time.monotonic()
        found[cell.name] = folder.compute(cell)
        done(cell, started)
    elsewhere = [cell for cell in waiting if not callable(cell.run)]
    for cell, started in _in_processes(folder, elsewhere, jobs):
        found[cell.name] = folder.find(cell)
        done(cell, started)
    return None if MISSING in found.values() else found


def _in_processes(folder: StudyFolder, waiting: list[Cell], jobs: int) -> Iterator[tuple[Cell, float]]:
    """Cells as they finish, with the time when they began; ends early where a stop is asked for."""
    running: list[tuple[Cell, Popen, float]] = []
    asked = False
    try:
        with StopRequest() as stop:
            while running or (waiting and not stop.requested):
                while waiting and not stop.requested and _may_start(waiting[0], running, jobs):
                    cell = waiting.pop(0)
                    running.append((cell, _start(folder, cell, jobs), time.monotonic()))
                if stop.requested and not asked:
                    asked = True
                    _ask_to_stop(child for _, child, _ in running)
                time.sleep(0.1)
                for entry in [entry for entry in running if entry[1].poll() is not None]:
                    running.remove(entry)
                    cell, child, started = entry
                    if child.returncode == 0:
                        yield cell, started
                    elif not (asked or stop.requested) or child.returncode not in (STOPPED, -signal.SIGTERM):
                        words = last_words(folder.path / cell.name / LOG)
                        raise ValueError(
                            f"The cell {folder.path / cell.name} ended with status {child.returncode}: {words}"
                        )
    finally:
        _ask_to_stop(child for _, child, _ in running)
        for _, child, _ in running:
            child.wait()


def _may_start(cell: Cell, running: Sequence[tuple], jobs: int) -> bool:
    if cell.alone or any(other.alone for other, *_ in running):
        return not running
    return len(running) < jobs


def _start(folder: StudyFolder, cell: Cell, jobs: int) -> Popen:
    """A process that computes a cell; what it prints goes to the cell's log."""
    path = folder.path / cell.name
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / TASK, {"run": cell.run, "settings": dict(cell.settings), "head": folder.head(cell)})
    at_once = 1 if cell.alone else jobs
    with (path / LOG).open("a") as log:
        # A session of its own: Ctrl-C reaches this process alone, which passes it on.
        return Popen(
            [sys.executable, "-m", "brickwork.eval.studies.core.child", str(path)],
            stdout=log, stderr=log, stdin=DEVNULL, start_new_session=True,
            env={"OMP_NUM_THREADS": str(max(1, _cores() // at_once))} | os.environ,
        )  # fmt: skip


def _ask_to_stop(children: Iterable[Any]) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)


class StopRequest:
    """SIGTERM and SIGINT ask work to come to a good end.

    Launchers pass on the signals that their workers have got already, so further ones are ignored; only a second
    Ctrl-C after a few seconds, from someone who does not want to wait, ends the process at once.

    Used as a context manager, which puts the former handlers back. Signals are the main thread's: in another, nothing
    asks.

    Args:
        patience: seconds in which further signals are taken for copies of the first.
    """

    numbers = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, patience: float = 3.0):
        self.requested, self.patience = False, patience
        self._former, self._since = {}, 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._request) for number in self.numbers}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT and time.monotonic() - self._since > self.patience:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = True, time.monotonic()


def last_words(log: Path) -> str:
    """The error that a process ended with, or else the last line that it wrote, and where the rest is."""
    # A progress bar goes back to the start of its line, so that the error may stand in the middle of one.
    lines = log.read_text(encoding="utf-8", errors="replace").replace("error: ", "\nerror: ").strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()]
    return f"{(errors or lines or ['it said nothing'])[-1]} (all of it in {log})"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
