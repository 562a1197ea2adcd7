"""What networks cost in training and sampling: operations, seconds and memory, with the machine to themselves.

These are cells for processes of their own, `alone=True`: cells side by side disturb one another's clocks.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brickwork.eval.benchmark.memory import peak_during
from brickwork.eval.benchmark.timing import Case, Stopwatch, describe_machine, interleave
from brickwork.eval.studies.core import Cell
from brickwork.gen.compiling import compile_blocks
from brickwork.gen.operations import count_operations
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.config.config import TrainConfig
from brickwork.training.data.stream import PositionBatches, stream_batches
from brickwork.training.engine.loop import Run, compute, next_batch, prepare
from brickwork.training.engine.schedule import begin
from brickwork.training.studies.trained import read_training, sampling_call, training_values
from brickwork.training.tasks.backbone import BackboneTask


def cost_cells(runs: Mapping[str, TrainConfig], scores: Mapping[str, Any], rounds: int) -> list[Cell]:
    """The cells `memory/NAME`, one a network, and `timing` of all in turn."""
    values = {name: training_values(config) for name, config in runs.items()}
    cells = [
        Cell(
            f"memory/{name}", f"{__name__}:memory_cell", {"train": train, "scores": scores}, {"free": free},
            alone=True, describe=lambda peak: f"{peak / 2**20:.0f} MiB",
        )
        for name, (train, free) in values.items()
    ]  # fmt: skip
    return [*cells, timing_of(runs, scores, rounds)]


def timing_of(runs: Mapping[str, TrainConfig], scores: Mapping[str, Any], rounds: int) -> Cell:
    """The cell `timing` of all networks in turn; see `timing_cell`."""
    values = {name: training_values(config) for name, config in runs.items()}
    identity = {"trains": {name: train for name, (train, _) in values.items()}, "scores": scores, "rounds": rounds}
    settings = {"frees": {name: free for name, (_, free) in values.items()}}
    return Cell("timing", f"{__name__}:timing_cell", identity, settings, alone=True, describe=_seconds)


def _seconds(timing: Mapping[str, Any]) -> str:
    costs = {name: 1e3 * cost["seconds_per_image"] for name, cost in timing["networks"].items()}
    return ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items()) + f" ms an image ({timing['unit']})"


def count_work(network: torch.nn.Module, size: int, num_classes: int) -> dict[str, int]:
    """`parameters` that learn; of one picture `forward_operations`, and `training_operations` forward and backward."""
    objective, batch = EDMObjective(), 2
    labels = torch.zeros(batch, dtype=torch.long) if num_classes else None
    sample = torch.zeros(batch, network.config.in_channels, size, size)
    sigma = objective.noise_levels(torch.zeros(batch))

    def forward() -> torch.Tensor:
        return network(sample, sigma.log() / 4, class_labels=labels).sample

    with torch.no_grad():
        once, _ = count_operations(forward)
    both, _ = count_operations(lambda: forward().square().mean().backward())
    network.zero_grad(set_to_none=True)
    learning = network.num_parameters(only_trainable=True)
    return {"parameters": learning, "forward_operations": once // batch, "training_operations": both // batch}


@dataclass
class Timed:
    """One network on its device: a training step on a batch that is there already, and a batch of samples."""

    run: Run
    scores: Mapping[str, Any]

    def __post_init__(self):
        run, task, settings = self.run, self.run.task, self.run.config.run
        if settings.compile:
            compile_blocks(task.network, training=True)
        self.model, self.optimizer = begin(task, run.settings.optimizer, task.phases()[0])
        positions = PositionBatches(settings.batch_size, 1, 0, 1, start=0)
        self.batch = next_batch(iter(stream_batches(task.stream, positions, 0)), run.accelerator.device)
        self.call = sampling_call(task.pipeline(task.network), self.scores, self.scores["batch_size"], 0)

    def train(self) -> None:
        """One step of the training loop."""
        run = self.run
        _, _, total = compute(run, self.model, self.batch, 0)
        run.accelerator.backward(total)
        run.accelerator.clip_grad_norm_(run.task.network.parameters(), run.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def sample(self) -> None:
        """One batch of samples."""
        self.run.task.network.eval()
        self.call(range(self.scores["batch_size"]))
        self.run.task.network.train()


def memory_cell(folder: Path, *, train: dict, scores: dict, free: dict) -> int:
    """Bytes that building a network and its second training step add at most to what the data need anyway.

    On a CPU that is the resident size, which in a process of its own knows nothing of other networks.
    """
    _one_core()
    config = read_training(folder, train, free)
    kept = prepare(BackboneTask, config)  # imports and pictures are here from now on

    def two_steps() -> None:
        timed = Timed(prepare(BackboneTask, config), scores)
        timed.train()
        timed.train()

    gc.collect()
    return peak_during(two_steps, kept.accelerator.device)["peak"]


def timing_cell(folder: Path, *, trains: dict, scores: dict, rounds: int, frees: dict) -> dict[str, Any]:
    """Time training steps and samples of all networks in turn, and count what they do.

    Args:
        folder: of the cell.
        trains, frees: see `training_values`, by the networks' names.
        scores: see `train_cell`.
        rounds: measurements of each network, after one that warms up.

    Returns:
        `device`, `unit` (of seconds), and `networks` with parameters, operations and seconds of each.
    """
    _one_core()
    runs = {
        name: prepare(BackboneTask, read_training(folder / name, train, frees[name])) for name, train in trains.items()
    }
    first = next(iter(runs.values()))
    device, config = first.accelerator.device, first.config
    costs = {
        name: count_work(run.task.network, config.data.size, run.task.network.config.num_classes)
        for name, run in runs.items()
    }
    timed, watch = {name: Timed(run, scores) for name, run in runs.items()}, Stopwatch(device)
    training, sampling = (
        interleave(
            [Case(kind, name, getattr(one, kind), 0, lambda: 1.0) for name, one in timed.items()], rounds, watch
        )
        for kind in ("train", "sample")
    )
    images, samples = config.run.batch_size, scores["batch_size"]
    for number, name in enumerate(runs):
        step, drawn = training.seconds_of(number), sampling.seconds_of(number)
        costs[name] |= {
            "seconds_per_image": step.median / images,
            "seconds_spread": [step.lower / images, step.upper / images],
            "training_images_per_second": images / step.median,
            "sampling_images_per_second": samples / drawn.median,
        }
    machine = describe_machine(device)
    unit = "GPU s" if device.type == "cuda" else "CPU s"
    return {"device": machine.get("gpu") or f"one core of {machine['cpu']}", "unit": unit, "networks": costs}


def _one_core() -> None:
    # On a CPU, threads that wait for one another spend time too: the seconds of one core are what can be compared.
    torch.set_num_threads(1)
