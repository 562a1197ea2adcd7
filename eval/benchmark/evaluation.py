"""The benchmark suite `evaluation`: what `evaluate` takes beside network and extractor, and shards to read."""

import io
import random
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


def bench_evaluation(settings: Settings, sizes: tuple[int, ...] = (2_000, 20_000), side: int = 64) -> dict:
    """Shares of `gen` and of the extractor's pass beside what computes; opening and reading shards of several sizes.

    Args:
        settings: `batch`, `rounds`, `weights`, and `pairs` for the number of pictures.
        sizes: pictures in shards.
        side: of those, in pixels.
    """
    from brickwork.eval.extractors.features import load_extractor
    from brickwork.eval.metrics.reference import make_reference

    pipe, extractor = load_class_pipeline(settings.weights, "cpu"), load_extractor(EXTRACTOR)
    shares: dict[str, list[float]] = {"gen": [], "ref and calc": []}
    read: dict[int, list[tuple[float, float]]] = {count: [] for count in sizes}
    chosen = SamplingSettings(settings.pairs, labels="balanced")
    vae = getattr(pipe, "vae", None)
    drawing = [pipe.transformer] if vae is None else [pipe.transformer, vae.decoder]
    with tempfile.TemporaryDirectory() as name:
        for count in sizes:
            write_shards(Path(name, f"shards-{count}"), count, side)
        for number in range(settings.rounds):
            drawn = Path(name, f"samples-{number}")
            options = {"batch_size": settings.batch, "progress": False}
            shares["gen"].append(
                share_beside(drawing, lambda to=drawn, how=options: sample_set(pipe, chosen, to, **how))
            )
            shares["ref and calc"].append(
                share_beside(
                    [extractor.network], lambda of=drawn: make_reference(of, extractor, "clean", progress=False)
                )
            )
            for count in sizes:
                read[count].append(read_shards(Path(name, f"shards-{count}"), random.Random(number)))
    return _result(shares, read)


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
