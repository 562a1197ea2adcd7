"""The shape of every step's images, drawn from a range of sizes and aspect ratios."""

import warnings

import numpy as np

from brickwork.training.data.buckets import RESOLUTION, bucket_shapes, nearest_bucket, random_numbers


def shapes_by_size(min_size: int, max_size: int, max_aspect: float, step: int) -> list[list[tuple[int, int]]]:
    """The shapes `(height, width)` of each size from `min_size` to `max_size`, which grow by `step`.

    A size is the root of the area in pixels; a shape has the largest sides that are multiples of `step`, within the
    size's area and `max_aspect`.

    Raises:
        ValueError: for sizes that are no multiples of `step`.
    """
    for key, size in (("min_size", min_size), ("max_size", max_size)):
        if size % step:
            below = size // step * step
            near = f"{below} or {below + step}" if below else f"{step}"
            raise ValueError(
                f"`resolution.{key}` is {size}, which the VAE and the UNet cannot take: give a multiple of {step}, "
                f"such as {near}."
            )
    return [bucket_shapes(size, step, max_aspect) for size in range(min_size, max_size + 1, step)]


def enlargement(sizes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """By how much pictures of `sizes` `(N, 2)` are enlarged to fill a shape, `(N,)`; below 1 they are reduced."""
    return (np.asarray(shape) / sizes).max(axis=1)


class Resolutions:
    """One shape a step: a size, each equally likely, then one of its shapes, each equally likely.

    A function of seed and step alone, so that all processes draw alike and a run that goes on draws the same.

    Args:
        by_size: see `shapes_by_size`.
        seed: of the run.
    """

    def __init__(self, by_size: list[list[tuple[int, int]]], seed: int):
        self.by_size, self.seed = by_size, seed
        self.shapes = sorted({shape for shapes in by_size for shape in shapes})

    def __call__(self, step: int, like: tuple[int, int] | None = None) -> tuple[int, int]:
        """The height and width of a step; with `like`, the size's shape of the nearest aspect ratio to that shape."""
        random = random_numbers(self.seed, RESOLUTION, step)
        shapes = self.by_size[random.integers(len(self.by_size))]
        if like is not None:
            return shapes[nearest_bucket(*like, shapes)]
        return shapes[random.integers(len(shapes))]

    def without(self, unusable: set[tuple[int, int]], limit: float) -> "Resolutions":
        """The same without some shapes, because every picture would be enlarged beyond a limit; a warning says so.

        Raises:
            ValueError: where none is left.
        """
        if not unusable:
            return self
        left = [[shape for shape in shapes if shape not in unusable] for shapes in self.by_size]
        listed = ", ".join(f"{height}×{width}" for height, width in sorted(unusable))
        if not any(left):
            raise ValueError(
                f"`data.max_upscale` is {limit:g}, and every picture is too small for all of {listed}; take larger "
                "pictures, lower `resolution.min_size`, or raise it."
            )
        warnings.warn(
            f"No picture is large enough for {listed} with `data.max_upscale` {limit:g}; these are left out.",
            stacklevel=2,
        )
        return Resolutions([shapes for shapes in left if shapes], self.seed)
