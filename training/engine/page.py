"""One HTML page for a run: what it is, curves of everything it logged, and its grids of samples. Needs no network."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from brickwork.eval.report.blocks import Code, Panels, Picture, Plot, Report


def log_entries(file: Path) -> Iterator[dict]:
    """The entries of a `log.jsonl`; lines that a kill or a full disk cut short are left out."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "images" in values:
            yield values


def read_log(file: Path) -> dict[str, list[tuple[int, float]]]:
    """`log.jsonl` => `{name: [(images, value), …]}`."""
    series = defaultdict(list)
    for values in log_entries(file):
        images = values.pop("images")
        values.pop("time", None)
        for name, value in values.items():
            series[name].append((images, value))
    return dict(series)


def curves(series: dict[str, list[tuple[int, float]]]) -> list[Plot]:
    """A plot for every series; losses by noise level and by brick share one."""
    groups: dict[str, dict] = defaultdict(dict)
    for name, line in series.items():
        section, _, rest = name.partition("/")
        together = section.endswith("_at") or rest.startswith("brick_")
        title = f"{section}/bricks" if rest.startswith("brick_") else section if together else name
        groups[title][rest if together else name] = tuple(zip(*line))
    return [Plot(lines, "images", title=title) for title, lines in groups.items()]


def run_page(folder: Path) -> str:
    """The page of a run's folder, as HTML; pictures are linked, so it lives in that folder."""
    plots = curves(read_log(folder / "log.jsonl"))
    pictures = sorted((folder / "samples").glob("images-*.png"), reverse=True)
    grids = [Picture(path, f"{int(path.stem.removeprefix('images-')):,} images") for path in pictures]
    configuration = folder / "config.yaml"
    blocks = [
        Panels(plots, caption="Over images seen: " + ", ".join(plot.title for plot in plots)) if plots else None,
        "## Samples of the averaged weights, same noise every time" if grids else None,
        *grids,
        Code(configuration.read_text(encoding="utf-8"), "Configuration") if configuration.exists() else None,
    ]
    return Report(folder.name, blocks).html(beside=folder)
