"""Data sets as tables: columns by name, rows by number, pictures as bytes or paths that nobody has decoded yet.

Parquet files and data sets of the hub are a `datasets.Dataset`; folders and shards offer what is used of its
interface: `column_names`, `features`, `len`, `[row]`, `[column]`, `select`. Each table has `skipped` and `notes`, what
a reader should be told once.
"""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from brickwork.errors import explained, near_names
from brickwork.eval.sets.decode import SUFFIXES
from brickwork.eval.sets.scan import FolderListing, Skipped, list_folder
from brickwork.eval.sets.shards import ShardTable, shard_paths
from brickwork.hub import check_data_set

# By these names columns are known without being told, whatever their case.
CAPTIONS = (
    "text", "texts", "caption", "captions", "prompt", "prompts", "description", "descriptions", "title", "alt",
    "alt_text", "sentence", "sentences", "tags",
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "classes", "class_name", "class_label", "class_id", "category", "categories",
    "category_id", "target", "fine_label", "coarse_label",
)  # fmt: skip


class FolderTable:
    """Columns of equal length, as lists; pictures are `{"path": …}`.

    Attributes:
        names: of the pictures, relative to the folder.
        skipped, notes: see the module.
    """

    def __init__(self, columns: dict[str, list], names: list[str], skipped: list[Skipped], notes: list[str]):
        self.columns, self.names, self.skipped, self.notes = columns, names, skipped, notes
        self.features: dict = {}

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | str):
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}

    def select(self, rows: Sequence[int]) -> "FolderTable":
        """The table of some rows."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return FolderTable(columns, [self.names[row] for row in rows], self.skipped, self.notes)


def open_table(source: str | Path, split: str = "train", argument: str = "source"):
    """Open a data set without decoding a picture.

    Args:
        source: a folder of pictures (see `brickwork.eval.sets.scan`), a `.parquet` file or a folder of them,
            WebDataset shards (a `.tar`, a folder of them, or names such as `shards/{000..127}.tar`), one picture, or a
            name on the hub.
        split: of a data set from the hub.
        argument: what the source is called in an error.

    Raises:
        ValueError: where nothing can be read, naming the source and why.
    """
    path, text = Path(source), str(source)
    if not text:
        raise ValueError(f"`{argument}` is empty; name a folder of pictures, a Parquet file or a data set on the hub.")
    if path.is_dir():
        return _open_folder(path, argument)
    if tars := shard_paths(text):
        return ShardTable(tars)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return _open_parquet([path], argument)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return FolderTable({"image": [{"bytes": None, "path": text}]}, [path.name], [], [])
    if path.exists() or text.startswith((".", "/", "~")) or path.suffix or text.count("/") > 1:
        beside = near_names(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else []
        hint = f"is {str(path.parent / beside[0])!r} meant?" if beside else "name one that is there."
        what = "is of no kind that holds pictures" if path.exists() else "is not there"
        raise ValueError(f"`{argument}` is {text!r}, which {what}; {hint}")
    return _open_hub(text, split, argument)


def _open_folder(folder: Path, argument: str):
    listing = list_folder(folder)
    if listing.pictures:
        strays = [Skipped(name, "a table or archive beside pictures") for name in listing.tables + listing.shards]
        return _folder_table(folder, listing, listing.skipped + strays)
    if listing.tables:
        table = _open_parquet([folder / name for name in listing.tables], argument)
        table.skipped = listing.skipped + [Skipped(name, "an archive beside tables") for name in listing.shards]
        return table
    if listing.shards:
        return ShardTable([str(folder / name) for name in listing.shards], listing.skipped)
    there = ", ".join(str(entry) for entry in listing.skipped[:3]) or "it is empty"
    raise ValueError(
        f"`{argument}` is {str(folder)!r}, a folder without pictures, .parquet or .tar files ({there}); pictures end "
        f"in {', '.join(SUFFIXES)}."
    )


def _folder_table(folder: Path, listing: FolderListing, skipped: list[Skipped]) -> FolderTable:
    """Columns: `image`; `label` and `text` where there are any; whatever else metadata says."""
    names, notes = listing.pictures, []
    keys = dict.fromkeys(key for row in listing.metadata.values() for key in row)
    columns = {"image": [{"bytes": None, "path": str(folder / name)} for name in names]}
    columns |= {key: [listing.metadata.get(name, {}).get(key) for name in names] for key in keys if key != "image"}
    label, caption = (next(iter(_usual(columns, known)), known[0]) for known in (LABELS, CAPTIONS))
    classes = [listing.class_of(name) for name in names]
    if any(classes) and label not in keys:
        columns[label] = classes
        root = classes.count(None)
        if root:
            notes.append(f"{root} pictures lie beside the folders of classes; they have no class.")
    elif any(classes) and not _part_alike(columns[label], classes):
        notes.append(f"Classes come from the metadata ({label!r}), not from the folders, which part otherwise.")
    if listing.captions:
        given = columns.get(caption, [None] * len(names))
        twice = sum(name in listing.captions and text is not None for name, text in zip(names, given))
        if twice:
            notes.append(
                f"{twice} pictures have a caption in the metadata and in a file beside them; the former counts."
            )
        columns[caption] = [listing.captions.get(name) if text is None else text for name, text in zip(names, given)]
    return FolderTable(columns, names, skipped, notes)


def _open_parquet(files: list[Path], argument: str):
    import datasets

    try:
        # `datasets` takes names for patterns.
        return _with_notes(datasets.Dataset.from_parquet([glob.escape(str(file)) for file in files]))
    except Exception as error:  # pyarrow's, of many kinds
        reason = str(error.__cause__ or error)
        raise ValueError(
            f"`{argument}`: {', '.join(map(str, files[:3]))} cannot be read as Parquet ({reason}); make it anew."
        ) from None


def _open_hub(name: str, split: str, argument: str):
    check_data_set(name, argument)
    import datasets

    # The hub, the network and the cache each raise classes of their own.
    with explained(f"`{argument}` is {name!r}, which is no local path, and the hub says", Exception):
        return _with_notes(datasets.load_dataset(name, split=split))


def _with_notes(table):
    table.skipped, table.notes = [], []
    return table


def image_column(table, column: str | None = None, argument: str = "image_column") -> str:
    """The column with the pictures: the one named, `image`, or the only one that can be.

    Raises:
        ValueError: where it is not there, or several could be meant.
    """
    if column is not None or "image" in table.column_names:
        return find_column(table, column or "image", argument)
    able = [name for name in table.column_names if _holds_pictures(table.features.get(name))]
    if len(able) == 1:
        return able[0]
    which = f"could be {' or '.join(map(repr, able))}" if able else f"is none of {', '.join(table.column_names)}"
    raise ValueError(f"The column with the pictures {which}; say which with `{argument}`.")


def _holds_pictures(feature: Any) -> bool:
    is_binary = getattr(feature, "dtype", "") in ("binary", "large_binary")
    return is_binary or type(feature).__name__ == "Image" or (isinstance(feature, dict) and "bytes" in feature)


def find_column(table, column: str, argument: str, otherwise: str = "") -> str:
    """The column itself, or a `ValueError` with what comes near, else all there are and `otherwise`, a further way."""
    if column in table.column_names:
        return column
    near = near_names(column, table.column_names)
    fix = f"did you mean {', '.join(near)}?" if near else f"there is only {', '.join(table.column_names)}{otherwise}."
    raise ValueError(f"`{argument}` is {column!r}; {fix}")


def guessed_column(table, known: Sequence[str], argument: str) -> str | None:
    """The column that goes by one of the usual names, `None` where none does.

    Of columns that say the same, such as a class's number and its name, the one that says it in words is taken.

    Args:
        table: of `open_table`.
        known: `CAPTIONS` or `LABELS`.
        argument: where a reader can say which column is meant.

    Raises:
        ValueError: where several go by such names and say different things.
    """
    found = _usual(table.column_names, known)
    if len(found) < 2:
        return found[0] if found else None
    read = labels_in if known is LABELS else captions_in
    contents = {name: read(table, name) for name in found}
    first = contents[found[0]]
    if all(_part_alike(first, other) if known is LABELS else first == other for other in contents.values()):
        return next((name for name in found if any(isinstance(value, str) for value in contents[name])), found[0])
    raise ValueError(f"The columns {' and '.join(map(repr, found))} could be meant; say which with `{argument}`.")


def _usual(columns: Iterable[str], known: Sequence[str]) -> list[str]:
    """The columns that go by known names, in the order of these."""
    return sorted((name for name in columns if name.lower() in known), key=lambda name: known.index(name.lower()))


def _part_alike(labels: Sequence, others: Sequence) -> bool:
    """Whether two lists put the same rows together, under whatever names."""
    pairs = set(zip(map(str, labels), map(str, others)))
    return len(pairs) == len({label for label, _ in pairs}) == len({other for _, other in pairs})


def captions_in(table, column: str) -> list[str | None]:
    """A column as captions: lists are joined by ", ", what is empty is `None`.

    Raises:
        ValueError: for a column that holds something else than text.
    """

    def caption(value: Any) -> str | None:
        if isinstance(value, (list, tuple)):
            value = ", ".join(part for part in map(caption, value) if part)
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"The column {column!r} holds {value!r:.100}, which is no text; name the column with the captions."
            )
        return value.strip() or None if value else None

    return [caption(value) for value in table[column]]


def labels_in(table, column: str) -> list[int | str | None]:
    """A column as labels: names where they are known, else what is there; `None` for no class.

    Lists of one stand for what is in them; of several, for their names joined by ", ".
    """
    names = getattr(table.features.get(column), "names", None)

    def label(value: Any) -> int | str | None:
        if isinstance(value, (list, tuple)):
            parts = [label(part) for part in value]
            parts = [part for part in parts if part is not None]
            return parts[0] if len(parts) == 1 else ", ".join(map(str, parts)) or None
        if value is None or value == "" or (isinstance(value, int) and value < 0) or value != value:
            return None
        if names is not None and isinstance(value, int):
            if value >= len(names):
                raise ValueError(f"The column {column!r} holds class {value}, but names {len(names)}; write it anew.")
            return names[value]
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else str(value)

    feature = getattr(table.features.get(column), "feature", None)
    names = names if names is not None else getattr(feature, "names", None)
    return [label(value) for value in table[column]]


def numbered(labels: Sequence[int | str | None], names: Sequence[str] | None = None) -> tuple[list[int], list[str]]:
    """Class numbers and the names of the classes; the number behind the last stands for "no class".

    Args:
        labels: of `labels_in`.
        names: all classes in their order, where it is known; else those that occur, numbers before words.
    """
    if names is None:
        distinct = {label for label in labels if label is not None}
        names = [str(label) for label in sorted(distinct, key=lambda value: (isinstance(value, str), value))]
    number = {name: index for index, name in enumerate(names)}
    return [len(names) if label is None else number[str(label)] for label in labels], list(names)


def as_dataset(table):
    """A table as a `datasets.Dataset` with its pictures inside, to be written as Parquet."""
    import datasets

    if isinstance(table, datasets.Dataset):
        return table
    columns = {name: list(table[name]) for name in table.column_names if name != "image"}
    cells = [table[row]["image"] for row in range(len(table))]
    contents = [Path(cell["path"]).read_bytes() if cell.get("bytes") is None else cell["bytes"] for cell in cells]
    pictures = [{"bytes": content, "path": None} for content in contents]
    return datasets.Dataset.from_dict({"image": pictures} | columns).cast_column("image", datasets.Image())
