"""WebDataset shards (`.tar` files of `name.jpg`, `name.cls`, `name.json`, `name.txt`) as a table, read in place.

A shard's index (where each file begins) is read once from its headers, and pictures are then read from their offsets,
over any file system that fsspec knows (local, s3://, https://, hf://). So a set larger than a disk is streamed, and
still has rows: order, resume, splits and worker counts work as for every other data set.
"""

import copy
import json
import os
import re
import tarfile
import threading
from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np

from brickwork.errors import explained
from brickwork.eval.sets.decode import SUFFIXES
from brickwork.eval.sets.scan import Skipped


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
def _opened(path: str, process: int, thread: int):
    """An open shard; each process and thread has its own, since one's offset must not move another's."""
    return fsspec.open(path, "rb").open()


_KINDS = ("cls", "json", "txt")


def _read_index(path: str) -> tuple[dict[str, dict[str, tuple[int, int]]], list[Skipped]]:
    """`{sample name: {suffix: (offset, bytes)}}` of one shard, from its headers, and what belongs to no sample.

    A name ends, and its suffix begins, at the first dot, as WebDataset has it; where that gives no suffix that is
    known, at the last (`photo.2024.jpg`), unless the first part is a sample of its own (`a.mask.png` beside `a.jpg`).
    """
    members, skipped = [], []
    try:
        with fsspec.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                parts = member.name.removeprefix("./").split("/")
                if any(part.startswith(".") or part.lower() == "__macosx" for part in parts):
                    skipped.append(Skipped(f"{Path(path).name}:{member.name}", "hidden"))
                elif member.isfile():
                    members.append((member.name, member.offset_data, member.size))
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"The shard {path} cannot be read ({error}); is it a complete .tar file?") from error
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    dotted = []
    for name, *span in members:
        folder, slash, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if _is_known(suffix):
            samples.setdefault(f"{folder}{slash}{stem}", {})[suffix.lower()] = tuple(span)
        else:
            dotted.append((name, f"{folder}{slash}{stem}", span))
    with_picture = {name for name, entry in samples.items() if _picture_suffix(entry)}
    for name, first, span in dotted:
        stem, _, suffix = name.rpartition(".")
        if first not in with_picture and _is_known(suffix):
            samples.setdefault(stem, {})[suffix.lower()] = tuple(span)
        else:
            skipped.append(Skipped(f"{Path(path).name}:{name}", "no picture, caption or label"))
    return samples, skipped


def _is_known(suffix: str) -> bool:
    return suffix.lower() in _KINDS or f".{suffix.lower()}" in SUFFIXES


def _picture_suffix(entry: dict) -> str | None:
    return next((suffix for suffix in entry if f".{suffix}" in SUFFIXES), None)


class ShardTable:
    """Shards with the interface of a `datasets.Dataset`: `column_names`, `features`, `select`, `[row]`, `[column]`.

    Columns: `image`; `label` from `.cls`, or the key `label` of `.json`; `text` from `.txt`; other keys of `.json`;
    those of the first sample. A sample that lacks one has `None` there.

    Args:
        paths: the shards, in order.
        skipped: what was left out before the shards were opened.

    Attributes:
        shard_of_row: `(N,)` number of the shard that holds each row.
        names: `SHARD:NAME` of each picture.
        skipped, notes: see `brickwork.eval.sets.tables`.
    """

    def __init__(self, paths: list[str], skipped: list[Skipped] | None = None):
        self.paths, self.skipped, self.notes, self.features = paths, list(skipped or []), [], {}
        self._samples: list[tuple[int, str, dict[str, tuple[int, int]]]] = []
        for shard, path in enumerate(paths):
            samples, left_out = _read_index(path)
            self.skipped += left_out
            self._samples += [(shard, name, entry) for name, entry in samples.items() if _picture_suffix(entry)]
        if not self._samples:
            known = ", ".join(SUFFIXES)
            raise ValueError(f"The {len(paths)} shards ({paths[0]} …) hold no picture; known are {known}.")
        self.column_names = ["image", *(key for key in self._other(0) if key != "image")]

    @property
    def shard_of_row(self) -> np.ndarray:
        return np.array([shard for shard, _, _ in self._samples])

    @property
    def names(self) -> list[str]:
        files = [Path(path).name for path in self.paths]
        return [f"{files[shard]}:{name}.{_picture_suffix(entry)}" for shard, name, entry in self._samples]

    def __len__(self) -> int:
        return len(self._samples)

    def _read(self, row: int, suffix: str) -> bytes:
        shard, _, entry = self._samples[row]
        offset, size = entry[suffix]
        file = _opened(self.paths[shard], os.getpid(), threading.get_ident())
        file.seek(offset)
        return file.read(size)

    def _text(self, row: int, suffix: str) -> str:
        try:
            return self._read(row, suffix).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError(f"{self.names[row]!r} has a .{suffix} that is no UTF-8; write it anew.") from None

    def _other(self, row: int) -> dict:
        """Everything of a row but its picture."""
        entry, values = self._samples[row][2], {}
        if "json" in entry:
            with explained(f"{self.names[row]!r} has a .json that cannot be read", ValueError, RecursionError):
                values = json.loads(self._text(row, "json"))
            if not isinstance(values, dict):
                raise ValueError(f"{self.names[row]!r} has a .json that is no object in braces; write one.")
        if "cls" in entry:
            text = self._text(row, "cls")
            values["label"] = int(text) if text.lstrip("-").isdecimal() else text
        if "txt" in entry:
            values["text"] = self._text(row, "txt")
        return values

    def __getitem__(self, key: int | str):
        if isinstance(key, str):
            if key not in self.column_names:
                raise ValueError(f"There is no column {key!r}; there are {', '.join(self.column_names)}.")
            return [self._other(row).get(key) for row in range(len(self))]
        return {"image": {"bytes": self._read(int(key), _picture_suffix(self._samples[key][2]))}}

    def select(self, rows: list[int]) -> "ShardTable":
        """The table of some rows."""
        table = copy.copy(self)
        table._samples = [self._samples[row] for row in rows]
        return table
