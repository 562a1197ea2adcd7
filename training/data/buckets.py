"""Aspect-ratio buckets, and the orders in which rows are drawn, as functions of seed and position alone."""

import warnings
from collections import Counter

import numpy as np

# Streams of random numbers under one seed; numbers, not hashes, so that they are the same everywhere.
ORDER, SAMPLE, STEP, FALLBACK, POSTERIOR, RESOLUTION, SUBSTITUTE, CANVAS, AUGMENT = range(9)


def random_numbers(seed: int, stream: int, position: int) -> np.random.Generator:
    """The random numbers of one position of one stream (counter-based: no state to save)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, position, stream]))


def bucket_shapes(size: int, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """Heights and widths that are multiples of `step`, hold at most `size`² pixels, and are as large as that allows.

    Args:
        size: side of the square bucket, rounded down to a multiple of `step`.
        step: what sides are a multiple of.
        max_aspect: longest side over shortest.

    Returns:
        From the tallest to the widest; each shape's transpose is there too.
    """
    shapes = set()
    for short in range(step, size + 1, step):
        long = size * size // short // step * step
        if long >= short and long / short <= max_aspect:
            shapes |= {(short, long), (long, short)}
    # Of the shapes with one long side only the largest is of use.
    best = {}
    for height, width in shapes:
        side, key = min(height, width), (max(height, width), height >= width)
        if side > min(best.get(key, (0, 0))):
            best[key] = (height, width)
    return sorted(set(best.values()), key=lambda shape: shape[1] / shape[0])


def nearest_bucket(height: int, width: int, shapes: list[tuple[int, int]]) -> int:
    """The bucket of the nearest aspect ratio (on a logarithmic scale, so that tall and wide are treated alike)."""
    aspects = np.log([shape[1] / shape[0] for shape in shapes])
    return int(np.abs(aspects - np.log(width / height)).argmin())


class ShuffledRows:
    """Every row once an epoch, in a fresh order; an epoch need not end with a step.

    Args:
        rows: row numbers `(N,)`.
        seed: of the run.
    """

    def __init__(self, rows: np.ndarray, seed: int):
        self.rows, self.seed = rows, seed
        self._epoch, self._order = -1, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return int(self._order[offset])

    def _permutation(self, epoch: int) -> np.ndarray:
        return random_numbers(self.seed, ORDER, epoch).permutation(self.rows)


class BucketedRows(ShuffledRows):
    """Steps of one shape each, the same on all processes, in a fresh order every epoch.

    Policy: each bucket's rows are shuffled and cut into steps of `batch_size`; its last step is filled up with rows of
    the same bucket from the front of that order. So every image is seen every epoch, none is dropped, and a few are
    seen twice; a bucket with fewer images than a step (a warning names it) repeats all of its own.

    Args:
        rows: row numbers `(N,)`.
        buckets: the bucket of each of these rows `(N,)`.
        shapes: height and width of each bucket, for the warning.
        batch_size: images of a step, over all processes.
        seed: of the run.
    """

    def __init__(
        self, rows: np.ndarray, buckets: np.ndarray, shapes: list[tuple[int, int]], batch_size: int, seed: int
    ):
        super().__init__(rows, seed)
        self.members = [rows[buckets == bucket] for bucket in np.unique(buckets)]
        self.batch_size = batch_size
        thin = {shapes[b]: n for b, n in sorted(Counter(buckets.tolist()).items()) if n < batch_size}
        if thin:
            listed = ", ".join(f"{height}×{width} ({number})" for (height, width), number in thin.items())
            warnings.warn(
                f"Buckets with fewer images than the {batch_size} of a step repeat them within a step: {listed}. "
                "Lower `data.bucket_max_aspect`, raise `data.bucket_step`, or add such images.",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return self.batch_size * sum(-(-len(members) // self.batch_size) for members in self.members)

    def _permutation(self, epoch: int) -> np.ndarray:
        random = random_numbers(self.seed, ORDER, epoch)
        steps = []
        for members in self.members:
            shuffled = random.permutation(members)
            steps.append(np.resize(shuffled, -(-len(members) // self.batch_size) * self.batch_size))
        steps = np.concatenate(steps).reshape(-1, self.batch_size)
        return random.permutation(steps).reshape(-1)


class BlockShuffledRows(ShuffledRows):
    """For data that is read from shards: few shards are open at a time, and rows are shuffled across those.

    Args:
        rows: row numbers `(N,)`.
        shards: the shard of each of these rows `(N,)`.
        seed: of the run.
        open_shards: shards that are mixed with one another.
    """

    def __init__(self, rows: np.ndarray, shards: np.ndarray, seed: int, open_shards: int = 16):
        super().__init__(rows, seed)
        self.members = [rows[shards == shard] for shard in np.unique(shards)]
        self.open_shards = open_shards

    def _permutation(self, epoch: int) -> np.ndarray:
        random = random_numbers(self.seed, ORDER, epoch)
        turn = random.permutation(len(self.members))
        blocks = [turn[first : first + self.open_shards] for first in range(0, len(turn), self.open_shards)]
        return np.concatenate(
            [random.permutation(np.concatenate([self.members[shard] for shard in block])) for block in blocks]
        )


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
