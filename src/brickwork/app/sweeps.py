"""Sweeps over sizes and strengths: `brickwork sweep` in a process of its own, which can be stopped and goes on."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from brickwork.app.drawing import Side, Source, Strength, Text

_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,39}")
_TAIL = 4_000  # characters of the log that are shown


class Sweep(Source):
    """What is swept; see `brickwork sweep --help`."""

    name: Text
    sizes: Annotated[list[Side], Field(min_length=1, max_length=12)]
    ratios: Annotated[list[Annotated[str, StringConstraints(pattern=r"^\d{1,3}:\d{1,3}$")]], Field(max_length=8)] = []
    prompt: Text = ""
    adapter: Text | None = None
    strengths: Annotated[list[Strength], Field(max_length=8)] = []
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    count: Annotated[int, Field(ge=1, le=16)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0


class Sweeps:
    """Sweeps in a folder, one process at a time.

    Args:
        folder: holds one folder for each.
        token: of the hub; handed on in the environment, as other users of this machine see command lines.
    """

    def __init__(self, folder: Path, token: str | None = None):
        self.folder = folder
        self._told = {} if token is None else {"HF_TOKEN": token}
        self._process: subprocess.Popen | None = None
        self._name, self._lock = "", threading.Lock()

    def start(self, sweep: Sweep, model: str, adapter: str | None, device: str | None = None) -> dict:
        """Start one, or go on with one of the same name and settings.

        Args:
            sweep: the settings.
            model: as the command takes it.
            adapter: likewise.
            device: likewise.

        Raises:
            ValueError: for a name that is none, and while another runs.
        """
        folder = self.path(sweep.name)
        with self._lock:
            if self.running():
                raise ValueError(f"The sweep {self._name!r} is still running; stop it, or wait.")
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
                self._process = subprocess.Popen(
                    command(sweep, model, adapter, folder, device),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | self._told,
                )
            self._name = sweep.name
        return self.state(sweep.name)

    def path(self, name: str) -> Path:
        """The folder of a sweep; a `ValueError` for a name that is none."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"`name` is {name[:60]!r}; give letters, digits, - and _, at most 40.")
        return self.folder / name

    def running(self) -> bool:
        """Whether one runs."""
        return self._process is not None and self._process.poll() is None

    def state(self, name: str) -> dict:
        """What a sweep has said and drawn so far, as JSON values."""
        folder = self.path(name)
        log = folder.with_suffix(".log")
        text = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:] if log.is_file() else ""
        running = self.running() and self._name == name
        sheet = folder / "sheet.png"
        stamp = sheet.stat().st_mtime_ns if sheet.is_file() else None
        return {"name": name, "running": running, "log": text.replace("\r", "\n"), "sheet": stamp and str(stamp)}

    def stop(self) -> None:
        """End the one that runs; started again, it goes on."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(10)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()

    close = stop


def command(sweep: Sweep, model: str, adapter: str | None, folder: Path, device: str | None) -> Sequence[str]:
    """The words of the command line; what a person typed stands behind `=`, so that none of it is an option."""
    words = [sys.executable, "-m", "brickwork", "sweep", model, f"--output={folder}"]
    words += [f"--{name}={value}" for name in ("revision", "variant") if (value := getattr(sweep, name))]
    words += ["--sizes", *map(str, sweep.sizes)]
    words += ["--ratios", *sweep.ratios] if sweep.ratios else []
    words += [f"--prompt={sweep.prompt}"] if sweep.prompt else []
    words += [f"--adapter={adapter}"] if adapter else []
    words += ["--strengths", *(f"{strength:g}" for strength in sweep.strengths)] if sweep.strengths else []
    words += [f"--steps={sweep.steps}"] if sweep.steps else []
    words += [f"--device={device}"] if device else []
    return [*words, f"--count={sweep.count}", f"--seed={sweep.seed}"]
