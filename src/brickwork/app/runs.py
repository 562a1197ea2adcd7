"""Training runs to watch: their curves and grids of samples, from the files that they write."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from brickwork.app.roots import Roots, is_run
from brickwork.training.engine.page import curves, read_log

_SAMPLE = re.compile(r"images-\d+\.png")
_POINTS, _SHEETS = 400, 12


def run_folder(roots: Roots, name: str) -> Path:
    """The folder of a run.

    Raises:
        ValueError: for another folder.
    """
    folder = roots.find(name, "run")
    if not is_run(folder):
        raise ValueError(f"`run` is {name!r}, which is no training run (no config.yaml and starts.jsonl).")
    return folder


def watch(folder: Path) -> dict:
    """Curves, grids and how far a run is, as JSON values."""
    series = read_log(folder / "log.jsonl")
    images = max((line[-1][0] for line in series.values()), default=0)
    plots = [
        {"title": plot.title, "series": {name: _thinned(xs, ys) for name, (xs, ys) in plot.series.items()}}
        for plot in curves(series)
    ]
    sheets = sorted(file.name for file in (folder / "samples").glob("*.png") if _SAMPLE.fullmatch(file.name))
    return {
        "run": str(folder),
        "images": images,
        "plots": plots,
        "samples": sheets[: -_SHEETS - 1 : -1],
        "pipeline": (folder / "pipeline" / "model_index.json").is_file(),
    }


def sample_file(roots: Roots, folder: Path, name: str) -> Path:
    """The file of one of a run's grids; a `ValueError` for another name."""
    file = folder / "samples" / name
    if not _SAMPLE.fullmatch(name) or not file.is_file() or not roots.holds(file):
        raise ValueError(f"`samples` is {name[:80]!r}, which this run does not have.")
    return file


def _thinned(xs: Sequence, ys: Sequence) -> list[list[float]]:
    points = [[x, y] for x, y in zip(xs, ys) if isinstance(y, int | float) and math.isfinite(y)]
    step = max(1, math.ceil(len(points) / _POINTS))
    return points[::-1][::step][::-1]  # the last point is always there
