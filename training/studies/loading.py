"""The benchmark suite `loader`: opening a large set in shards, its first batch, shuffled rows, and memory.

The shards are synthetic, written once into the benchmark's folder; each way of reading them has a process of its own.
"""

import importlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from brickwork.errors import explained
from brickwork.eval.benchmark.evaluation import encoded_pictures, write_shards
from brickwork.eval.benchmark.fresh import in_fresh_process
from brickwork.eval.benchmark.memory import STATUS
from brickwork.eval.benchmark.suites import Settings
from brickwork.eval.benchmark.timing import Spread
from brickwork.eval.report.numbers import spread
from brickwork.files import MANIFEST, new_folder

MAKER = "brickwork benchmark loader"
SIDE = 64  # of the pictures, in pixels
ROWS = 5000  # of a Parquet file
CLASSES = 10
DRAWN = 20_000  # of the shuffled rows
FIRST, AGAIN, TARS = "Parquet, the first time", "Parquet, again", "WebDataset"
# Of one picture: bytes in Parquet, in its Arrow copy and in a tar file, and processor seconds of everything.
_BYTES, _SECONDS = 22_000, 0.001


def write_sets(folder: Path, count: int) -> None:
    """`parquet/` and `tar/` with the same number of synthetic pictures, and labels in the former."""
    encoded = encoded_pictures(SIDE)
    write_shards(folder / "tar", count, SIDE)
    (folder / "parquet").mkdir()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for shard, first in enumerate(range(0, count, ROWS)):
        numbers = range(first, min(first + ROWS, count))
        cells = pa.array([{"bytes": encoded[number % len(encoded)], "path": None} for number in numbers], kind)
        table = pa.table({"image": cells, "label": [number % CLASSES for number in numbers]})
        pyarrow.parquet.write_table(
            table, folder / "parquet" / f"{shard:05d}.parquet", compression="none", use_dictionary=False
        )


def own_bytes() -> int | None:
    """Bytes of memory that are this process's own, files mapped into it left out; `None` where no system says so."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE) if STATUS.is_file() else None
    return 1024 * int(found[1]) if found else None


class _Clock:
    """Processor seconds and those on the wall, since it was last asked."""

    def __init__(self):
        self._last = time.process_time(), time.monotonic()

    def __call__(self) -> list[float]:
        now = time.process_time(), time.monotonic()
        spent, self._last = [after - before for after, before in zip(now, self._last)], now
        return spent


def read_here(source: str, batch: int) -> dict:
    """Read a set as training does, with no workers, in this process.

    Returns:
        `opened`, `first` (batch), `drawing`: processor seconds and those on the wall; `rows`; `drawn`: pictures of
        the epoch that were read; `memory_opened`, `memory`: bytes beyond what imports need, after opening and in the
        end.
    """
    from brickwork.training.data.images import LabelledImages, load_table
    from brickwork.training.data.stream import PositionBatches, TrainingStream, stream_batches

    importlib.import_module("datasets")  # what reading Parquet imports is not timed
    before, clock = own_bytes(), _Clock()
    table = load_table(source)
    label = "label" if "label" in table.column_names else None
    images = LabelledImages(table, SIDE, label_column=label)
    stream = TrainingStream(images, images.split(0.01)[0], seed=0, batch_size=batch)
    batches = iter(stream_batches(stream, PositionBatches(batch, 1, 0, 1), 0))
    found = {"rows": len(images), "opened": clock(), "memory_opened": _beyond(before)}
    next(batches)
    found["first"] = clock()
    steps = max(1, min(len(images), DRAWN) // batch - 1)
    for _ in range(steps):
        next(batches)
    return found | {"drawing": clock(), "drawn": steps * batch, "memory": _beyond(before)}


def _beyond(before: int | None) -> int | None:
    return None if before is None else own_bytes() - before


def read_in_child(source: Path, batch: int, copies: Path) -> dict:
    """`read_here` in a process of its own, with what `datasets` converts kept in `copies`."""
    environment = {"HF_DATASETS_CACHE": str(copies), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with explained(f"The process that reads {source} failed", ValueError):
        return in_fresh_process(f"{__name__}:read_here", str(source), batch, **environment)


def bench_loader(settings: Settings) -> dict:
    """Shards read as training reads them, each way in a process of its own, in turn.

    Args:
        settings: `pictures` in the set, `batch`, `rounds`, and `output`, under which the shards lie.
    """
    folder = Path(settings.output, f"loader-{settings.pictures}")
    if not (folder / MANIFEST).is_file():
        size, seconds = settings.pictures * _BYTES / 1e9, settings.pictures * _SECONDS
        print(
            f"loader: {settings.pictures:,} pictures as shards in {folder}, about {size:.1f} GB with the copy that "
            f"datasets makes and {seconds:.0f} s of processor time for the first round; they stay for the next run.",
            file=sys.stderr,
        )
        with new_folder(folder, MAKER) as part:
            write_sets(part, settings.pictures)
    found: dict[str, list[dict]] = {FIRST: [], AGAIN: [], TARS: []}
    for number in range(settings.rounds):
        if number == 0 and not (folder / "copies").exists():
            found[FIRST].append(read_in_child(folder / "parquet", settings.batch, folder / "copies"))
        for way, name in ((AGAIN, "parquet"), (TARS, "tar")):
            found[way].append(read_in_child(folder / name, settings.batch, folder / "copies"))
    found = {way: runs for way, runs in found.items() if runs}
    columns = (
        "rows",
        "opened, s",
        "first batch, s",
        "pictures a second",
        "memory opened, MiB",
        "after the epoch, MiB",
    )
    rows = [(way, f"{runs[0]['rows']:,}", *_row(runs)) for way, runs in found.items()]
    return {
        "kind": "loader", "runs": found, "marks": [],
        "tables": [{"columns": ("processor time, no workers", *columns), "rows": rows}],
    }  # fmt: skip


def _row(runs: Sequence[Mapping]) -> list[str]:
    """Medians and quartiles of the runs of one way."""

    def told(values: Sequence[float | None], form: str) -> str:
        return "–" if None in values else spread(asdict(Spread.of(values)), form)

    memory = [[None if run[key] is None else run[key] / 2**20 for run in runs] for key in ("memory_opened", "memory")]
    return [
        told([run["opened"][0] for run in runs], ".2f"),
        told([run["first"][0] for run in runs], ".3f"),
        told([run["drawn"] / run["drawing"][0] for run in runs], ".0f"),
        *(told(values, ".0f") for values in memory),
    ]
