"""Draw pictures above the training size and compare the gradient across the borders of the largest windows with the
gradient across the lines around them. 1 means no seam; the same seeds are drawn with windows that stay and with
windows that shift, and operations are counted for both. Writes seams.json, seams.png and the pictures, and prints the
table.

example:
  brickwork seams lego-avatars-64 --sizes 64x192 128x128 --count 16 -o runs/seams
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brickwork import hub, options
from brickwork.errors import one_of
from brickwork.eval.report.blocks import Plot, Report, Table
from brickwork.eval.report.numbers import between
from brickwork.eval.studies.core import table_of

KINDS = ("fixed", "shifted")
SIZES = ("64x128", "64x256", "192x64", "128x128", "192x192", "256x256")
RESAMPLES = 2000


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of `brickwork seams`."""
    options.add_common(parser, "model")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for table, plot and pictures")
    parser.add_argument(
        "--sizes", nargs="+", default=list(SIZES), metavar="HxW", help=f"pixels (default: {' '.join(SIZES)})"
    )
    parser.add_argument(
        "--windows", nargs="+", default=list(KINDS), help="fixed, shifted, tiled (default: fixed shifted)"
    )
    parser.add_argument("-n", "--count", type=int, default=8, help="pictures of each size (default: 8)")
    options.add_common(parser, "--guidance", default=1.0)
    options.add_common(parser, "--steps", "--seed", "--device", "--overwrite")
    options.add_hub(parser)
    parser.set_defaults(run=run, check=hub.check_argument("model"))


def run(args: argparse.Namespace) -> int:
    """Draw, measure, write everything and print the table."""
    from brickwork.eval.sampling.pipelines import load_lego_pipeline
    from brickwork.eval.studies.core import Cell, StudyFolder, run_cells, write_report
    from brickwork.pipelines.canvas import WINDOWS

    sizes = [parse_size(text) for text in args.sizes]
    for kind in args.windows:
        one_of("--windows", kind, WINDOWS)
    if args.count < 2:
        raise ValueError(f"`--count` is {args.count}; draw at least 2, or there is no spread.")
    pipe = load_lego_pipeline(args.model, args.device, **options.of_hub(args))
    pipe.set_progress_bar_config(disable=True)
    window, step = window_lines(pipe.transformer.config, pipe.vae_scale_factor)
    for height, width in sizes:
        if not border_lines(height, window, step) and not border_lines(width, window, step):
            raise ValueError(f"`--sizes` has {height}x{width}, which has no border of windows of {window} pixels.")
    settings = {name: getattr(args, name) for name in ("model", "steps", "guidance", "count", "seed")}
    settings |= {"window": window, "lines": step, "resamples": RESAMPLES}
    folder = StudyFolder(args.output, "seams", settings, overwrite=args.overwrite)
    variants = [(f"{kind}-{height}x{width}", height, width, kind) for height, width in sizes for kind in args.windows]
    compute = partial(_measure, pipe=pipe, args=args, lines=(window, step))
    cells = [
        Cell(f"cells/{name}", compute, {"height": height, "width": width, "windows": kind}, describe=_line)
        for name, height, width, kind in variants
    ]
    rows = list(run_cells(folder, cells).values())
    write_report(folder, partial(report, rows=rows))
    print(table(rows).markdown())
    return 0


