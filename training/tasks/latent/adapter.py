"""The task of `train_adapter.py`: any adapter on activations learns on a frozen Stable Diffusion, from pairs.

A row of the data set has the picture that is to be drawn, its caption, and whatever the adapter's conditions are made
of, such as a reference picture in a column of its own.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from brickwork.adapters.base import KINDS, adapter_class, kind_of, load_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.adapters.modules import ModuleAdapter
from brickwork.errors import no_unknown, one_of
from brickwork.eval.sets.decode import open_upright, to_rgb
from brickwork.eval.sets.reader import undecoded
from brickwork.eval.sets.tables import find_column
from brickwork.training.config.adapter import ModuleAdapterConfig
from brickwork.training.config.latent import AdapterRunConfig
from brickwork.training.data.captioned import CaptionedStream
from brickwork.training.engine.checkpoints import load_tensors, trained_tensors
from brickwork.training.task import Step
from brickwork.training.tasks.latent.encoding import freeze_unet
from brickwork.training.tasks.latent.task import LatentTask

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


def _decoded(value: Any) -> Any:
    stored = isinstance(value, bytes) or (isinstance(value, dict) and {"bytes", "path"} & value.keys())
    return to_rgb(open_upright(value)) if stored else value


class PairedStream(CaptionedStream):
    """Samples whose conditions can be read; others count as broken pictures do.

    Attributes:
        conditions: of the rows.
    """

    conditions: Conditions

    def _sample(self, row: int, position: int) -> tuple:
        self.conditions(row)
        return super()._sample(row, position)


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
        try:
            adapter = kind.create(pipeline, **settings.config)
        except TypeError as error:
            raise ValueError(f"`adapter.config` does not fit a {settings.type}: {error}.") from None
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


class AdapterTask(LatentTask):
    """An adapter on activations learns; the pipeline stays as it is.

    Attributes:
        adapter: what is trained.
    """

    configuration = AdapterRunConfig
    adapter: ModuleAdapter
    network: AdaptedNetwork

    @staticmethod
    def handlers(config: AdapterRunConfig) -> list[Any]:
        # What an adapter leaves out for a picture of some size has no gradient.
        return [DistributedDataParallelKwargs(find_unused_parameters=True)]

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
        count = sum(parameter.numel() for parameter in task.adapter.trainable_parameters())
        given = ", ".join(f"{name} from {column!r}" for name, column in config.adapter.conditions.items())
        task.plan += f"\nTrained is a {task.adapter.kind} of {count:,} parameters; conditions: {given or 'none'}."
        return task

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        step = super().step(batch, number)
        rows = [self.stream.conditions(row) for row in batch["row"].tolist()]
        step.conditions["given"] = {name: [values[name] for values in rows] for name in rows[0]}
        return step

    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        conditions = dict(step.conditions)
        if not isinstance(self.accelerator.unwrap_model(network), AdaptedNetwork):  # a teacher
            del conditions["given"]
        return [network(step.sample, step.timestep, **conditions).sample]

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
            self.accelerator.print(f"The adapter with the averaged weights is in {file}; `load_adapter` takes it.")
