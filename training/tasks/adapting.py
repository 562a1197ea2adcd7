"""Adapters on activations in training: the adapter on a frozen network, of ours too, and its conditions."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from tqdm import tqdm

from brickwork.adapters.base import KINDS, adapter_class, kind_of, load_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.adapters.modules import ModuleAdapter
from brickwork.errors import explained, no_unknown, one_of
from brickwork.eval.sets.decode import open_upright, to_rgb
from brickwork.eval.sets.reader import undecoded
from brickwork.eval.sets.tables import find_column
from brickwork.training.config.adapter import ModuleAdapterConfig
from brickwork.training.config.config import CONFIGS, DEFAULTS, TrainConfig
from brickwork.training.config.section import require
from brickwork.training.data.stream import TrainingStream
from brickwork.training.engine.checkpoints import load_tensors, trained_tensors
from brickwork.training.task import Step, Task
from brickwork.training.tasks.backbone import BackboneTask

FILE = "adapter.safetensors"


class AdaptedNetwork(torch.nn.Module):
    """A frozen network and the weights of the adapter on it, as one network to train.

    A call's conditions hold until the next call or `close`: checkpoints compute again in the backward pass.

    Args:
        network: frozen.
        adapter: on it.
    """

    def __init__(self, network: torch.nn.Module, adapter: ModuleAdapter):
        super().__init__()
        self.network, self.parts, self.adapter = network, adapter.parts, adapter
        self._conditions = ExitStack()

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, given: dict[str, Any] | None = None, **arguments):
        """The network's answer under the conditions `given`."""
        self.close()
        if given:
            self._conditions.enter_context(self.adapter.condition(**given))
        return self.network(sample, timestep, **arguments)

    def close(self) -> None:
        """End the conditions of the last call."""
        self._conditions.close()


class Conditions:
    """What the rows of a table say of an adapter's conditions.

    Args:
        table: of a data set.
        columns: by the names of the conditions.

    Raises:
        ValueError: for columns that the table does not have.
    """

    def __init__(self, table: Any, columns: Mapping[str, str]):
        for name, column in columns.items():
            find_column(table, column, f"adapter.conditions.{name}")
            table = undecoded(table, column)
        self.table, self.columns = table, dict(columns)

    def __call__(self, row: int) -> dict[str, Any]:
        """Values by condition: pictures are decoded, anything else is as it is stored.

        Raises:
            BrokenPicture: where a picture cannot be read.
        """
        values = self.table[int(row)] if self.columns else {}
        return {name: _decoded(values[column]) for name, column in self.columns.items()}

    def of(self, rows: Sequence[int]) -> dict[str, list]:
        """Values of several rows by condition, as `ModuleAdapter.condition` takes them."""
        values = [self(row) for row in rows]
        return {name: [one[name] for one in values] for name in self.columns}


class Paired:
    """What a stream has whose rows have conditions too; a row whose conditions cannot be read counts as broken.

    Attributes:
        conditions: of the rows.
    """

    conditions: Conditions

    def _sample(self, row: int, position: int) -> tuple:
        self.conditions(row)
        return super()._sample(row, position)


def _decoded(value: Any) -> Any:
    stored = isinstance(value, bytes) or (isinstance(value, dict) and {"bytes", "path"} & value.keys())
    return to_rgb(open_upright(value)) if stored else value


def put_on(pipeline: Any, settings: ModuleAdapterConfig) -> ModuleAdapter:
    """A fresh adapter, or one to go on from, on a pipeline; its own weights are float32 and trainable.

    Raises:
        ValueError: for a kind that is trained otherwise, and conditions that it does not take.
    """
    one_of("adapter.type", settings.type, KINDS)
    kind = adapter_class(settings.type)
    if not issubclass(kind, ModuleAdapter):
        raise ValueError(f"`adapter.type` is {settings.type!r}, which train_resadapter.py trains; choose another.")
    no_unknown("adapter.conditions", settings.conditions, kind.conditions, f"a {settings.type}")
    if settings.init_from is None:
        with explained(f"`adapter.config` does not fit a {settings.type}", TypeError):
            adapter = kind.create(pipeline, **settings.config)
    else:
        source = local_adapter(settings.init_from)
        if kind_of(source) != settings.type:
            raise ValueError(f"`adapter.init_from` holds a {kind_of(source)}, not a {settings.type}.")
        given = {name: value for name, value in settings.config.items() if name in kind.options}
        adapter = load_adapter(pipeline, source, **given)
    adapter.parts.requires_grad_(False)
    for parameter in adapter.trainable_parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return adapter


class TrainsAdapter(Task):
    """What a task has whose network is an `AdaptedNetwork`, and whose stream has `Conditions`.

    Attributes:
        adapter: what is trained.
    """

    adapter: ModuleAdapter
    network: AdaptedNetwork

    @staticmethod
    def handlers(config: Any) -> list[Any]:
        # What an adapter leaves out for a picture of some size has no gradient.
        return [DistributedDataParallelKwargs(find_unused_parameters=True)]

    def add_to_plan(self) -> None:
        """Say in the plan what is trained, and from what."""
        count = sum(parameter.numel() for parameter in self.adapter.trainable_parameters())
        columns = self.config.adapter.conditions.items()
        given = ", ".join(f"{name} from {column!r}" for name, column in columns)
        self.plan += f"\nTrained is a {self.adapter.kind} of {count:,} parameters; conditions: {given or 'none'}."

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        step = super().step(batch, number)
        step.conditions["given"] = self.stream.conditions.of(batch["row"].tolist())
        return step

    def preview(self, images: int, log: Any) -> None:
        """Show what is drawn without conditions, and leave the averaged adapter as a file that can be tried."""
        self.network.close()
        if self.accelerator.is_main_process:
            self.adapter.save(Path(self.config.run.output_dir) / FILE, overwrite=True)
        super().preview(images, log)

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Leave the averaged adapter."""
        self.network.close()
        if self.accelerator.is_main_process:
            load_tensors(trained_tensors(self.network), weights)
            (file,) = self.adapter.save(folder / FILE, overwrite=True)
            tqdm.write(f"The adapter with the averaged weights is in {file}; `load_adapter` takes it.")


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

    configuration, sections = BackboneAdapterConfig, (*BackboneTask.sections, "adapter")

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
