"""WebDataset shards (`.tar` files of `name.jpg`, `name.cls`, `name.json`, `name.txt`) as a table, read in place.

A shard's index (where each file begins) is read once from its headers, and pictures are then read from their offsets,
over any file system that fsspec knows (local, s3://, https://, hf://). So a set larger than a disk is streamed, and
still has rows: order, resume, splits and worker counts work as for every other data set.
"""

import json
import os
import re
import tarfile
from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")


def shard_paths(source: str) -> list[str]:
    """The shards that a source names: a `.tar` file, a folder of them, or a name with `{000..127}`; else nothing."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if span and source.endswith(".tar"):
        first, last = span.groups()
        numbers = range(int(first), int(last) + 1)
        return [source.replace(span.group(), str(number).zfill(len(first))) for number in numbers]
    if source.endswith(".tar"):
        return [source]
    path = Path(source)
    return sorted(str(shard) for shard in path.glob("*.tar")) if path.is_dir() else []


@lru_cache(maxsize=32)
def _opened(path: str, process: int):
    """An open shard; each process has its own, since a worker's offset must not move another's."""
    return fsspec.open(path, "rb").open()


def _read_index(path: str) -> dict[str, dict[str, tuple[int, int]]]:
    """`{sample name: {suffix: (offset, bytes)}}` of one shard, from its headers."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with fsspec.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    entry = samples.setdefault(f"{folder}/{stem}", {})
                    entry[suffix.lower()] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"The shard {path} cannot be read ({error}); is it a whole .tar file?") from error
    return samples


class ShardTable:
    """Shards with the interface of a `datasets.Dataset`: `column_names`, `features`, `select`, `[row]`, `[column]`.

    Columns: `image`; `label` from `.cls`, or the key `label` of `.json`; `text` from `.txt`; other keys of `.json`.

    Args:
        paths: the shards, in order.

    Attributes:
        shard_of_row: `(N,)` number of the shard that holds each row.
    """

    def __init__(self, paths: list[str]):
        self.paths = paths
        self._samples: list[tuple[int, dict[str, tuple[int, int]]]] = []
        for shard, path in enumerate(paths):
            entries = _read_index(path).values()
            self._samples += [(shard, entry) for entry in entries if set(entry) & set(IMAGE_SUFFIXES)]
        if not self._samples:
            raise ValueError(f"`data.source` has {len(paths)} shards without a picture; known are {IMAGE_SUFFIXES}.")
        self.features: dict = {}
        self.column_names = ["image", *self._other(0)]

    @property
    def shard_of_row(self) -> np.ndarray:
        return np.array([shard for shard, _ in self._samples])

    def __len__(self) -> int:
        return len(self._samples)

    def _read(self, row: int, suffix: str) -> bytes:
        shard, entry = self._samples[row]
        offset, size = entry[suffix]
        file = _opened(self.paths[shard], os.getpid())
        file.seek(offset)
        return file.read(size)

    def _other(self, row: int) -> dict:
        """Everything of a row but its picture."""
        entry = self._samples[row][1]
        values = json.loads(self._read(row, "json")) if "json" in entry else {}
        if "cls" in entry:
            text = self._read(row, "cls").decode().strip()
            values["label"] = int(text) if text.lstrip("-").isdigit() else text
        if "txt" in entry:
            values["text"] = self._read(row, "txt").decode().strip()
        return values

    def __getitem__(self, key: int | str):
        if isinstance(key, str):
            if key not in self.column_names:
                raise ValueError(f"There is no column {key!r}; there are {', '.join(self.column_names)}.")
            return [self._cell(row, key) for row in range(len(self))]
        suffix = next(suffix for suffix in self._samples[key][1] if suffix in IMAGE_SUFFIXES)
        return {"image": {"bytes": self._read(int(key), suffix)}}

    def _cell(self, row: int, column: str):
        values = self._other(row)
        if column not in values:
            raise ValueError(
                f"Row {row} of the shards has no {column!r}, which the first row has; write it for every sample."
            )
        return values[column]

    def select(self, rows: list[int]) -> "ShardTable":
        """The table of some rows."""
        table = object.__new__(ShardTable)
        table.paths, table.features, table.column_names = self.paths, self.features, self.column_names
        table._samples = [self._samples[row] for row in rows]
        return table
