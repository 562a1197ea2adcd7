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

from brickwork.errors import one_of
from brickwork.eval.extractors.features import Extractor, FeatureStream
from brickwork.eval.extractors.protocols import get_protocol, to_uint8
from brickwork.eval.metrics.calculate import require_same_extractor
from brickwork.eval.metrics.feature_sets import in_order
from brickwork.eval.metrics.reference import Reference
from brickwork.eval.metrics.registry import METRICS, Given, MetricSettings
from brickwork.eval.sampling.sample_set import PipelineCall, SamplingSettings
from brickwork.eval.sets.pictures import batches


@dataclass
class LiveMetrics:
    """What to draw and what to measure it against.

    Attributes:
        reference: What `brickwork evaluate ref` wrote.
        extractor: The reference's, on its device.
        settings: Which pictures; `height` and `width` of their call are the reference's.
        batch_size: Pictures at once in each process.
        names: Metrics of features; those are left out that would mean nothing with so many pictures, or need what the
            reference does not hold.

    Raises:
        ValueError: for another extractor than the reference's, or where no metric is left.
    """

    reference: Reference
    extractor: Extractor
    settings: SamplingSettings
    batch_size: int = 16
    names: tuple[str, ...] = ("fd", "kd")

    def __post_init__(self):
        require_same_extractor(self.reference, self.extractor)
        refusals = {name: self._refusal(name) for name in self.names}
        self.names = tuple(name for name, refusal in refusals.items() if refusal is None)
        if not self.names:
            raise ValueError(
                f"metrics: {self.settings.count} samples and a reference of {len(self.reference)} pictures allow none "
                f"of {', '.join(refusals)}: {'; '.join(map(str, refusals.values()))}"
            )

    def _given(self, outputs: dict[str, torch.Tensor] | None = None) -> Given:
        settings = MetricSettings(self.names)
        return Given(settings, self.settings.count, self.extractor, self.reference, outputs or {})

    def _refusal(self, name: str) -> ValueError | None:
        """Why a metric cannot be measured."""
        try:
            one_of("metrics", name, METRICS).require(self._given())
        except ValueError as error:
            return error
        return None

    @property
    def titles(self) -> list[str]:
        """What the values are called."""
        return [title for name in self.names for title in METRICS[name].titles(self.extractor)]

    @property
    def conditions(self) -> str:
        """What no value may be compared without: protocol, number, reference."""
        protocol = self.reference.info["protocol"]["name"]
        return f"{protocol}.N{self.settings.count}.{self.reference.identity[:8]}"

    def measure(self, pipeline, cancelled: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Draw and measure; all processes take part, each with its share of the batches, and get the same answer.

        Args:
            pipeline: To draw with; the networks are used as they are.
            cancelled: Asked before every batch, in all processes alike.

        Returns:
            Values by name and `conditions`, not a number where a picture was not finite; `None` if cancelled.
        """
        outputs = self._outputs(pipeline, cancelled)
        if outputs is None:
            return None
        if not bool(torch.isfinite(outputs["features"]).all()):
            return {f"{title}.{self.conditions}": float("nan") for title in self.titles}
        scores = {}
        for name in self.names:
            METRICS[name].require(self._given(outputs), measured=True)
            scores |= METRICS[name].measure(self._given(outputs))
        return {f"{title}.{self.conditions}": score.value for title, score in scores.items()}

    def _outputs(self, pipeline, cancelled: Callable[[], bool]) -> dict[str, torch.Tensor] | None:
        """Features and logits `(count, dimension)` of all pictures, in every process."""
        state, count = PartialState(), self.settings.count
        call = PipelineCall(pipeline, self.settings)
        pipeline.set_progress_bar_config(disable=True)
        parts = batches(count, self.batch_size)
        mine = parts[state.process_index :: state.num_processes]
        # Sharded networks run in all processes at once: who has a batch less draws one more, and drops it.
        rounds = -(-len(parts) // state.num_processes)
        found: dict[str, list[torch.Tensor]] = {}
        indices = []
        for round in tqdm(range(rounds), desc="metrics", leave=False, disable=not state.is_main_process):
            if cancelled():
                return None
            batch = mine[round] if round < len(mine) else parts[0]
            for name, rows in self._batch_outputs(call, batch).items():
                found.setdefault(name, []).append(rows)
            indices += batch if round < len(mine) else []
        return {name: in_order(torch.cat(rows), indices, count, state) for name, rows in found.items()}

    def _batch_outputs(self, call: PipelineCall, batch: range) -> dict[str, torch.Tensor]:
        """Rows of a batch, not numbers where a picture is none: the run decides what becomes of such weights."""
        pixels = call.floats(batch)
        scale = 1.0 if np.isfinite(pixels).all() else torch.nan
        parts: list[dict[str, torch.Tensor]] = []
        stream = FeatureStream(self.extractor, get_protocol(self.reference.info["protocol"]["name"]), parts.append)
        stream.add(to_uint8(pixels if scale == 1.0 else np.zeros_like(pixels)).permute(0, 3, 1, 2))
        stream.finish()
        return {
            name: scale * torch.cat([part[name] for part in parts])
            for name in ("features", "logits")
            if name in parts[0]
        }
