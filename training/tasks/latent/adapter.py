"""The task of `train_adapter.py`: any adapter on activations learns on a frozen Stable Diffusion, from pairs.

A row of the data set has the picture that is to be drawn, its caption, and whatever the adapter's conditions are made
of, such as a reference picture in a column of its own.
"""

from typing import Self

import diffusers
import torch
from accelerate import Accelerator

from brickwork.training.config.latent import AdapterRunConfig
from brickwork.training.data.captioned import CaptionedStream
from brickwork.training.task import Step
from brickwork.training.tasks.adapting import AdaptedNetwork, Conditions, Paired, TrainsAdapter, put_on
from brickwork.training.tasks.latent.encoding import freeze_unet
from brickwork.training.tasks.latent.task import LatentTask


class PairedStream(Paired, CaptionedStream):
    """Captioned pictures with conditions."""


class AdapterTask(TrainsAdapter, LatentTask):
    """An adapter on activations learns; the pipeline stays as it is."""

    configuration, sections = AdapterRunConfig, (*LatentTask.sections, "adapter")

    @classmethod
    def build(cls, config: AdapterRunConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        diffusers.utils.logging.set_verbosity_error()
        task = cls(config, accelerator, config.run.mixed_precision)
        unet = task.base.unet
        freeze_unet(unet, config.run.mixed_precision)
        task.adapter = put_on(task.base, config.adapter)
        task.network = AdaptedNetwork(unet, task.adapter).to(accelerator.device)
        task.finish(use_cache=not dry_run)
        plain = task.stream
        task.stream = PairedStream(
            plain.captioned, plain.row.rows, config.objective, task.base, config.run.batch_size, plain.cache
        )
        task.stream.conditions = Conditions(plain.images.table, config.adapter.conditions)
        task.add_to_plan()
        return task

    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        conditions = dict(step.conditions)
        if not isinstance(self.accelerator.unwrap_model(network), AdaptedNetwork):  # a teacher
            del conditions["given"]
        return [network(step.sample, step.timestep, **conditions).sample]
