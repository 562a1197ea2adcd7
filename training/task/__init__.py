"""What a training task is to the engine: what is built, what is lost, what is shown, what is left.

The engine (`brickwork.training.engine`) counts images, steps, averages, saves and resumes; it knows neither networks
nor data. A task is one class, and what it computes in a step is one `Step`, which its loss and every further objective
(`brickwork.training.objectives`) read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator


@dataclass
class Step:
    """A micro-batch, and everything that is computed of it once.

    Shapes beyond the batch axis are the task's own: `(B, C, H, W)` for pictures and latents, `(B, C, F, H, W)` with
    frames, `(B, C, L)` for series.

    Attributes:
        images: what is to be learned, clean, such as pixels in [-1, 1] or latents `(B, …)`.
        noise: like the images; `None` for a task without noise.
        level: the noise level of each image `(B,)`, as the task's parameterization counts it.
        sample: the network's input `(B, …)`.
        timestep: what the network is told of the noise level `(B,)`.
        conditions: the network's further arguments by name, such as `class_labels` or `encoder_hidden_states`.
        subnet: the part of the network that runs, in the task's own terms; `None` for all of it.
        outputs: what the network said, the last one its answer; filled after the forward pass.
        pixels: the clean pictures `(B, 3, H, W)` in [-1, 1], where the run has them; `None` for latents from a cache.
        taps: outputs of modules within it by name, those that an objective asked for; filled with the outputs.
        weight: of each image's loss `(B,)`; `None` for 1.
    """

    images: torch.Tensor
    noise: torch.Tensor | None
    level: torch.Tensor
    sample: torch.Tensor
    timestep: torch.Tensor
    conditions: dict[str, Any] = field(default_factory=dict)
    subnet: Any = None
    outputs: list[torch.Tensor] = field(default_factory=list)
    taps: dict[str, torch.Tensor] = field(default_factory=dict)
    weight: torch.Tensor | None = None
    pixels: torch.Tensor | None = None


@dataclass(frozen=True)
class Phase:
    """A part of a run with an optimiser, a course of the learning rate and a ramp of the averages of its own.

    When it ends, its averaged weights become the weights.

    Attributes:
        start: images at which it begins.
        end: images at which it ends.
    """

    start: int
    end: int

    def parameters(self, network: torch.nn.Module) -> set[str]:
        """The names of what learns in it."""
        return {name for name, _ in network.named_parameters()}


class Task(ABC):
    """One kind of training.

    Attributes:
        sections: of a run's configuration that the task reads.
        config: these, and no others.
        accelerator: devices, processes and precision.
        network: what learns; parameters that do not require gradients stay as they are, and are not saved.
        stream: samples by position, each a dictionary with `level` (a standard normal number, which becomes a noise
            level) and `broken` (a row that could not be read, else -1); `fingerprint` says of which data.
        plan: the figures that follow from the configuration, to be read before the first step.
        metrics: distances to a reference that pictures of the averaged weights are measured by (`LiveMetrics`).
        fixed: a checksum of weights that neither learn nor are saved, and must be the same when a run goes on.
        objectives: further losses that belong to the task, beside those that the configuration names.
        configuration: the class of `config`.
        drawn_in_part: whether pictures are drawn with a part of the network, which sharding does not gather alone.
        leaves_out: the configuration's key by which steps leave parameters out, if they do.
        phase: the part of the run that is under way; the engine sets it.
    """

    sections: ClassVar[tuple[str, ...]] = ("model", "data", "objective", "samples", "run")
    config: Any
    accelerator: Accelerator
    network: torch.nn.Module
    stream: Any
    plan: str = ""
    metrics: Any = None
    fixed: str | None = None
    objectives: Sequence[Any] = ()
    configuration: ClassVar[type]
    drawn_in_part: ClassVar[bool] = False
    leaves_out: str | None = None
    phase: Phase | None = None

    @staticmethod
    def handlers(config: Any) -> list[Any]:
        """Further settings of the accelerator (accelerate's `kwargs_handlers`)."""
        return []

    @classmethod
    @abstractmethod
    def build(cls, config: Any, accelerator: Accelerator, dry_run: bool = False) -> Task:
        """Everything that a run needs, from its `sections`; a dry run leaves nothing behind.

        Raises:
            ValueError: for a configuration that describes something else, or things that do not fit together.
        """

    @abstractmethod
    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        """What a micro-batch on the device means, before the network has seen it.

        Args:
            batch: stacked samples of the stream.
            number: of the optimiser's step. Random numbers follow from it, or are torch's, which are seeded by it.
        """

    @abstractmethod
    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        """What a network (the one in training as its processes wrap it, or a teacher) says of a step."""

    @abstractmethod
    def losses(self, step: Step) -> torch.Tensor:
        """The loss of each image `(B,)`."""

    def sizes(self) -> tuple[int, int]:
        """Parameters of the network, and those of them that learn."""
        counts = [(p.numel(), p.requires_grad) for p in self.network.parameters()]
        return sum(number for number, _ in counts), sum(number for number, learns in counts if learns)

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers `(N,)` => noise levels `(N,)`, by which the log tells losses apart."""
        return normal

    def phases(self) -> list[Phase]:
        """The parts of the run, in order; one for most."""
        return [Phase(0, self.config.run.total_images)]

    def teacher(self, source: str) -> torch.nn.Module:
        """A trained network by a name or folder, to learn from.

        Raises:
            ValueError: for one that cannot be had, or was trained for something else.
        """
        raise ValueError(f"`teacher` is {source!r}, but {type(self).__name__} takes none; leave such objectives out.")

    def sample_with(self, changes: dict[str, Any]) -> None:
        """Have pipelines draw with a first-order, deterministic scheduler of diffusers.

        Args:
            changes: of its configuration.
        """
        raise ValueError(f"A {type(self).__name__} draws with no scheduler; leave objectives that choose one out.")

    def without_conditions(self, step: Step) -> Step:
        """The step under the null condition, for classifier-free guidance.

        Raises:
            ValueError: for networks that read no condition.
        """
        raise ValueError(f"A {type(self).__name__} has no null condition; set `guidance` to 1.")

    def pipeline(self, network: torch.nn.Module) -> Any:
        """What draws with a network in the state of the run, for metrics."""
        raise ValueError(
            f"{type(self).__name__} draws nothing that could be measured; set `metrics.every_images` to 0."
        )

    @abstractmethod
    def preview(self, images: int, log: Any) -> None:
        """Show what the averaged weights, which are in the network now, can do after `images` images.

        Every process does the same, so that sharded networks can be run; the main process writes.
        """

    @abstractmethod
    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Leave what the run is for: averaged weights by name, gathered on the CPU; called on all processes."""
