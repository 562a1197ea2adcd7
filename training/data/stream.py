"""The endless stream of training samples, in which every random number is a function of seed and position.

Position n is the n-th image that the run sees. Its row, its noise, its noise level and its flips all follow from the
seed and n alone, so a run that goes on from a checkpoint, has other workers or more processes sees the same samples.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from brickwork.training.data.images import LabelledImages, to_unit_range

# Streams of random numbers under one seed; numbers, not hashes, so that they are the same everywhere.
ORDER, SAMPLE, STEP = 0, 1, 2


def random_numbers(seed: int, stream: int, position: int) -> np.random.Generator:
    """The random numbers of one position of one stream (counter-based: no state to save)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, position, stream]))


class TrainingStream(Dataset):
    """Samples by position: rows in a fresh order every epoch, with everything random that a training step needs.

    Args:
        images: the data set.
        rows: row numbers to draw from.
        seed: seed of the run.
        horizontal_flip: mirror half of the images.
    """

    def __init__(self, images: LabelledImages, rows: np.ndarray, seed: int, horizontal_flip: bool = False):
        if len(rows) == 0:
            raise ValueError("No image is left to train on; lower `data.held_out` or check `data.classes`.")
        self.images, self.rows, self.seed, self.horizontal_flip = images, rows, seed, horizontal_flip
        self._epoch, self._order = -1, rows

    def row(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, random_numbers(self.seed, ORDER, epoch).permutation(self.rows)
        return int(self._order[offset])

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """`image (3, H, W)` in [-1, 1]; `label`; `noise` like the image; `level` normal; `label_draw` uniform."""
        picture, label = self.images[self.row(position)]
        random = random_numbers(self.seed, SAMPLE, position)
        image = to_unit_range(picture)
        if random.random() < 0.5 and self.horizontal_flip:
            image = image[:, :, ::-1].copy()
        return {
            "image": torch.from_numpy(image),
            "label": torch.tensor(label),
            "level": torch.tensor(random.standard_normal(), dtype=torch.float32),
            "label_draw": torch.tensor(random.random(), dtype=torch.float32),
            "noise": torch.from_numpy(random.standard_normal(image.shape, dtype=np.float32)),
        }


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
        self.accumulation_steps, self.rank, self.num_processes, self.start = (
            accumulation_steps,
            rank,
            num_processes,
            start,
        )

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
    )
