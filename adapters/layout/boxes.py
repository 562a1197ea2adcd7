"""Boxes and the phrases that go with them, checked and made into tensors."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch

from brickwork.errors import explained

MAX_BOXES = 50
KEY_POINTS = ("center", "top_left", "bottom_right")


def checked_layouts(boxes: Any, phrases: Any) -> tuple[list[list[tuple[float, ...]]], list[list[Any]]]:
    """One list of boxes and one of phrases for each picture.

    Args:
        boxes: `(x0, y0, x1, y1)` from 0 to 1, x to the right and y down: a list of them for one picture, or a list of
            such lists.
        phrases: what is in each box, shaped alike; tensors stay as they are.

    Raises:
        ValueError: boxes beyond 0 to 1, without area or of other lengths; too many; more or fewer phrases than boxes.
    """
    with explained("`boxes` and `phrases` are no lists; give a list of each", TypeError):
        boxes, phrases = _listed(boxes), [phrases] if isinstance(phrases, str) else list(phrases)
    if not boxes or _is_box(boxes[0]):
        boxes, phrases = [boxes], [phrases]
    if len(boxes) != len(phrases):
        raise ValueError(f"`phrases` has {len(phrases)} lists for {len(boxes)} lists of `boxes`; give one for each.")
    checked = []
    for picture, (row, words) in enumerate(zip(boxes, phrases)):
        words = [words] if isinstance(words, str) else list(words)
        if len(words) != len(row):
            raise ValueError(
                f"`phrases` has {len(words)} entries for {len(row)} `boxes` in picture {picture}; give one a box."
            )
        if len(row) > MAX_BOXES:
            raise ValueError(f"`boxes` has {len(row)} entries in picture {picture}; give at most {MAX_BOXES}.")
        checked.append(([_checked_box(box) for box in row], list(words)))
    return [row for row, _ in checked], [words for _, words in checked]


def key_points(boxes: torch.Tensor, kinds: Sequence[str]) -> torch.Tensor:
    """`boxes (B, N, 4)` => their key points `(kinds, B, N, 2)`, x then y."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    points = {"center": ((x0 + x1) / 2, (y0 + y1) / 2), "top_left": (x0, y0), "bottom_right": (x1, y1)}
    return torch.stack([torch.stack(points[kind], dim=-1) for kind in kinds])


def padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `(n, D)` of unlike length => `(B, N, D)` with zeros behind, and `(B, N)`, true where there is an entry.

    `N` is at least 1, as attention needs a key.
    """
    count = max(1, *(len(row) for row in rows))
    full = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, count - len(row))) for row in rows])
    return full, torch.stack([torch.arange(count) < len(row) for row in rows])


def _listed(value: Any) -> list:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value)


def _is_box(entry: Any) -> bool:
    """A box rather than a picture's list of boxes."""
    return bool(len(entry)) and not hasattr(entry[0], "__len__")


def _checked_box(box: Any) -> tuple[float, ...]:
    fix = "give (x0, y0, x1, y1) from 0 to 1 with x0 < x1 and y0 < y1."
    box = tuple(_listed(box))
    if len(box) != 4 or any(isinstance(side, bool) or not isinstance(side, numbers.Real) for side in box):
        raise ValueError(f"`boxes` has {box}; {fix}")
    if any(not math.isfinite(side) or not 0 <= side <= 1 for side in box):
        raise ValueError(f"`boxes` has {box}, which lies beyond 0 to 1; {fix}")
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"`boxes` has {box}, which has no area; {fix}")
    return tuple(float(side) for side in box)
