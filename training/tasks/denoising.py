"""What tasks that teach a network to denoise have in common: noisy inputs, and the loss of what the network says."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.report.pictures import grid
from brickwork.training.engine.previews import draw_samples, leave_pipeline, show_sheet
from brickwork.training.task import Step, Task

SAME = 1e-4  # between two parameterizations that ask a network for the same


class DenoisingTask(Task):
    """A network that is shown images in noise.

    Attributes:
        parameterization: noise levels, network inputs and targets (see `brickwork.gen.parameterization`).
    """

    parameterization: Any

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        return self.parameterization.noise_levels(normal)

    def noisy(
        self, images: torch.Tensor, batch: dict[str, torch.Tensor], conditions: dict, subnet: Any = None
    ) -> Step:
        """A step in which images `(B, …)` lie in the noise of a batch."""
        noise, level = batch["noise"], self.parameterization.noise_levels(batch["level"])
        sample, timestep = self.parameterization.network_inputs(images, noise, level)
        return Step(images, noise, level, sample, timestep, conditions, subnet)

    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        return [network(step.sample, step.timestep, **step.conditions).sample]

    def losses(self, step: Step) -> torch.Tensor:
        """The loss of each image `(B,)`, averaged over the outputs that learn, by the network's weights for them."""
        weights = getattr(self.network, "output_weights", (1.0,) * len(step.outputs))
        learning = [pair for pair in zip(step.outputs, weights) if pair[0].requires_grad]
        learning = learning or list(zip(step.outputs, weights))
        losses = [
            weight * self.parameterization.losses(output, step.images, step.noise, step.level)
            for output, weight in learning
        ]
        mean = torch.stack(losses).sum(dim=0) / sum(weight for _, weight in learning)
        return mean if step.weight is None else step.weight * mean

    def check_teacher(self, source: str, parameterization: Any, channels: int) -> None:
        """Raise a `ValueError` for a teacher that was asked for something else than this network is."""
        shape = 5, self.network.config.in_channels, 4, 4
        if channels != shape[1]:
            raise ValueError(f"`teacher` is {source!r}, a network of {channels} channels; this one has {shape[1]}.")
        generator = torch.Generator().manual_seed(0)
        images, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        level = self.parameterization.noise_levels(torch.linspace(-1.5, 1.5, shape[0]))

        def question(one: Any) -> list[torch.Tensor]:
            return [*one.network_inputs(images, noise, level), one.target(images, noise, level)]

        pairs = zip(question(self.parameterization), question(parameterization))
        if not all(torch.allclose(ours, theirs, atol=SAME) for ours, theirs in pairs):
            raise ValueError(
                f"`teacher` is {source!r}, which was trained to predict something else "
                f"({type(parameterization).__name__}) than this run asks for; take one of the run's own `objective`."
            )

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        leave_pipeline(self, weights, folder)


class LabelledTask(DenoisingTask):
    """A denoiser of pictures or clips, with classes or without.

    Attributes:
        held_out: the frozen list that the averaged weights are scored on, if any.
        counted: what the run counts, for the log.
        columns: of a sheet of samples, at most.
    """

    held_out: PairedSet | None
    counted: ClassVar[str] = "images"
    columns: ClassVar[int] = 8

    def labels(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The classes of a batch `(B,)`, a share `objective.label_dropout` of them hidden; `None` without classes."""
        num_classes = self.network.config.num_classes
        if num_classes is None:
            return None
        return torch.where(batch["label_draw"] < self.config.objective.label_dropout, num_classes, batch["label"])

    def shown_subnet(self) -> str | None:
        """The part of the network that is scored; `None` for all of it."""
        return None

    def preview(self, images: int, log: Any) -> None:
        """Score the averaged weights on the held-out list, and draw a grid of samples."""
        settings, sheet = self.config.samples, None
        if self.held_out is not None:
            with self.accelerator.autocast():
                result = paired_loss(self.network, self.held_out, self.parameterization, self.shown_subnet())
            scalars = {"held_out/loss": result["loss"]}
            if len(result["per_estimate"]) > 1:
                scalars |= {f"held_out/brick_{i}": loss for i, loss in enumerate(result["per_estimate"])}
            scalars |= {f"held_out_at/sigma_{sigma}": loss for sigma, loss in result["per_level"].items()}
            log.scalars(images, scalars)
            self.accelerator.print(f"{images:,} {self.counted}: held-out paired loss {result['loss']:.4f}")
        if settings.count:
            with self.accelerator.autocast():
                classes, guidance = self.network.config.num_classes, settings.guidance_scale
                drawn = draw_samples(self.pipeline(self.network), classes, settings.count, settings.steps, guidance)
            sheet = grid(drawn, columns=min(self.columns, len(drawn)))
        show_sheet(self, sheet, images, log)
