"""The endless stream of training samples, in which every random number is a function of seed and position.

Position n is the n-th image that the run sees. Its row, its noise, its noise level and its flips all follow from the
seed and n alone, so a run that goes on from a checkpoint, has other workers or more processes sees the same samples.
"""

import signal
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from brickwork.training.data.augmentation import Augmentation
from brickwork.training.data.buckets import (
    AUGMENT,
    FALLBACK,
    POSTERIOR,
    SAMPLE,
    BlockShuffledRows,
    BucketedRows,
    ShuffledRows,
    random_numbers,
)
from brickwork.training.data.images import BrokenImage, DataLost, LabelledImages

# A picture that cannot be read is replaced by another one; as many are tried before the data counts as lost.
_TRIES = 16


def order_rows(images: LabelledImages, rows: np.ndarray, seed: int, batch_size: int) -> ShuffledRows:
    """The order that suits the data: by bucket where there are several, by shard where there are such, else free.

    Raises:
        ValueError: where no row is left.
    """
    if len(rows) == 0:
        raise ValueError("No image is left to train on; lower `data.held_out` or check `data.classes`.")
    if len(images.shapes) > 1:
        return BucketedRows(rows, images.buckets[rows], images.shapes, batch_size, seed)
    shards = getattr(images.table, "shard_of_row", None)
    if shards is not None:
        return BlockShuffledRows(rows, shards[rows], seed)
    return ShuffledRows(rows, seed)


class TrainingStream(Dataset):
    """Samples by position, with everything random that a training step needs.

    Args:
        images: the data set.
        rows: row numbers to draw from.
        seed: seed of the run.
        horizontal_flip: mirror half of the images.
        batch_size: images of a step, which with buckets all have one shape.
        augmentation: what is done to images; the network is told.
        progressive: images seen, and the size of samples from then on; none for the images' own.
    """

    def __init__(
        self,
        images: LabelledImages,
        rows: np.ndarray,
        seed: int,
        horizontal_flip: bool = False,
        batch_size: int = 1,
        augmentation: Augmentation | None = None,
        progressive: Sequence[tuple[int, int]] = (),
    ):
        self.images, self.seed, self.horizontal_flip = images, seed, horizontal_flip
        self.augmentation, self.progressive = augmentation, progressive
        self.row: Callable[[int], int] = order_rows(images, rows, seed, batch_size)

    @property
    def fingerprint(self) -> str:
        """Of the data (see `LabelledImages.fingerprint`)."""
        return self.images.fingerprint

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """`image (C, H, W)`; `label`; `noise` like the image; `level` normal; `label_draw` uniform; `broken`, the row
        of a picture that could not be read and was replaced, else -1; for crops of canvases also `crop (4,)`: top and
        left of the image on its canvas, height and width of that; with an augmentation also `augment_labels`, float32.

        Raises:
            DataLost: where replacements cannot be read either.
        """
        image, label, *crop, broken = self._readable(position)
        random = random_numbers(self.seed, SAMPLE, position)
        if random.random() < 0.5 and self.horizontal_flip:
            image = image[..., ::-1].copy()
            crop = [(top, -(left + image.shape[-1]) % width, height, width) for top, left, height, width in crop]
        further = {"crop": torch.tensor(crop[0])} if crop else {}
        if self.augmentation is not None:
            labels = self.augmentation.draw(random_numbers(self.seed, AUGMENT, position))
            image, further["augment_labels"] = self.augmentation.apply(image, labels), torch.from_numpy(labels)
        return further | {
            "image": torch.from_numpy(image),
            "label": torch.tensor(label),
            "level": torch.tensor(random.standard_normal(), dtype=torch.float32),
            "label_draw": torch.tensor(random.random(), dtype=torch.float32),
            "noise": torch.from_numpy(random.standard_normal(image.shape, dtype=np.float32)),
            "broken": torch.tensor(broken),
        }

    def _readable(self, position: int) -> tuple:
        """The sample of a position, or of a replacement that follows from seed and position too; the broken row."""
        row = self._row(position)
        try:
            return *self._sample(row, position), -1
        except BrokenImage as error:
            reason = error
        for other in random_numbers(self.seed, FALLBACK, position).choice(self._replacements(row, position), _TRIES):
            try:
                return *self._sample(int(other), position), row
            except BrokenImage:
                continue
        raise DataLost(
            f"Row {row} of the data set cannot be read ({reason}), nor could {_TRIES} others; is `data.source` still "
            "there?"
        )

    def _row(self, position: int) -> int:
        return self.row(position)

    def _sample(self, row: int, position: int) -> tuple:
        """Image and label, and the position of a crop on its canvas if it is one."""
        random = random_numbers(self.seed, POSTERIOR, position)
        sizes = [size for start, size in self.progressive if start <= position]
        return self.images.sample(row, random, sizes[-1]) if sizes else self.images.sample(row, random)

    def _replacements(self, row: int, position: int) -> np.ndarray:
        """The rows that can stand in for a broken one: those of its shape."""
        return self.row.rows[self.images.buckets[self.row.rows] == self.images.buckets[row]]


class PositionBatches(Sampler[list[int]]):
    """The positions of each micro-batch of one process, from `start` on, without end.

    A step of `batch_size` positions is cut into accumulation steps, each of these among the processes.
    """

    def __init__(self, batch_size: int, accumulation_steps: int, rank: int, num_processes: int, start: int = 0):
        parts = accumulation_steps * num_processes
        if batch_size % parts:
            raise ValueError(
                f"`run.batch_size` is {batch_size}; make it a multiple of {parts} = {accumulation_steps} accumulation "
                f"steps × {num_processes} processes."
            )
        self.batch_size, self.micro_batch = batch_size, batch_size // parts
        self.accumulation_steps, self.num_processes = accumulation_steps, num_processes
        self.rank, self.start = rank, start

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start
        while True:
            for step in range(self.accumulation_steps):
                begin = first + (step * self.num_processes + self.rank) * self.micro_batch
                yield list(range(begin, begin + self.micro_batch))
            first += self.batch_size


def stream_batches(stream: TrainingStream, batches: PositionBatches, num_workers: int) -> DataLoader:
    """A loader over the stream; batches are dicts of stacked tensors."""
    return DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_the_main_process,
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach workers too, which must live until the main process has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
