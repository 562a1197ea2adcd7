"""Pictures that a caller hands an adapter as a condition, as tensors."""

from typing import Any

import numpy as np
import PIL.Image
import torch


def pixels_of(argument: str, images: Any, channels: int = 3) -> list[torch.Tensor]:
    """Each of one picture or a list of them as `(R, channels, H, W)` in [0, 1]; transparency becomes white.

    Args:
        argument: what the pictures are called, for errors.
        images: PIL images, uint8 arrays `(H, W, channels)` (grey ones `(H, W)` too), or tensors `(channels, H, W)` or
            `(R, channels, H, W)` in [0, 1].
        channels: 3, or 1 for grey ones.

    Raises:
        ValueError: for none, and for anything else.
    """
    entries = list(images) if isinstance(images, list | tuple) else [images]
    if not entries:
        raise ValueError(f"`{argument}` is empty; give a picture, or one for each picture that is drawn.")
    return [_pixels(argument, entry, channels) for entry in entries]


def _pixels(argument: str, image: Any, channels: int) -> torch.Tensor:
    if isinstance(image, PIL.Image.Image):
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        image = np.array(PIL.Image.alpha_composite(white, rgba).convert("L" if channels == 1 else "RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = torch.from_numpy(np.atleast_3d(image).copy()).permute(2, 0, 1).float() / 255
    if isinstance(image, torch.Tensor) and image.is_floating_point() and image.ndim in (3, 4) and image.numel():
        pixels = image.detach().float().reshape(-1, *image.shape[-3:])
        if pixels.shape[1] == channels and pixels.min() >= -0.01 and pixels.max() <= 1.01:  # NaN is refused too
            return pixels.clamp(0, 1)
    what = f"{type(image).__name__} of shape {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    raise ValueError(
        f"`{argument}` has a {what}; give PIL images, uint8 arrays (H, W, {channels}), or tensors ({channels}, H, W) "
        "with values in [0, 1]."
    )
