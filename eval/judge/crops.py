"""An avatar of a larger picture, cut out as the judge of attributes knows avatars."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from brickwork.eval.extractors.attributes import AttributeJudge


def name_boxes(judge: AttributeJudge, picture: np.ndarray, boxes: Iterable[Sequence[float]]) -> list[dict[str, str]]:
    """What a judge of attributes says of the avatars in boxes, left, top, right and bottom in pixels."""
    crops = []
    for box in boxes:
        left, top, right, bottom = (max(0, round(side)) for side in box)
        crops.append(cut_out(picture, (slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1)))))
    return judge.name(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)) if crops else []


def cut_out(picture: np.ndarray, part: tuple[slice, slice]) -> np.ndarray:
    """An avatar on a square of its own, standing on its lower edge as the judge learned them; 64 pixels a side."""
    piece = picture[part]
    height, width = piece.shape[:2]
    side = max(height, width)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    square = np.tile(np.median(border, axis=0).astype(np.uint8), (side, side, 1))
    left = (side - width) // 2
    square[side - height :, left : left + width] = piece
    return np.asarray(Image.fromarray(square).resize((64, 64), Image.Resampling.BICUBIC))
