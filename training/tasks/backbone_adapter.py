"""Adapters on activations for networks of ours: as `latent.adapter`, on pictures with or without classes."""

from typing import Any, Self

import torch
from accelerate import Accelerator

from brickwork.training.config.adapter import ModuleAdapterConfig
from brickwork.training.config.config import CONFIGS, DEFAULTS, TrainConfig
from brickwork.training.config.section import require
from brickwork.training.data.stream import TrainingStream
from brickwork.training.tasks.adapting import AdaptedNetwork, Conditions, Paired, TrainsAdapter, put_on
from brickwork.training.tasks.backbone import BackboneTask


class BackboneAdapterConfig(TrainConfig):
    """The run of an adapter on a network of ours, which `model.init_from` names."""

    defaults = (DEFAULTS, CONFIGS / "adapter_defaults.yaml")

    adapter: ModuleAdapterConfig


class AdaptedBackbone(AdaptedNetwork):
    """An `AdaptedNetwork` that answers for its network in everything but its parameters."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


class PairedPictures(Paired, TrainingStream):
    """Samples with the number of their row."""

    def _sample(self, row: int, position: int) -> tuple:
        self._latest = row
        return super()._sample(row, position)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return super().__getitem__(position) | {"row": torch.tensor(self._latest)}


class BackboneAdapterTask(TrainsAdapter, BackboneTask):
    """An adapter on activations learns; the network stays as it is."""

    configuration = BackboneAdapterConfig

    @classmethod
    def build(cls, config: BackboneAdapterConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        require(config.model.init_from, "model.init_from", config.model.init_from, "name the trained network's folder")
        alone = "an adapter learns from pictures as they are; leave it out"
        config.data.require_unset(("horizontal_flip", "augment", "progressive", "crop_share", "latents"), alone)
        task = super().build(config, accelerator, dry_run)
        network, stream = task.network.requires_grad_(False), task.stream
        task.adapter = put_on(network, config.adapter)
        task.network, task.fixed = AdaptedBackbone(network, task.adapter), None
        run, settings = config.run, config.adapter
        task.stream = PairedPictures(stream.images, stream.row.rows, run.seed, batch_size=run.batch_size)
        task.stream.conditions = Conditions(stream.images.table, settings.conditions)
        task.add_to_plan()
        return task

    def pipeline(self, network: torch.nn.Module) -> Any:
        return super().pipeline(network.network if isinstance(network, AdaptedBackbone) else network)
