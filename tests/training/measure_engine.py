"""What the engine costs: its overhead over a bare loop, what the loader feeds, and memory over many steps.

    python tests/training/measure_engine.py overhead --rounds 7
    python tests/training/measure_engine.py loader
    python tests/training/measure_engine.py memory --steps 10000

The bare loop has the same network, batches, loss, optimiser and averages, and nothing else: no clipping, no counting
of losses, no checks, no progress bar, no accelerate. Both take turns, and processor seconds of one thread are measured
rather than time on the wall, so that what else the machine does matters little.
"""

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from brickwork.training.config.config import load_config
from brickwork.training.data.stream import PositionBatches, stream_batches
from brickwork.training.engine import loop
from brickwork.training.engine.ema import EMA
from brickwork.training.tasks.backbone import BackboneTask

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "data" / "emoji" / "sample.parquet"
TINY = "{window_sizes: [8, 4], patch_sizes: [4, 2], num_layers: [1, 1], hidden_sizes: [8, 8], num_attention_heads: 2}"


def build(folder: str, *overrides: str):
    """A run like the first half of the weights that ship, on the sample: 16 images a step, uncompiled, none drawn."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    never = 10**12
    quiet = [
        f"data.source={SAMPLE}", f"run.output_dir={folder}", "run.compile=false", "run.sample_images=0",
        f"run.checkpoint_images={never}", "objective.brick_dropout=0", f"run.total_images={never}",
        "run.batch_size=16", "data.num_workers=0",
    ]  # fmt: skip
    config = load_config(ROOT / "training" / "configs" / "lego_emoji_64_eight_groups.yaml", [*quiet, *overrides])
    with contextlib.redirect_stdout(io.StringIO()):
        return loop.prepare(BackboneTask, config)


class Timed:
    """What a run calls its network by; notes when each step begins, and stops the run after some steps."""

    def __init__(self, run: loop.Run, steps: int):
        self.call, self.steps, self.times = run.task.call, steps, []
        run.task.call = self

    def __call__(self, network, step):
        self.times.append(time.process_time())
        if len(self.times) > self.steps:
            raise StopIteration
        return self.call(network, step)


def engine_seconds(steps: int, *overrides: str) -> float:
    """Processor seconds a step of the engine, the first left out."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        run = build(folder + "/run", *overrides)
        timed = Timed(run, steps)
        with contextlib.suppress(StopIteration):
            loop.train(run)
        return (timed.times[-1] - timed.times[1]) / (steps - 1)


def bare_seconds(steps: int, *overrides: str) -> float:
    """Processor seconds a step of the bare loop, the first left out."""
    with tempfile.TemporaryDirectory() as folder:
        run = build(folder + "/run", *overrides)
    config, model = run.config, run.task.network.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    ema = EMA(model, 1000)
    batches = iter(stream_batches(run.task.stream, PositionBatches(config.run.batch_size, 1, 0, 1), 0))
    for step in range(steps + 1):
        batch = next(batches)
        if step == 1:
            begin = time.process_time()
        if step == steps:
            break
        with run.accelerator.autocast():
            losses, _, _ = loop.compute(run, model, batch, step)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(config.run.batch_size * (step + 1), config.run.batch_size)
    return (time.process_time() - begin) / (steps - 1)


def overhead(rounds: int, steps: int) -> None:
    """Print the ratio of both, the rounds' middle and their spread."""
    ratios, seconds = [], []
    for number in range(rounds):
        order = (engine_seconds, bare_seconds) if number % 2 else (bare_seconds, engine_seconds)
        taken = {measure: measure(steps) for measure in order}
        ratios.append(taken[engine_seconds] / taken[bare_seconds] - 1)
        seconds.append(taken[engine_seconds])
        print(f"round {number + 1}: {taken[engine_seconds]:.4f} s a step, {100 * ratios[-1]:+.1f}%", flush=True)
    print(
        f"engine over bare loop: {100 * statistics.median(ratios):+.1f}% (middle of {rounds} rounds of {steps} steps, "
        f"from {100 * min(ratios):+.1f}% to {100 * max(ratios):+.1f}%); {statistics.median(seconds):.3f} s a step"
    )


def loader(workers: int, seconds: float = 5.0) -> None:
    """Print how many images a second come out of the loader, the first pass (decoding) and later ones."""
    with tempfile.TemporaryDirectory() as folder:
        run = build(folder + "/run")
    step = engine_seconds(6)
    size = run.config.run.batch_size
    epoch = -(-len(run.task.stream.row) // size)
    batches = iter(stream_batches(run.task.stream, PositionBatches(size, 1, 0, 1), workers))
    for name, number in (("first pass (decoding)", epoch), ("later passes", 10 * epoch)):
        begin, count = time.process_time(), 0
        for _ in itertools.islice(batches, number):
            count += size
            if time.process_time() - begin > seconds:
                break
        fed = count / (time.process_time() - begin)
        print(f"{name}: {fed:,.0f} images/s, {fed * step / size:.1f} times what a step takes ({size / step:.1f}/s)")


def memory(steps: int) -> None:
    """Print resident memory over the steps of a tiny run, which saves and draws as it goes."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    class Watched(Timed):
        def __call__(self, network, step):
            if len(self.times) % (steps // 10) == 0:
                print(f"step {len(self.times):>6}: {resident():.1f} MiB", flush=True)
            return super().__call__(network, step)

    tiny = [
        f"model.config={TINY}", "data.size=8", "data.classes=null", "run.batch_size=2", "run.checkpoint_images=2000",
        "run.log_images=200", "run.sample_images=4000", "samples.steps=2", "samples.count=4", "run.mixed_precision=no",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        run = build(folder + "/run", *tiny, f"run.total_images={2 * steps}")
        Watched(run, steps + 1)
        run.accelerator.print = lambda *text: None
        loop.train(run)
        print(f"step {steps:>6}: {resident():.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "loader", "memory"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12, help="steps of a round, or of the memory run")
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "overhead":
        overhead(args.rounds, args.steps)
    elif args.what == "loader":
        loader(args.workers)
    else:
        memory(args.steps)


if __name__ == "__main__":
    main()
