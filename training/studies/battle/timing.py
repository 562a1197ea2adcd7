"""What a network of a battle costs: operations, seconds and memory, with the machine to itself.

    python -m brickwork.training.studies.battle.timing '{"networks": {"dit": "cells/dit-seed0/train.yaml"}, …}'

`brickwork battle` starts this before it trains, since cells side by side disturb one another's clocks.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from brickwork.eval.benchmark.memory import peak_during
from brickwork.eval.benchmark.timing import Spread, Stopwatch, describe_machine
from brickwork.gen.operations import count_operations
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.config.config import load_config
from brickwork.training.data.stream import PositionBatches, stream_batches
from brickwork.training.engine.loop import Run, next_batch
from brickwork.training.studies.battle.cell import sampling_call
from brickwork.training.studies.battle.config import trained_parameters
from brickwork.training.tasks.brick_by_brick import enter, stages_of
from brickwork.training.train_backbone import prepare


def count_work(network: torch.nn.Module, size: int, num_classes: int) -> dict[str, int]:
    """Operations of one picture: `forward_operations` of the network, `training_operations` forward and backward."""
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
    return {"forward_operations": once // batch, "training_operations": both // batch}


@dataclass
class Timed:
    """One network on its device: a training step on a batch that is there already, and a batch of samples."""

    run: Run
    scores: dict

    def __post_init__(self):
        run, settings = self.run, self.run.config.run
        if settings.compile:
            run.model.compile_repeated_blocks(fullgraph=True)
        self.model, self.optimizer = enter(run, stages_of(run.config, run.model)[0], False)
        positions = PositionBatches(settings.batch_size, 1, 0, 1, start=0)
        self.batch = next_batch(iter(stream_batches(run.stream, positions, 0)), run.accelerator.device)
        self.call = sampling_call(run.make_pipeline(run.model), self.scores, self.scores["batch_size"], 0)

    def train(self) -> None:
        """One step of the training loop."""
        run = self.run
        with run.accelerator.autocast():
            losses = run.loss(run, self.model, self.batch, run.bricks)
        run.accelerator.backward(losses.mean())
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def sample(self) -> None:
        """One batch of samples."""
        self.run.model.eval()
        self.call(range(self.scores["batch_size"]))
        self.run.model.train()


def time_in_turn(jobs: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, Spread]:
    """Seconds of each job, all in turn, `rounds` times after one round that warms up."""
    stopwatch, seconds = Stopwatch(device), {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            spent = stopwatch(job)
            if number:
                seconds[name].append(spent)
    return {name: Spread.of(values) for name, values in seconds.items()}


def measure_memory(path: str, scores: dict) -> int:
    """Bytes that building a network and its second training step add at most to what the data need anyway."""
    config = load_config(path)
    gc.collect()  # what the last network left
    kept = prepare(config)  # imports and pictures are here from now on

    def two_steps() -> None:
        timed = Timed(prepare(config), scores)
        timed.train()
        timed.train()

    return peak_during(two_steps, kept.accelerator.device)["peak"]


def memory_in_child(task: dict, name: str) -> int:
    """The same in a process of its own, whose resident size knows nothing of other networks."""
    return run_in_child(task | {"networks": {name: task["networks"][name]}, "memory": True})[name]


def run_in_child(task: dict) -> dict:
    """What `main` prints of a task, done in a process of its own; what else it says is added to `task["log"]`.

    Raises:
        ValueError: with that process's last line where it failed.
    """
    command, log = (
        [sys.executable, "-m", "brickwork.training.studies.battle.timing", json.dumps(task)],
        Path(task["log"]),
    )
    with log.open("a") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        raise ValueError(f"The process that times the networks ended with status {done.returncode}: {last_words(log)}")
    return json.loads(done.stdout.splitlines()[-1])


def last_words(log: Path) -> str:
    """The error that a process ended with, or else the last line that it wrote, and where the rest is."""
    # A progress bar goes back to the start of its line, so that the error may stand in the middle of one.
    lines = log.read_text(encoding="utf-8", errors="replace").replace("error: ", "\nerror: ").strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()]
    return f"{(errors or lines or ['it said nothing'])[-1]} (all of it in {log})"


def measure_times(task: dict) -> dict:
    """Time training steps and samples of all networks in turn, and count what they do.

    Args:
        task: `networks` (name => file of its training run), `scores` of the battle, `rounds`, `log` (a file).

    Returns:
        What `timing.json` holds.
    """
    runs = {name: prepare(load_config(path)) for name, path in task["networks"].items()}
    first = next(iter(runs.values()))
    device, config = first.accelerator.device, first.config
    on_gpu = device.type == "cuda"
    costs = {
        name: {"parameters": trained_parameters(run.model)}
        | count_work(run.model, config.data.size, run.model.config.num_classes)
        for name, run in runs.items()
    }
    # Before anything else is there: on a GPU this process's own count will do.
    for name, path in task["networks"].items():
        costs[name]["peak_memory"] = measure_memory(path, task["scores"]) if on_gpu else memory_in_child(task, name)
    timed = {name: Timed(run, task["scores"]) for name, run in runs.items()}
    training = time_in_turn({name: one.train for name, one in timed.items()}, task["rounds"], device)
    sampling = time_in_turn({name: one.sample for name, one in timed.items()}, task["rounds"], device)
    images, samples = config.run.batch_size, task["scores"]["batch_size"]
    for name, spread in training.items():
        costs[name] |= {
            "seconds_per_image": spread.median / images,
            "seconds_spread": [spread.lower / images, spread.upper / images],
            "training_images_per_second": images / spread.median,
            "sampling_images_per_second": samples / sampling[name].median,
        }
    machine = describe_machine(device)
    return {
        "device": machine.get("gpu") or f"one core of {machine['cpu']}",
        "unit": "GPU s" if on_gpu else "CPU s",
        "networks": costs,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure what the one argument describes as JSON, and print the answer as JSON."""
    task = json.loads((arguments or sys.argv[1:])[0])
    # On a CPU, threads that wait for one another spend time too: the seconds of one core are what can be compared.
    torch.set_num_threads(1)
    if task.get("memory"):
        ((name, path),) = task["networks"].items()
        answer = {name: measure_memory(path, task["scores"])}
    else:
        answer = measure_times(task)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