def _measure(path: Path, *, height: int, width: int, windows: str, pipe, args: argparse.Namespace, lines) -> dict:
    """The row of a cell; its pictures go into the study's folder."""
    from brickwork.eval.report.pictures import grid, save_picture

    operations, images = _draw(pipe, args, height, width, windows)
    sheet = grid((images * 255).round().astype(np.uint8), columns=max(1, min(args.count, 1024 // width)))
    save_picture(sheet, args.output / f"{path.name}.png")
    row = {"height": height, "width": width, "windows": windows, "operations": operations}
    return row | seam_ratio(images, *lines)


def parse_size(text: str) -> tuple[int, int]:
    """`"64x192"` => `(64, 192)`, height first."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise ValueError(f"`--sizes` has {text!r}; write height x width in pixels, such as 64x192.")
    return int(match[1]), int(match[2])


def window_lines(config: Mapping[str, Any], scale: int = 1) -> tuple[int, int]:
    """Side of a network's largest windows, and the step of the lines to compare their borders with, in pixels.

    The step is the largest side of smaller windows, else the largest patch: whatever those leave at their own borders
    is on both sides of the comparison.

    Args:
        config: the network's configuration.
        scale: pixels of the picture for one of the network's.
    """
    window = max(config["window_sizes"])
    smaller = [side for side in config["window_sizes"] if side < window and window % side == 0]
    return window * scale, max(smaller or [max(config["patch_sizes"])]) * scale


def border_lines(length: int, window: int, step: int) -> dict[int, list[int]]:
    """For each border between windows along a side, the lines around it to compare it with.

    Args:
        length: of the side in pixels.
        window: side of the windows.
        step: of the lines; those up to a quarter of a window away are taken, at least the next on either side.
    """
    reach = max(window // 4, step)
    lines = [line for line in range(step, length, step) if line % window]
    return {
        border: [line for line in lines if abs(line - border) <= reach] for border in range(window, length, window)
    }


def border_gradients(images: np.ndarray, window: int, step: int) -> np.ndarray:
    """Mean absolute difference of the pixels on both sides of a line.

    Args:
        images: `(N, height, width, channels)`.
        window, step: see `border_lines`.

    Returns:
        `(N, 2)`: across the borders of windows, and across the lines around them; sums over both directions.
    """
    sums = np.zeros((len(images), 2))
    for axis in (1, 2):
        pixels = np.moveaxis(images.astype(np.float64), axis, 1)
        for border, around in border_lines(pixels.shape[1], window, step).items():
            if around:
                sums[:, 0] += _across(pixels, [border])
                sums[:, 1] += _across(pixels, around)
    return sums


def _across(pixels: np.ndarray, lines: Sequence[int]) -> np.ndarray:
    """Sum over a line of `(N, length, …)`, mean over lines and channels."""
    differences = np.abs(pixels[:, lines] - pixels[:, [line - 1 for line in lines]])
    return differences.mean(axis=(1, 3)).sum(axis=1)


def seam_ratio(images: np.ndarray, window: int, step: int) -> dict[str, float | None]:
    """Gradient across the borders of windows over that across the lines around them; 1 means no seam.

    Returns:
        `ratio` over all pictures, and `low` and `high`, between which it falls for 95% of the sets that one gets by
        drawing as many of the pictures anew (bootstrap). `None` for pictures without any gradient there.
    """
    sums = border_gradients(images, window, step)
    border, around = sums.sum(axis=0)
    if around == 0:
        return {"ratio": None, "low": None, "high": None}
    random = np.random.default_rng(0)
    drawn = sums[random.integers(len(sums), size=(RESAMPLES, len(sums)))].sum(axis=1)
    drawn = drawn[drawn[:, 1] > 0]
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return {"ratio": float(border / around), "low": float(low), "high": float(high)}


def _draw(pipe, args: argparse.Namespace, height: int, width: int, kind: str) -> tuple[float, np.ndarray]:
    """Operations of one picture, and the pictures `(N, height, width, channels)` in [0, 1]."""
    import torch

    from brickwork.gen.operations import count_operations

    operations, output = count_operations(
        lambda: pipe(
            class_labels=[0 if pipe.transformer.config.num_classes else None] * args.count,
            height=height,
            width=width,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=[torch.Generator().manual_seed(args.seed + number) for number in range(args.count)],
            windows=kind,
            output_type="np",
        )
    )
    return operations / args.count, output.images


def _line(row: Mapping[str, Any]) -> str:
    return f"{_ratio(row)}, {row['operations'] / 1e9:.1f} GFLOP a picture"


def _ratio(row: Mapping[str, Any]) -> str:
    return "no edges" if row["ratio"] is None else between(row["ratio"], row["low"], row["high"])


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each size."""
    found: dict[str, dict] = {}
    for row in rows:
        found.setdefault(f"{row['height']} × {row['width']}", {})[row["windows"]] = row
    kinds = list(dict.fromkeys(row["windows"] for row in rows))
    columns = {"height × width": lambda entry: entry[0]}
    columns |= {kind: lambda entry, kind=kind: _ratio(entry[1][kind]) for kind in kinds}
    columns |= {
        f"GFLOP {kind}": lambda entry, kind=kind: f"{entry[1][kind]['operations'] / 1e9:.1f}" for kind in kinds
    }
    return table_of(list(found.items()), columns)


def report(folder: Any, rows: Sequence[Mapping[str, Any]]) -> tuple[Report, dict]:
    """The table, and the ratios of every size with their spread."""
    series, bands = {}, {}
    for kind in dict.fromkeys(row["windows"] for row in rows):
        own = [row for row in rows if row["windows"] == kind and row["ratio"] is not None]
        series[kind] = [f"{row['height']}×{row['width']}" for row in own], [row["ratio"] for row in own]
        bands[kind] = [row["low"] for row in own], [row["high"] for row in own]
    title = "gradient at window borders over that around them (1: no seam)"
    plot = Plot(series, "", "", log_y=True, bands=bands, marks={"": (None, 1)}, points=True, title=title, name="seams")
    return Report("Seams", [table(rows), plot]), {"settings": folder.conditions, "rows": list(rows)}
