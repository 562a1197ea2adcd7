"""Features of a complete set of pictures: extracted by one process or many, with the same result."""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from brickwork.eval.extractors.features import FIXED_BATCH, Extractor, FeatureStream, load_extractor
from brickwork.eval.extractors.protocols import Protocol, get_protocol
from brickwork.eval.metrics.distances import FeatureStatistics
from brickwork.eval.sets.pictures import (
    ImageSet,
    Inspection,
    Preparation,
    batches,
    decode_ahead,
    from_arrays,
    inspect_images,
    refuse_corrupt,
)

STATISTICS_OF = ("features", "spatial")
ROWS_AT_ONCE = 1024  # rows gathered before they are added to the second moment, which a few rows would be slow at


@dataclass
class FeatureSet:
    """What is kept of a set of pictures.

    Attributes:
        statistics: Count, mean and covariance of `features` and, if the extractor has them, `spatial`.
        outputs: float32 rows in the order of the set, of those outputs that were asked for.
        digests: uint8 `(count, 32)`, SHA-256 of every picture as it was measured.
        inspection: Size, and how many were converted.
    """

    statistics: dict[str, tuple[int, torch.Tensor, torch.Tensor]]
    outputs: dict[str, torch.Tensor]
    digests: torch.Tensor
    inspection: Inspection

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def data_sha256(self) -> str:
        """One hash of all pictures in their order."""
        return hashlib.sha256(self.digests.numpy().tobytes()).hexdigest()


class _Collector:
    """Adds features up and keeps those that are wanted, in the order in which they come."""

    def __init__(self, keep: tuple[str, ...]):
        self.keep, self.kept, self.waiting, self.statistics = keep, {}, {}, {}

    def add(self, outputs: dict[str, torch.Tensor]) -> None:
        for name, rows in outputs.items():
            if name in self.keep:
                self.kept.setdefault(name, []).append(rows)
            if name in STATISTICS_OF:
                self.waiting.setdefault(name, []).append(rows)
                if sum(map(len, self.waiting[name])) >= ROWS_AT_ONCE:
                    self.flush(name)

    def flush(self, name: str) -> None:
        rows = torch.cat(self.waiting.pop(name))
        self.statistics.setdefault(name, FeatureStatistics(rows.shape[1], sync_on_compute=False)).update(rows)


def extract_features(
    images: ImageSet,
    extractor: Extractor,
    protocol: Protocol,
    preparation: Preparation | None = None,
    keep: tuple[str, ...] = ("features",),
    progress: bool = True,
) -> FeatureSet:
    """Run an extractor over a set of pictures, shared among the processes of an `accelerate launch`.

    Args:
        images: What to measure.
        extractor, protocol, preparation: How; all three belong to the numbers that follow.
        keep: Which outputs to keep row by row (`features`, `logits`).
        progress: Show a bar.

    Returns:
        The same in every process, but for rounding in the last digits of the float64 sums the same for any number of
        them. Corrupt, mixed and non-RGB pictures are refused, counted and named.
    """
    state, preparation = PartialState(), preparation or Preparation()
    inspection = inspect_images(images, preparation)
    parts = batches(len(images), FIXED_BATCH)
    # At least one batch each, so that every process knows the shapes: the share of a process without any is counted 0.
    mine = parts[state.process_index :: state.num_processes]
    collector, digests, corrupt, rows = _Collector(keep), torch.zeros(len(images), 32, dtype=torch.uint8), [], []
    hidden = not progress or not state.is_main_process
    with tqdm(total=len(images), unit="image", desc=extractor.name, disable=hidden) as bar:
        for batch in decode_ahead(images, mine or parts[:1], preparation, inspection.size):
            stream = FeatureStream(extractor, protocol, collector.add)
            stream.add(batch.pixels)
            stream.finish()
            digests[batch.indices] = batch.digests
            corrupt += batch.corrupt
            rows += batch.indices
            bar.update(len(batch.indices) * state.num_processes)
    for name in list(collector.waiting):
        collector.flush(name)
    if state.num_processes > 1:
        corrupt = sorted(set(gather_object(corrupt)))
    refuse_corrupt(corrupt, images)
    if not mine:
        for statistics in collector.statistics.values():
            statistics.reset()
        digests.zero_()
    outputs = {
        name: in_order(torch.cat(parts), rows if mine else [], len(images), state)
        for name, parts in collector.kept.items()
    }
    return FeatureSet(
        {name: _combined(statistics, state) for name, statistics in collector.statistics.items()},
        outputs,
        _sum_over_processes(digests, state),
        inspection,
    )


def _combined(statistics: FeatureStatistics, state: PartialState) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Count, mean and covariance over all processes.

    The sums are added up in place: torchmetrics would hand every process those of all others first.
    """
    if state.num_processes > 1:
        statistics = statistics.to(state.device)
        for sums in (statistics.count, statistics.total, statistics.second_moment):
            torch.distributed.all_reduce(sums)
    count, mean, covariance = statistics.compute()
    return count, mean.cpu(), covariance.cpu()


def in_order(rows: torch.Tensor, indices: list[int], count: int, state: PartialState) -> torch.Tensor:
    """Rows of all processes in order: each row is filled by one process and zero in the others."""
    filled = torch.zeros(count, rows.shape[1])
    filled[indices] = rows[: len(indices)]
    return _sum_over_processes(filled, state)


def _sum_over_processes(tensor: torch.Tensor, state: PartialState) -> torch.Tensor:
    if state.num_processes == 1:
        return tensor
    tensor = tensor.to(state.device)
    torch.distributed.all_reduce(tensor)
    return tensor.cpu()


_loaded = cache(load_extractor)


def lite_features(pictures: np.ndarray) -> torch.Tensor:
    """EfficientNet-Lite0's features `(N, 1280)` of pictures uint8 `(N, H, W, 3)`, by which studies compare them."""
    extractor, protocol = _loaded("efficientnet-lite0"), get_protocol("clean")
    return extract_features(from_arrays(pictures), extractor, protocol, progress=False).outputs["features"]
