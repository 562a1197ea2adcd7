"""Distances of what a pipeline in memory draws, without files: for curves of a training run.

The pictures are those of `brickwork evaluate gen` with the same seed and number, measured by the reference's own
protocol and extractor, so that a curve's last point is what `gen` and `calc` give for the finished weights (but for
the rounding that another batch size or precision brings).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from brickwork.eval.extractors.features import Extractor, FeatureStream
from brickwork.eval.extractors.protocols import get_protocol, to_uint8
from brickwork.eval.metrics.calculate import require_same_extractor
from brickwork.eval.metrics.distances import feature_statistics, frechet_distance, kernel_distance
from brickwork.eval.metrics.feature_sets import in_order
from brickwork.eval.metrics.reference import Reference
from brickwork.eval.sampling.sample_set import PipelineCall, SamplingSettings

KD_SUBSETS, KD_SUBSET_SIZE = 100, 1000


@dataclass
class LiveMetrics:
    """What to draw and what to measure it against.

    Attributes:
        reference: What `brickwork evaluate ref` wrote.
        extractor: The reference's, on its device.
        settings: Which pictures; `height` and `width` of their call are the reference's.
        batch_size: Pictures at once in each process.

    Raises:
        ValueError: for another extractor than the reference's, or where neither distance could mean anything.
    """

    reference: Reference
    extractor: Extractor
    settings: SamplingSettings
    batch_size: int = 16

    def __post_init__(self):
        require_same_extractor(self.reference, self.extractor)
        if not self.distances:
            raise ValueError(
                f"metrics: {self.settings.count} samples and a reference of {len(self.reference)} pictures without"
                f" their features allow no distance; draw more than the {self._dimension} features of"
                f" {self.extractor.name} for a Fréchet distance, or make the reference with features for a kernel"
                " distance"
            )

    @property
    def _dimension(self) -> int:
        return len(self.reference.statistics["features"][1])

    @property
    def distances(self) -> tuple[str, ...]:
        """Which can be measured: `fd` needs more pictures than features on both sides, `kd` the features."""
        enough = min(self.settings.count, len(self.reference)) > self._dimension
        return ("fd",) * enough + ("kd",) * (self.reference.features is not None)

    def name(self, distance: str) -> str:
        """The distance with all that it may not be compared without: protocol, number, reference."""
        label, protocol = self.extractor.metric_name(distance), self.reference.info["protocol"]["name"]
        return f"{label}.{protocol}.N{self.settings.count}.{self.reference.identity[:8]}"

    def measure(self, pipeline, cancelled: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Draw and measure; all processes take part, each with its share of the batches, and get the same answer.

        Args:
            pipeline: To draw with; the networks are used as they are.
            cancelled: Asked before every batch, in all processes alike.

        Returns:
            Distances by `name`, not a number where a picture was not finite; `None` if cancelled.
        """
        features = self._features(pipeline, cancelled)
        if features is None:
            return None
        if not bool(torch.isfinite(features).all()):
            return {self.name(distance): float("nan") for distance in self.distances}
        values = {}
        if "fd" in self.distances:
            (_, *real), (_, *drawn) = self.reference.statistics["features"], feature_statistics(features)
            values[self.name("fd")] = frechet_distance(*real, *drawn)
        if "kd" in self.distances:
            real = self.reference.require_features()
            values[self.name("kd")], _ = kernel_distance(real, features, KD_SUBSETS, KD_SUBSET_SIZE)
        return values

    def _features(self, pipeline, cancelled: Callable[[], bool]) -> torch.Tensor | None:
        """Features `(count, dimension)` of all pictures, in every process."""
        state, count = PartialState(), self.settings.count
        call = PipelineCall(pipeline, self.settings)
        pipeline.set_progress_bar_config(disable=True)
        batches = [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]
        mine = batches[state.process_index :: state.num_processes]
        # Sharded networks run in all processes at once: who has a batch less draws one more, and drops it.
        rounds = -(-len(batches) // state.num_processes)
        rows, places = [], []
        for round in tqdm(range(rounds), desc="metrics", leave=False, disable=not state.is_main_process):
            if cancelled():
                return None
            batch = mine[round] if round < len(mine) else batches[0]
            found = self._batch_features(call, batch)
            rows.append(found)
            places += batch if round < len(mine) else []
        return in_order(torch.cat(rows), places, count, state)

    def _batch_features(self, call: PipelineCall, batch: range) -> torch.Tensor:
        pixels = call.floats(batch)
        if not np.isfinite(pixels).all():  # weights that have diverged; the run decides what becomes of it
            return torch.full((len(batch), self._dimension), torch.nan)
        rows: list[torch.Tensor] = []
        stream = FeatureStream(
            self.extractor, get_protocol(self.reference.info["protocol"]["name"]), lambda o: rows.append(o["features"])
        )
        stream.add(to_uint8(pixels).permute(0, 3, 1, 2))
        stream.finish()
        return torch.cat(rows)
