"""Sheets of pictures: fixed-seed grids, and samples beside their nearest training pictures."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

GAP = 2
MARGIN = 8


def grid(pictures: Sequence[np.ndarray], columns: int | None = None) -> Image.Image:
    """Pictures of one size side by side on white.

    Args:
        pictures: uint8 `(height, width, 3)` each.
        columns: Pictures in a row; about a square if left out.
    """
    height, width = pictures[0].shape[:2]
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (i % columns * (width + GAP), i // columns * (height + GAP)))
    return sheet


def neighbour_sheet(samples: Sequence[np.ndarray], neighbours: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """A column for each sample: the sample on top, its nearest training pictures below, nearest first.

    Args:
        samples: uint8 `(height, width, 3)` each.
        neighbours: As many training pictures for each, brought to the size of the samples.
    """
    height, width = samples[0].shape[:2]
    depth = len(neighbours[0])
    size = (len(samples) * (width + GAP) - GAP, height + MARGIN + depth * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for column, (sample, nearest) in enumerate(zip(samples, neighbours)):
        left = column * (width + GAP)
        sheet.paste(Image.fromarray(sample), (left, 0))
        for row, picture in enumerate(nearest):
            sheet.paste(
                Image.fromarray(picture).resize((width, height)), (left, height + MARGIN + row * (height + GAP))
            )
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    picture.save(temporary, format="PNG")
    os.replace(temporary, path)
