"""An avatar of a larger picture, cut out as the judge of attributes knows avatars."""

import numpy as np
from PIL import Image


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
