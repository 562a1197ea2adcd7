"""The task of `train_gan.py`: MaxViT's one-step generator learns against a discriminator."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from brickwork.errors import explained
from brickwork.eval.report.pictures import grid
from brickwork.gen.networks.gan import MaxViTGAN2DModel
from brickwork.pipelines.one_step import OneStepPipeline
from brickwork.training.config.config import TrainConfig, require_task
from brickwork.training.data.images import images_of
from brickwork.training.data.stream import TrainingStream
from brickwork.training.engine.previews import build_metrics, leave_pipeline, show_sheet
from brickwork.training.engine.schedule import course
from brickwork.training.objectives.adversarial import AdversarialObjective
from brickwork.training.task import Step, Task

PENALISED_SHARE = 4  # R1 is measured on every fourth image: a quarter of its cost, the same expectation


class GanTask(Task):
    """A generator and its discriminator, as one network; the discriminator's losses are an objective."""

    configuration, sections = TrainConfig, (*Task.sections, "metrics")
    drawn_in_part = True

    @classmethod
    def build(cls, config: TrainConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        require_task(config, ["MaxViTGAN2DModel"], "non_saturating")
        config.data.require_unset(("augment", "progressive"), "a GAN learns from pictures as they are; leave it out")
        task, images = cls(), images_of(config.data)
        task.config, task.accelerator = config, accelerator
        with explained("`objective.options` or `model.config` has a value that does not fit", TypeError):
            task.adversarial = AdversarialObjective(**config.objective.options)
            model = MaxViTGAN2DModel(sample_size=config.data.size, in_channels=images.channels, **config.model.config)
        latent_dim, numbers = model.generator.config.latent_dim, images.channels * config.data.size**2
        if latent_dim > numbers:
            raise ValueError(f"`latent_dim` is {latent_dim}, more than the {numbers} numbers of an image; lower it.")
        (rows, held_out), run = images.split(config.data.held_out), config.run
        counts = [sum(p.numel() for p in part.parameters()) for part in model.children()]
        task.plan = f"Generator {counts[0]:,} parameters, discriminator {counts[1]:,}.\n" + course(
            run, "images", len(rows), len(held_out), accelerator.num_processes
        )
        task.network, task.objectives = model, [task.adversarial]
        task.stream = TrainingStream(images, rows, run.seed, config.data.horizontal_flip, run.batch_size)
        task.metrics = build_metrics(config.metrics, config.data.size, None, accelerator, call={})
        return task

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        latents = batch["noise"].flatten(1)[:, : self.network.generator.config.latent_dim]
        return Step(batch["image"], batch["noise"], batch["level"], latents, batch["level"])

    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        """What the discriminator says of drawn images (for the generator, and for itself) and real ones; for R1."""
        penalised = max(1, len(step.sample) // PENALISED_SHARE)
        return [*network(step.images, step.sample, self.adversarial.augment, penalised)]

    def losses(self, step: Step) -> torch.Tensor:
        """The generator's loss of each image `(B,)`."""
        return F.softplus(-step.outputs[0].float())

    def pipeline(self, network: torch.nn.Module) -> OneStepPipeline:
        return OneStepPipeline(network.generator)

    def preview(self, images: int, log: Any) -> None:
        """A grid of what the averaged generator draws, from the same noise every time."""
        count = self.config.samples.count
        if not count:
            return
        with self.accelerator.autocast():
            seeds = [torch.Generator().manual_seed(k) for k in range(count)]
            pictures = self.pipeline(self.network)(count, seeds).images
        show_sheet(self, grid(np.stack([np.asarray(p) for p in pictures]), columns=min(8, count)), images, log)

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        leave_pipeline(self, weights, folder)
