"""A folder of pictures, listed by rules of our own: which files count, what their classes and captions are.

- Pictures are told by suffix, in any case. Hidden files, and whatever else lies about, are left out, with the reason.
- The class is the first folder below the source. Pictures beside such folders have none.
- Captions and further columns come from `metadata.jsonl` or `metadata.csv` in any folder (`file_name` relative to it),
  captions also from `NAME.txt` or `NAME.caption` beside `NAME.png`.
"""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from brickwork.errors import count_and_name, explained, near_names
from brickwork.eval.sets.decode import SUFFIXES

METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTIONS = (".txt", ".caption")
_HIDDEN = ("__macosx",)


class Skipped(NamedTuple):
    """What was left out, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass
class FolderListing:
    """What a folder holds; names are relative to it, with `/`.

    Attributes:
        pictures: names, sorted.
        metadata: name => the columns that metadata files give.
        captions: name => the caption from a file beside the picture.
        tables: `.parquet` files. shards: `.tar` files.
        skipped: what was left out.
    """

    pictures: list[str] = field(default_factory=list)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def class_of(self, name: str) -> str | None:
        """The first folder of a name."""
        first, slash, _ = name.partition("/")
        return first if slash else None


def list_folder(folder: Path) -> FolderListing:
    """Everything that a folder of pictures says, without opening a picture.

    Raises:
        ValueError: for metadata or captions that cannot be read, naming file and line.
    """
    listing, texts, metadata, others = FolderListing(), {}, [], []
    for name in _walk(folder, listing.skipped):
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            listing.pictures.append(name)
        elif path.name.lower() in METADATA:
            metadata.append(name)
        elif suffix in _CAPTIONS:
            texts[name] = str(path.with_suffix("")), suffix
        elif suffix in (".parquet", ".tar"):
            (listing.tables if suffix == ".parquet" else listing.shards).append(name)
        else:
            others.append(name)
    for kept in (listing.pictures, listing.tables, listing.shards):
        kept.sort()
    _read_captions(folder, listing, texts)
    for name in sorted(metadata):
        _read_metadata(folder, name, listing)
    listing.skipped += [Skipped(name, "no picture") for name in sorted(others)]
    return listing


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[str]:
    """The files below a folder, links followed, hidden ones left out."""
    waiting = [("", (os.path.realpath(folder),))]
    while waiting:
        prefix, above = waiting.pop()
        try:
            entries = sorted(os.scandir(folder / prefix), key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise ValueError(f"{str(folder)!r} cannot be read ({error.strerror}).") from None
            skipped.append(Skipped(prefix, f"a folder that cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.name.lower() in _HIDDEN:
                skipped.append(Skipped(name, "hidden"))
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if real in above:
                    skipped.append(Skipped(name, "a link to a folder above it"))
                else:
                    waiting.append((f"{name}/", (*above, real)))
            elif entry.is_file():
                yield name
            else:
                skipped.append(Skipped(name, "a link to nothing" if entry.is_symlink() else "no file"))


def _read_captions(folder: Path, listing: FolderListing, texts: dict[str, tuple[str, str]]) -> None:
    by_stem: dict[str, list[str]] = {}
    for name in listing.pictures:
        by_stem.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
    for name, (stem, _) in sorted(texts.items(), key=lambda entry: _CAPTIONS.index(entry[1][1])):
        pictures = by_stem.get(stem)
        if not pictures:
            listing.skipped.append(Skipped(name, "a text beside no picture of its name"))
        elif pictures[0] in listing.captions:
            listing.skipped.append(Skipped(name, "a second caption"))
        else:
            caption = read_text(folder / name).strip()
            listing.captions |= dict.fromkeys(pictures, caption)


def read_text(path: Path) -> str:
    """A text file in UTF-8, or UTF-16 with its mark, without the mark.

    Raises:
        ValueError: for one in another encoding.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r} is no text in UTF-8; save it as UTF-8.") from None


def _read_metadata(folder: Path, name: str, listing: FolderListing) -> None:
    parent, known = PurePosixPath(name).parent, set(listing.pictures)
    missing = []
    for where, row in read_rows(folder / name):
        file = row.pop("file_name", None)
        if not isinstance(file, str) or not file:
            near = near_names("file_name", row) or ["file_name"]
            hint = f"; is {near[0]!r} meant?" if near != ["file_name"] else ""
            raise ValueError(f"{where} has no 'file_name', by which it would belong to a picture{hint}")
        picture = os.path.normpath(str(parent / file.replace("\\", "/"))).replace(os.sep, "/")
        if picture not in known:
            missing.append(file)
        elif picture in listing.metadata and any(
            key in listing.metadata[picture] and listing.metadata[picture][key] != value for key, value in row.items()
        ):
            raise ValueError(f"{where} says something else of {file!r} than an earlier line; keep one.")
        else:
            listing.metadata.setdefault(picture, {}).update(row)
    if missing:
        listing.skipped.append(Skipped(name, f"lines for pictures that are not there: {count_and_name(missing)}"))


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a `.jsonl` or `.csv` file, each with its file and line for errors; empty cells of a CSV are `None`.

    Raises:
        ValueError: for what is no such file, naming the line.
    """
    lines = read_text(path).splitlines()
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise ValueError(f"{str(path)!r}, line {reader.line_num}, has more cells than the first line.")
                yield f"{str(path)!r}, line {reader.line_num},", {key: value or None for key, value in row.items()}
        except csv.Error as error:
            raise ValueError(f"{str(path)!r}, line {reader.line_num}, is no CSV: {error}.") from None
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        with explained(f"{str(path)!r}, line {number}, is no JSON", ValueError, RecursionError):
            row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, line {number}, is no object in braces, but {type(row).__name__}.")
        yield f"{str(path)!r}, line {number},", row


def say_skipped(skipped: list[Skipped]) -> str:
    """What was left out as one line: how many for each reason, with examples; empty where nothing was."""
    names: dict[str, list[str]] = {}
    for entry in skipped:
        names.setdefault(entry.reason, []).append(entry.name)
    listed = "; ".join(f"{reason} {count_and_name(some, 3)}" for reason, some in names.items())
    return f"Left out: {listed}." if skipped else ""
