"""A detector for drawings on a flat ground: what differs from the ground is an object, told by its outline.

It needs no weights, so that the judge can be tried, and tested, on scenes of coloured shapes.
"""

from collections.abc import Sequence

import numpy as np

from brickwork.eval.judge.colours import to_lab
from brickwork.eval.judge.detectors import Detection, Found, register_detector

DIFFERENT = 15.0  # ΔE from the ground
SMALLEST = 12  # pixels of an object
# Share of its box that a shape fills; the nearest is taken.
FILLS = {"triangle": 0.5, "circle": np.pi / 4, "square": 1.0}
_SPREAD = 0.3  # of that share, by which the score falls to a third


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts (by sides and corners) of a bool mask `(H, W)`, as masks, in the order of their first pixel."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # every pixel takes the largest number around it, until nothing changes
        padded = np.pad(labels, 1)
        height, width = labels.shape
        around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        larger = np.where(mask, np.maximum.reduce(around), 0)
        if np.array_equal(larger, labels):
            break
        labels = larger
    numbers, first = np.unique(labels, return_index=True)
    return [labels == number for _, number in sorted(zip(first, numbers)) if number]


def differs_from_ground(picture: np.ndarray) -> np.ndarray:
    """Where a picture, uint8 `(H, W, 3)`, has another colour than the median of its border; bool `(H, W)`."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.linalg.norm(to_lab(picture) - to_lab(np.median(border, axis=0)), axis=-1) > DIFFERENT


class ShapeDetector:
    """Circles, squares and triangles of any colour on a flat ground; shapes that touch in one colour are one."""

    name, names = "shapes", tuple(FILLS)

    def __call__(self, pictures: Sequence[np.ndarray], names: Sequence[Sequence[str]]) -> list[Found]:
        return [self._find(picture, asked) for picture, asked in zip(pictures, names, strict=True)]

    def _find(self, picture: np.ndarray, names: Sequence[str]) -> Found:
        found: dict[str, list[Detection]] = {name: [] for name in names}
        for mask in regions(differs_from_ground(picture)):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if mask.sum() < SMALLEST:
                continue
            box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            filled = mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
            shape = min(FILLS, key=lambda name: abs(FILLS[name] - filled))
            if shape in found:
                score = float(np.exp(-(((FILLS[shape] - filled) / _SPREAD) ** 2)))
                found[shape].append(Detection(tuple(map(float, box)), score, mask))
        return found


register_detector("shapes")(ShapeDetector)
