"""How strongly a ResAdapter should act at a size: `scale="auto"`, and the sizes an adapter was trained for.

The authors' advice is 1.0 below the size the base model was trained at, and 0.3 to 0.7 above it. Plain arithmetic: no
torch here.
"""

import math
from dataclasses import asdict, dataclass

_SMALLEST = 0.3  # the authors' lower end, reached at twice the training size


@dataclass(frozen=True)
class TrainingRange:
    """Sizes an adapter was trained for: the root of the area in pixels, and the longer side over the shorter."""

    min_size: float
    max_size: float
    max_ratio: float

    def __post_init__(self) -> None:
        if not (0 < self.min_size <= self.max_size < math.inf and 1 <= self.max_ratio < math.inf):
            raise ValueError(f"training range {asdict(self)}: need 0 < min_size <= max_size and max_ratio >= 1")


# The authors' table, by the names of their folders.
OFFICIAL_RANGES = {
    "resadapter_v2_sd1.5": TrainingRange(128, 1024, 3.5),
    "resadapter_v2_sdxl": TrainingRange(256, 1536, 3.5),
    "resadapter_v1_sd1.5": TrainingRange(128, 1024, 2.0),
    "resadapter_v1_sd1.5_extrapolation": TrainingRange(512, 1024, 2.0),
    "resadapter_v1_sd1.5_interpolation": TrainingRange(128, 512, 2.0),
    "resadapter_v1_sdxl": TrainingRange(256, 1536, 2.0),
    "resadapter_v1_sdxl_extrapolation": TrainingRange(1024, 1536, 2.0),
    "resadapter_v1_sdxl_interpolation": TrainingRange(256, 1024, 2.0),
}


def auto_strength(height: int, width: int, train_size: int) -> float:
    """The strength for an image of height x width pixels, on a base model trained at `train_size` pixels a side.

    1.0 up to the training size; above it, falling evenly with the logarithm of the size to 0.3 at twice the training
    size and beyond (0.65 at twice the area). Size is the square root of the area.
    """
    if min(height, width, train_size) <= 0:
        raise ValueError(f"height={height}, width={width}, train_size={train_size}: all must be positive")
    octaves = math.log2(math.sqrt(height * width) / train_size)
    return min(1.0, max(_SMALLEST, 1.0 - (1.0 - _SMALLEST) * octaves))


def range_warning(height: int, width: int, stated: TrainingRange | None) -> str | None:
    """One sentence if height x width lies outside the stated range, else None (also where no range is stated)."""
    if stated is None:
        return None
    size, ratio = math.sqrt(height * width), max(height, width) / min(height, width)
    if not stated.min_size <= size <= stated.max_size:
        return (
            f"{width}x{height} has a size (root of the area) of {size:.0f} pixels; this ResAdapter was trained for "
            f"{stated.min_size:g} to {stated.max_size:g}"
        )
    if ratio > stated.max_ratio:
        return (
            f"{width}x{height} has an aspect ratio of {ratio:.2f}; this ResAdapter was trained for up to "
            f"{stated.max_ratio:g}"
        )
    return None
