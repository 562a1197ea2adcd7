"""What can be seen of pictures that nobody has described, and how long a run on them is."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from brickwork.errors import advice
from brickwork.eval.sets.decode import BrokenPicture, open_upright
from brickwork.eval.sets.reader import undecoded
from brickwork.eval.sets.tables import CAPTIONS, LABELS, find_column, guessed_column, image_column, labels_in, numbered
from brickwork.training.data.images import load_table

LOOKED_AT = 200  # pictures whose sizes are read
LEAST_TIMES, MOST_TIMES = 20, 400  # that each picture is shown, if that takes longer or shorter than MINUTES
MINUTES = 15
PAUSE = 20  # seconds of training, the least between pictures and between checkpoints, which take some themselves
SMALL_SET = 100  # pictures, below which none is held out


@dataclass
class Pictures:
    """What was found of a source.

    Attributes:
        source: folder, Parquet file, or name on the hub.
        columns: values of `data.*_column` that the source has.
        count: pictures.
        classes: class name => pictures.
        side: the shorter side in pixels, which nine of ten pictures have at least.
        least: the shortest side that was seen, in pixels.
        captions: columns that may have the captions.
    """

    source: str
    columns: dict[str, str | None]
    count: int
    classes: dict[str, int]
    side: int
    least: int
    captions: list[str]


def look_at(source: str, given: Mapping[str, Any] = MappingProxyType({})) -> Pictures:
    """Open a source, its columns and the sizes of some of its pictures.

    Args:
        source: PICTURES.
        given: `data.image_column` and `data.label_column` where they were told.

    Raises:
        ValueError: for a source that is not there, or holds no picture that can be read.
    """
    path = Path(source)
    if not path.exists() and source.count("/") != 1 and "{" not in source:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"PICTURES is {source!r}, which is not there; {advice(path.name, beside, 'there are')}")
    table = load_table(source)
    column = image_column(table, given.get("data.image_column"), "data.image_column")
    if "data.label_column" in given:
        label = given["data.label_column"]
        label = None if label is None else find_column(table, label, "data.label_column")
    else:
        label = guessed_column(table, LABELS, "data.label_column")
    classes: dict[str, int] = {}
    if label is not None:
        numbers, names = numbered(labels_in(table, label), getattr(table.features.get(label), "names", None))
        counted = Counter(numbers)
        classes = {name: counted[number] for number, name in enumerate(names) if counted[number]}
        alone = len(classes) == 1 and "data.label_column" not in given
        if alone or len(classes) > len(table) / 2:  # neither one name for all is a class, nor a name for each picture
            label, classes = None, {}
    sides, table = [], undecoded(table, column)
    for row in range(0, len(table), max(1, len(table) // LOOKED_AT)):
        try:
            sides.append(min(open_upright(table[row][column]).size))
        except BrokenPicture:
            continue
    if not sides:
        raise ValueError(
            f"PICTURES is {source!r}, of which no picture can be read; see `brickwork data check {source}`."
        )
    columns = {"image_column": column, "label_column": label}
    captions = [name for name in table.column_names if name.lower() in CAPTIONS]
    return Pictures(source, columns, len(table), classes, sorted(sides)[len(sides) // 10], min(sides), captions)


def passes_per_second(device: torch.device, passing: Callable[[], torch.Tensor]) -> float:
    """How many times a second this machine computes a number and goes back from it, at best of a few times."""
    times: list[float] = []
    while len(times) < 2 or len(times) < 10 and sum(times) < 2:
        start = time.perf_counter()
        passing().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1 / min(times)


def lengths(found: Pictures, rate: float, batch: int, total: int | None = None) -> dict[str, int]:
    """The run's length, and what goes by it, in images.

    Args:
        found: the pictures.
        rate: images a second.
        batch: images of a step.
        total: that was asked for; else about `MINUTES`, unless that shows each picture too seldom or too often.
    """
    if total is None:
        longest = min(max(int(rate * 60 * MINUTES), LEAST_TIMES * found.count), MOST_TIMES * found.count)
        total = max(batch, longest // batch * batch)

    def share(part: float, least: int) -> int:
        return max(least, int(total * part) // batch * batch)

    pause = max(batch, int(rate * PAUSE) // batch * batch)
    return {
        "run.total_images": total,
        "run.log_images": share(1 / 50, batch),
        "run.sample_images": share(1 / 8, pause),
        "run.checkpoint_images": share(1 / 4, pause),
        "optimizer.warmup_images": share(1 / 20, 0),
        "optimizer.cooldown_images": share(1 / 4, 0),
        "ema.half_life_images": share(1 / 20, batch),
    }
