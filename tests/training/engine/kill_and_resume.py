"""Kill a small training run again and again with SIGKILL, and see that it ends as if nothing had happened.

    python tests/training/engine/kill_and_resume.py --kills 100

A run of a tiny LEGO network saves a checkpoint after every step. Its process is killed at random moments, start-up and
the writing of checkpoints included, and started again, each time with another number of loader workers, until it ends.
After every kill, every checkpoint must be readable and none may be lost; at the end, weights, averages and optimiser
must equal those of a run that nobody killed, bit for bit. Runs are repeated until there were as many kills as wanted.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tqdm import tqdm

from brickwork.training.config.config import load_config
from brickwork.training.engine.checkpoints import CheckpointFolder
from brickwork.training.engine.loop import prepare, train
from brickwork.training.tasks.backbone import BackboneTask

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
NETWORK = (
    "{window_sizes: [8, 4], patch_sizes: [4, 2], num_layers: [1, 1], hidden_sizes: [8, 8], num_attention_heads: 2}"
)


@dataclass
class Tally:
    """What happened: kills, those while a checkpoint was written, and everything that must not happen."""

    kills: int = 0
    while_writing: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)

    def report(self) -> str:
        return (
            f"{self.kills} kills in {self.runs} runs, {self.while_writing} of them while a checkpoint was written; "
            f"{len(self.lost)} checkpoints lost or unreadable, or runs that ended otherwise. {'; '.join(self.lost)}"
        )


def config_of(folder: Path, steps: int, workers: int):
    overrides = [
        f"run.output_dir={folder}", f"run.total_images={8 * steps}", f"data.source={SAMPLE}",
        f"model.config={NETWORK}",
        f"data.num_workers={workers}", "data.size=8", "objective.brick_dropout=0.5", "optimizer.learning_rate=1e-2",
        "run.batch_size=8", "run.checkpoint_images=8", "run.log_images=8", "run.sample_images=16", "samples.count=1",
        "data.held_out=0.1",
    ]  # fmt: skip
    return load_config(None, overrides)


def start(folder: Path, steps: int, workers: int) -> int:
    """Train in a process of its own, forked so that nothing needs to be imported again; returns its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # its own is shared, and a killed process would keep it for good
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        train(prepare(BackboneTask, config_of(folder, steps, workers)))
        status = 0
    finally:
        os._exit(status)


def ended(process: int, seconds: float, unless=lambda: False) -> bool:
    """Wait at most so long, or until something holds; whether the process ended by itself, without an error."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not unless():
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"The training process ended with status {status}.")
            return True
        time.sleep(0.002)
    return False


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors, _ = CheckpointFolder(folder / "checkpoints").newest()
    return {f"{stem}/{name}": value for stem, content in tensors.items() for name, value in content.items()}


def check_after_kill(folder: Path, best: int, tally: Tally) -> int:
    """Every checkpoint must be readable, and the newest no older than before; returns its images."""
    newest = 0
    for path in CheckpointFolder(folder / "checkpoints").list():
        try:
            newest = max(newest, CheckpointFolder._read(path)[1]["images"])
        except Exception as error:  # whatever it is, it must not happen
            tally.lost.append(f"{path}: {error}")
    if newest < best:
        tally.lost.append(f"{folder}: went back from {best} to {newest} images")
    tally.while_writing += any((folder / "checkpoints").glob(".images-*"))
    return newest


def run_under_fire(folder: Path, steps: int, longest: float, chance: random.Random, tally: Tally, kills: int) -> None:
    """One run, killed until it ends or there were enough kills, and then left to end."""
    best, checkpoints = 0, CheckpointFolder(folder / "checkpoints")
    while True:
        process = start(folder, steps, workers=chance.choice((0, 0, 1)))
        newest = checkpoints.list()[-1:]
        if tally.kills >= kills:
            ended(process, 600)
            break
        if chance.random() < 0.5:  # any moment, start-up among them
            if ended(process, chance.uniform(0, longest)):
                break
        else:  # a moment near the writing of a checkpoint
            if ended(process, 60, unless=lambda before=newest: checkpoints.list()[-1:] > before):
                break
            if ended(process, chance.uniform(0, 0.1)):
                break
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        tally.kills += 1
        best = check_after_kill(folder, best, tally)
    tally.runs += 1


def kill_and_resume(folder: Path, kills: int, steps: int = 60, longest: float = 2.0, seed: int = 0) -> Tally:
    """Do all of it.

    Args:
        folder: where the runs go.
        kills: how many at least.
        steps: steps of a run.
        longest: seconds that a process lives at most before it is killed.
        seed: of the moments.
    """
    chance, tally = random.Random(seed), Tally()
    process = start(folder / "whole", steps, workers=0)
    if not ended(process, 600):
        raise RuntimeError("The run that nobody kills did not end within ten minutes.")
    expected = final_tensors(folder / "whole")
    while tally.kills < kills:
        run = folder / f"run-{tally.runs}"
        run_under_fire(run, steps, longest, chance, tally, kills)
        tensors = final_tensors(run)
        same = set(tensors) == set(expected) and all(torch.equal(tensors[name], expected[name]) for name in expected)
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        images, told = [line["images"] for line in lines], [(line["images"], *sorted(line)) for line in lines]
        # Every loss and every evaluation once, in order: none lost by a kill, none made again by going on.
        evaluated = sum(any(key.startswith("held_out") for key in line) for line in lines)
        complete = evaluated == steps // 2
        if not same or images != sorted(images) or len(set(told)) < len(told) or not complete:
            tally.lost.append(f"{run} ended otherwise than the run that nobody killed")
        print(tally.report(), flush=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--longest", type=float, default=2.0, help="seconds that a process lives at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = kill_and_resume(Path(folder), args.kills, args.steps, args.longest, args.seed)
    return 1 if tally.lost else 0


if __name__ == "__main__":
    sys.exit(main())
