"""Sheets of pictures: fixed-seed grids, and samples beside their nearest training pictures."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from brickwork.files import write_file

GAP = 2
MARGIN = 8
TEXT_SIZE = 13


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
    rows = [
        [np.asarray(Image.fromarray(picture).resize((width, height))) for picture in row] for row in zip(*neighbours)
    ]
    upper, lower = grid(samples, len(samples)), grid([picture for row in rows for picture in row], len(samples))
    sheet = Image.new("RGB", (upper.width, upper.height + MARGIN + lower.height), "white")
    sheet.paste(upper, (0, 0))
    sheet.paste(lower, (0, upper.height + MARGIN))
    return sheet


def labelled_sheet(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str], side: int = 256
) -> Image.Image:
    """Pictures of many sizes in rows and columns with their names, all at one scale, so that sizes can be seen.

    Args:
        rows: Pictures, as many in each row as there are columns.
        row_labels: Of the rows; a line break starts a second line.
        column_labels: Of the columns.
        side: What the longest side of all comes to, in pixels; small pictures are enlarged by whole numbers only.
    """
    longest = max(max(picture.size) for row in rows for picture in row)
    scale = side / longest if longest > side else side // longest
    filter = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    font, pen = ImageFont.load_default(TEXT_SIZE), ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def extent(text: str) -> tuple[int, int]:
        left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=font)
        return math.ceil(right), math.ceil(bottom)

    scaled = [
        [p.convert("RGB").resize([max(1, round(n * scale)) for n in p.size], filter) for p in row] for row in rows
    ]
    left = max(extent(label)[0] for label in row_labels) + 2 * MARGIN
    top = max(extent(label)[1] for label in column_labels) + 2 * MARGIN
    widths = [max(*(p.width for p in column), extent(label)[0]) for column, label in zip(zip(*scaled), column_labels)]
    heights = [max(*(p.height for p in row), extent(label)[1]) for row, label in zip(scaled, row_labels)]
    sheet = Image.new("RGB", (left + sum(widths) + MARGIN * len(widths), top + sum(heights) + MARGIN * len(heights)))
    sheet.paste("white", (0, 0, *sheet.size))
    pen, lefts = ImageDraw.Draw(sheet), [left + sum(widths[:i]) + MARGIN * i for i in range(len(widths))]
    for x, label in zip(lefts, column_labels):
        pen.multiline_text((x, MARGIN), label, fill="black", font=font)
    for row, label, height in zip(scaled, row_labels, heights):
        pen.multiline_text((MARGIN, top), label, fill="black", font=font)
        for x, picture in zip(lefts, row):
            sheet.paste(picture, (x, top))
        top += height + MARGIN
    return sheet


def save_picture(
    picture: Image.Image, path: Path, maker: str = "brickwork", notes: Mapping[str, str] | None = None
) -> None:
    """Write a PNG, complete or not at all, which says what made it, and further notes by their names."""
    info = PngInfo()
    for name, text in {"Software": maker, **(notes or {})}.items():
        info.add_itxt(name, text) if not text.isascii() else info.add_text(name, text)
    write_file(path, lambda part: picture.save(part, format="PNG", pnginfo=info))


def made_by(maker: str) -> Callable[[Path], bool]:
    """Whether a file is a PNG, or a GIF, that says it was written for this maker; for `brickwork.files.check_file`."""

    def is_ours(path: Path) -> bool:
        with Image.open(path) as picture:
            return maker in (picture.info.get("Software"), picture.info.get("comment", b"").decode(errors="replace"))

    return is_ours
