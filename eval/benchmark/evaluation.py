"""The benchmark suite `evaluation`: what `evaluate` takes beside network and extractor, and shards to read."""

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from brickwork.eval.benchmark.suites import Settings, mark
from brickwork.eval.benchmark.timing import Spread, inside
from brickwork.eval.report.numbers import spread
from brickwork.eval.sampling.pipelines import load_class_pipeline
from brickwork.eval.sampling.sample_set import SamplingSettings, sample_set

EXTRACTOR = "efficientnet-lite0"  # whose weights need no network
WITHIN = 0.05  # of the whole, beside what computes
SHARD, DRAWN = 1000, 512  # pictures in a shard, and those read of all


def share_beside(networks: Sequence[nn.Module], function: Callable[[], object]) -> float:
    """The share of a function's processor time that is not its networks', of which none calls another."""
    with inside(*networks) as clock:
        started = time.process_time()
        function()
        return 1 - sum(clock) / (time.process_time() - started)


def encoded_pictures(side: int, count: int = 64) -> list[bytes]:
    """Synthetic PNG files, each another."""
    numbers, encoded = np.random.default_rng(0), []
    for _ in range(count):
        coarse = numbers.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def write_shards(folder: Path, count: int, side: int) -> None:
    """Synthetic pictures as WebDataset shards of `SHARD`: 64 different ones, over and over."""
    encoded = encoded_pictures(side)
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, count, SHARD)):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for number in range(first, min(first + SHARD, count)):
                entry = tarfile.TarInfo(f"{number:08d}.png")
                content = encoded[number % len(encoded)]
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def read_shards(folder: Path, order: random.Random) -> tuple[float, float]:
    """Processor seconds to open shards, and pictures a second of processor time, drawn at random and decoded."""
    from brickwork.eval.sets.reader import open_pictures

    started = time.process_time()
    pictures = open_pictures(folder)
    opened = time.process_time() - started
    drawn = [order.randrange(len(pictures)) for _ in range(DRAWN)]
    started = time.process_time()
    for number in drawn:
        pictures[number].image  # noqa: B018  decodes
    return opened, DRAWN / (time.process_time() - started)


def shares(weights: str, count: int, batch: int, folder: Path) -> dict[str, float]:
    """The shares of `gen`, and of the pass of `ref` and `calc` over what it drew, in this process.

    Args:
        weights: that ship, or a pipeline folder.
        count: pictures, of all processes together.
        batch: pictures at once in each.
        folder: to draw into; one for all processes.
    """
    from brickwork.eval.extractors.features import load_extractor
    from brickwork.eval.metrics.reference import make_reference

    pipe, extractor = load_class_pipeline(weights, "cpu"), load_extractor(EXTRACTOR)
    vae = getattr(pipe, "vae", None)
    drawing = [pipe.transformer] if vae is None else [pipe.transformer, vae.decoder]
    chosen = SamplingSettings(count, labels="balanced")
    return {
        "gen": share_beside(drawing, lambda: sample_set(pipe, chosen, folder, batch_size=batch, progress=False)),
        "ref and calc": share_beside(
            [extractor.network], lambda: make_reference(folder, extractor, "clean", progress=False)
        ),
    }


def shares_of_two(settings: Settings, folder: Path) -> dict[str, float]:
    """The same of two processes that share the work: of each command the larger share.

    Raises:
        ValueError: where they fail, with the last line that they say.
    """
    arguments = [settings.weights, settings.pairs, settings.batch, folder / "samples", folder]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads or 1), "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, "-m", "brickwork.eval.benchmark.evaluation", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("shares-*.json"))]
    if done.returncode or len(found) != 2:
        raise ValueError(f"Two processes ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    return {f"{what}, two processes": max(one[what] for one in found) for what in found[0]}


def bench_evaluation(settings: Settings, sizes: tuple[int, ...] = (2_000, 20_000), side: int = 64) -> dict:
    """Shares of `gen` and of the extractor's pass beside what computes; opening and reading shards of several sizes.

    Args:
        settings: `batch`, `rounds`, `weights`, and `pairs` for the number of pictures.
        sizes: pictures in shards.
        side: of those, in pixels.
    """
    found: dict[str, list[float]] = {}
    read: dict[int, list[tuple[float, float]]] = {count: [] for count in sizes}
    with tempfile.TemporaryDirectory() as name:
        for count in sizes:
            write_shards(Path(name, f"shards-{count}"), count, side)
        for number in range(settings.rounds):
            one, two = Path(name, f"one-{number}"), Path(name, f"two-{number}")
            two.mkdir()
            alone = shares(settings.weights, settings.pairs, settings.batch, one)
            for what, share in (alone | shares_of_two(settings, two)).items():
                found.setdefault(what, []).append(share)
            for count in sizes:
                read[count].append(read_shards(Path(name, f"shards-{count}"), random.Random(number)))
    return _result(found, read)


def _result(shares: dict[str, list[float]], read: dict[int, list[tuple[float, float]]]) -> dict:
    rows = [(what, spread(asdict(Spread.of(values)), ".1%")) for what, values in shares.items()]
    marks = [
        mark(f"evaluate {what}: beside what computes", f"≤ {WITHIN}", Spread.of(values).median)
        for what, values in shares.items()
    ]
    loader = [
        (f"{count:,}", *(spread(asdict(Spread.of(values)), form) for values, form in zip(zip(*found), (".3f", ".0f"))))
        for count, found in read.items()
    ]
    return {
        "kind": "evaluation", "shares": shares, "read": {str(count): found for count, found in read.items()},
        "marks": marks,
        "tables": [
            {"columns": ("evaluate", "share beside network or extractor"), "rows": rows},
            {"columns": ("pictures in shards", "opened in, s", "read, pictures a second"), "rows": loader},
        ],
    }  # fmt: skip


def _main() -> None:
    from accelerate import PartialState

    weights, count, batch, samples, folder = sys.argv[1:]
    state = PartialState(cpu=True)
    measured = shares(weights, int(count), int(batch), Path(samples))
    Path(folder, f"shares-{state.process_index}.json").write_text(json.dumps(measured))
    state.destroy_process_group()


if __name__ == "__main__":
    _main()
