"""Evaluation protocols: everything between the bytes of an image and the input of a feature extractor.

The Fréchet distance moves by several points with the resize filter alone, so the steps have a name and the name is
stored with every number. In all protocols pixels go

    uint8 in [0, 255]  =>  float32 in [0, 255], resized, never rounded again  =>  (x - shift) / scale

and only the filter and, for Inception, the last step differ. An extractor with a normalisation of its own (every one
but Inception) replaces the last step and keeps the filter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from brickwork.errors import one_of


def resize_tf1_bilinear(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear resize as TensorFlow 1's `resize_bilinear(align_corners=False)` does it: corner-aligned, no antialias.

    The source coordinate of output pixel i is i * in / out (no half-pixel centres), so the picture shifts by up to
    half a source pixel; the published FID reference statistics were made this way.

    Args:
        images: `(batch, channels, height, width)`, float32.
        size: Side of the square output in pixels.

    Returns:
        `(batch, channels, size, size)`, float32, same value range.
    """
    images = _lerp_rows(images.transpose(2, 3), size).transpose(2, 3)  # columns first, as the kernel does
    return _lerp_rows(images, size).contiguous()


def _lerp_rows(images: torch.Tensor, size: int) -> torch.Tensor:
    length = images.shape[2]
    # The ratio is rounded to float32 before it is multiplied, as in TensorFlow's kernel.
    position = torch.arange(size, dtype=torch.float32) * torch.tensor(length / size, dtype=torch.float32)
    low = position.floor().long().clamp_max(length - 1)
    high = (low + 1).clamp_max(length - 1)
    weight = (position - low).to(images.device).view(1, 1, size, 1)
    top, bottom = images[:, :, low], images[:, :, high]
    return top + (bottom - top) * weight


def resize_bicubic_antialias(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic resize with antialias, as Pillow does it on float images (`clean-fid`); overshoot is cut to [0, 255]."""
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp_(0.0, 255.0)


def resize_bilinear(images: torch.Tensor, size: int) -> torch.Tensor:
    """PyTorch's bilinear resize: half-pixel centres, no antialias (`pytorch-fid`)."""
    return F.interpolate(images, size=(size, size), mode="bilinear")


def resize_bilinear_antialias(images: torch.Tensor, size: int) -> torch.Tensor:
    """PyTorch's bilinear resize with antialias (the default of torchmetrics from 1.7 on)."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Protocol:
    """A named way from pixels to an extractor's input.

    Attributes:
        name: The name stored with every number.
        resize: Maps float32 `(batch, channels, height, width)` in [0, 255] to `(batch, channels, size, size)`.
        inception_shift, inception_scale: Inception's input is `(x - shift) / scale`.
        description: One line for results and reports.
    """

    name: str
    resize: Callable[[torch.Tensor, int], torch.Tensor]
    inception_shift: float
    inception_scale: float
    description: str

    def to_dict(self) -> dict[str, str]:
        """The protocol as it is stored in results."""
        return {"name": self.name, "description": self.description}


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("adm", resize_tf1_bilinear, 128.0, 128.0, "TF1 bilinear without antialias, no rounding"),
        Protocol("clean", resize_bicubic_antialias, 128.0, 128.0, "bicubic with antialias as Pillow's, no rounding"),
        Protocol("legacy-pytorch", resize_bilinear, 127.5, 127.5, "bilinear without antialias, no rounding"),
        Protocol("torchmetrics", resize_bilinear_antialias, 128.0, 128.0, "bilinear with antialias, no rounding"),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of this name; a `ValueError` lists the names there are."""
    return one_of("protocol", name, PROTOCOLS)


def to_uint8(images: torch.Tensor | np.ndarray, name: str = "images") -> torch.Tensor:
    """Bring pictures to uint8, the one form in which they are measured.

    Floats are rounded to the nearest of 256 levels. A value outside the range is an error: a cast would truncate it,
    or wrap it around to the other end of the range, without a word.

    Args:
        images: Any shape; uint8 in [0, 255], or floating point in [0, 1].
        name: What to call the argument in an error.

    Returns:
        The same shape, uint8.
    """
    images = torch.as_tensor(images)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"{name}: pixels of type {images.dtype}; need uint8 in [0, 255] or floats in [0, 1]")
    if images.numel() and not bool(torch.isfinite(images).all()):
        raise ValueError(f"{name}: {int((~images.isfinite()).sum())} pixels are not finite; need floats in [0, 1]")
    low, high = (images.min().item(), images.max().item()) if images.numel() else (0.0, 0.0)
    if low < 0.0 or high > 1.0:
        outside = int(((images < 0) | (images > 1)).sum())
        raise ValueError(
            f"{name}: {outside} pixels lie outside [0, 1], the range is [{low:.4g}, {high:.4g}]; clamp samples on"
            " purpose, map [-1, 1] to [0, 1] with x / 2 + 0.5, or pass uint8"
        )
    return (images * 255).round().to(torch.uint8)
