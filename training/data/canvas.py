"""Crops of canvases larger than the training size, so that a network learns to draw above it.

A canvas is one picture, or several side by side on white. The crop is cyclic: it may reach over an end and go on at
the opposite one, as windows do that a sampler shifts over the canvas. Coordinates tell the network where it lies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from brickwork.training.data.buckets import CANVAS, random_numbers
from brickwork.training.data.images import crop_to, to_unit_range
from brickwork.training.data.stream import TrainingStream


@dataclass(frozen=True)
class CanvasSettings:
    """Which canvases are drawn, and how often.

    Attributes:
        share: share of the training samples that are crops of canvases.
        scale: the largest picture on a canvas over the training size; pictures are never enlarged for it.
        aspect: the longest canvas over one picture's side.
    """

    share: float
    scale: float
    aspect: float


@dataclass(frozen=True)
class Canvas:
    """Where the pictures of a canvas lie, all of one size.

    Attributes:
        height, width: in pixels.
        tile: height and width of a picture.
        corners: top and left of each picture.
    """

    height: int
    width: int
    tile: tuple[int, int]
    corners: list[tuple[int, int]]


def draw_proportions(random: np.random.Generator, settings: CanvasSettings) -> tuple[float, float, bool]:
    """Scale and aspect of a canvas, and whether it is tall: a third of them long, a third large, a third both."""
    kind = random.integers(3)
    scale = settings.scale ** random.random() if kind > 0 else 1.0
    aspect = 1 + (settings.aspect - 1) * random.random() if kind != 1 else 1.0
    return scale, aspect, random.random() < 0.5


def lay_out(shape: tuple[int, int], scale: float, aspect: float, tall: bool) -> Canvas:
    """A canvas of `scale` times `shape`, one side of it `aspect` times as long.

    As many pictures as fit it best lie in equal parts of the long side, a little smaller where they would overlap.
    """
    height, width = (round(side * scale) for side in shape)
    count = max(1, round(aspect))
    shrink = min(1.0, aspect / count)
    tile = max(1, round(height * shrink)), max(1, round(width * shrink))
    long = max(round((height if tall else width) * aspect), count * tile[0 if tall else 1])
    size = (long, width) if tall else (height, long)
    centres = [long * (2 * number + 1) / (2 * count) for number in range(count)]
    corners = []
    for centre in centres:
        middle = (centre, width / 2) if tall else (height / 2, centre)
        corners.append(tuple(int(centre - side / 2) for centre, side in zip(middle, tile)))
    return Canvas(*size, tile, corners)


def draw_corner(random: np.random.Generator, canvas: Canvas, shape: tuple[int, int]) -> tuple[int, int]:
    """Top and left of a cyclic crop of `shape`: anywhere along a side that is longer than the crop."""
    return tuple(
        int(random.integers(side)) if side > length else 0
        for side, length in zip((canvas.height, canvas.width), shape)
    )


def cut(
    canvas: Canvas, corner: tuple[int, int], shape: tuple[int, int], pictures: Sequence[Callable[[], np.ndarray]]
) -> np.ndarray:
    """A cyclic crop, uint8 `(height, width, 3)`.

    Args:
        canvas: where the pictures lie.
        corner: top and left of the crop.
        shape: height and width of the crop, at most those of the canvas.
        pictures: for each picture, what returns it as uint8 of `canvas.tile`; called for those in sight only.
    """
    rows = (corner[0] + np.arange(shape[0])) % canvas.height
    columns = (corner[1] + np.arange(shape[1])) % canvas.width
    crop = np.full((*shape, 3), 255, dtype=np.uint8)
    for (top, left), picture in zip(canvas.corners, pictures):
        inside_rows = np.flatnonzero((rows >= top) & (rows < top + canvas.tile[0]))
        inside_columns = np.flatnonzero((columns >= left) & (columns < left + canvas.tile[1]))
        if len(inside_rows) and len(inside_columns):
            seen = picture()[np.ix_(rows[inside_rows] - top, columns[inside_columns] - left)]
            crop[np.ix_(inside_rows, inside_columns)] = seen
    return crop


class CanvasStream(TrainingStream):
    """Samples of which a share are crops of canvases; every sample says where it lies.

    Args:
        canvases: which canvases, and how often.
        settings: those of `TrainingStream`.
    """

    def __init__(self, *settings, canvases: CanvasSettings, **further):
        super().__init__(*settings, **further)
        self.canvases = canvases

    def _sample(self, row: int, position: int) -> tuple[np.ndarray, int, tuple[int, int, int, int]]:
        random = random_numbers(self.seed, CANVAS, position)
        if random.random() >= self.canvases.share:
            image, label = super()._sample(row, position)
            return image, label, (0, 0, *image.shape[1:])
        images, rows = self.images, self.row.rows
        shape, label = images.shapes[images.buckets[row]], images.labels[row]
        scale, aspect, tall = draw_proportions(random, self.canvases)
        count = len(lay_out(shape, 1.0, aspect, tall).corners)
        others = random.choice(rows[images.labels[rows] == label], count - 1)
        chosen = random.permutation(np.append(others, row))
        room = min(side / length for other in chosen for side, length in zip(images.natural_size(other), shape))
        canvas = lay_out(shape, max(1.0, min(scale, room)), aspect, tall)
        corner = draw_corner(random, canvas, shape)
        tiles = [lambda other=other: crop_to(images.decoded(other), *canvas.tile) for other in chosen]
        crop = cut(canvas, corner, shape, tiles)
        return to_unit_range(crop), int(label), (*corner, canvas.height, canvas.width)
