"""Images with class labels, from a folder, a Parquet file or the hub."""

import difflib
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from brickwork.training.data.emoji import base_codepoints

# Decoded images up to this size in all are kept in memory: small sets are read once.
CACHE_BYTES = 2**30


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode => RGB; transparent pictures are laid on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square of a picture, resized to uint8 `(size, size, 3)`."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = to_rgb(image).resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return np.asarray(image)


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """uint8 `(H, W, 3)` => float32 `(3, H, W)` in [-1, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 127.5 - 1


def load_table(source: str, split: str = "train"):
    """Open a data set without decoding it.

    Args:
        source: an image folder (sub-folders are classes), a `.parquet` file or a folder of them, or a name on the hub.
        split: split of a data set from the hub.

    Raises:
        ValueError: where nothing can be read, naming the source.
    """
    import datasets

    path = Path(source)
    if not source:
        raise ValueError("`data.source` is empty; name an image folder, a Parquet file or a data set on the hub.")
    if path.is_file() and path.suffix == ".parquet":
        return datasets.Dataset.from_parquet(str(path))
    if path.is_dir():
        shards = sorted(str(shard) for shard in path.glob("*.parquet"))
        if shards:
            return datasets.Dataset.from_parquet(shards)
        return datasets.load_dataset("imagefolder", data_dir=str(path), split="train")
    if path.exists() or source.startswith((".", "/")) or path.suffix:
        raise ValueError(f"`data.source` is {source!r}, which is no folder and no .parquet file.")
    try:
        return datasets.load_dataset(source, split=split)
    except Exception as error:  # the hub's errors have no common base
        raise ValueError(f"`data.source` is {source!r}, which is no local path, and the hub says: {error}") from error


class LabelledImages:
    """The rows of a data set that belong to the wanted classes, as square uint8 pictures with labels from 0.

    Args:
        table: a `datasets.Dataset` (see `load_table`).
        size: side of the pictures in pixels.
        image_column: column with the pictures.
        label_column: column with class numbers or names, `None` for an unlabelled set.
        group_column: column whose value keeps rows together on one side of the held-out split.
        classes: names of the classes to keep, in the order of their new numbers; `None` for all.

    Raises:
        ValueError: for columns or classes that the data set does not have.
    """

    def __init__(
        self,
        table,
        size: int,
        image_column: str = "image",
        label_column: str | None = "label",
        group_column: str | None = None,
        classes: list[str] | None = None,
    ):
        for argument, column in (("image", image_column), ("label", label_column), ("group", group_column)):
            if column is not None and column not in table.column_names:
                near = difflib.get_close_matches(column, table.column_names, n=1) or table.column_names
                raise ValueError(f"`data.{argument}_column` is {column!r}; did you mean {', '.join(near)}?")
        self.size, self.image_column = size, image_column
        labels, names = _labels(table, label_column)
        if classes is not None:
            unknown = [name for name in classes if name not in names]
            if unknown:
                raise ValueError(f"`data.classes` has {unknown}; the data set has {', '.join(names)}.")
            number = {names.index(name): new for new, name in enumerate(classes)}
            rows = [row for row, label in enumerate(labels) if label in number]
            labels, names = [number[labels[row]] for row in rows], list(classes)
            table = table.select(rows)
        if len(table) == 0:
            raise ValueError("The data set has no image of the wanted classes; check `data.classes`.")
        self.table, self.labels, self.class_names = table, np.asarray(labels, dtype=np.int64), names
        groups = table[group_column] if group_column else range(len(table))
        # The skin tones of one emoji, and its two styles, are one drawing: they must not meet across the split.
        name_of = base_codepoints if group_column == "codepoints" else str
        self.groups = [name_of(group) for group in groups]
        self._decoded: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        """uint8 `(size, size, 3)`, and the label (0 for unlabelled sets)."""
        if row not in self._decoded:
            picture = square(self.table[int(row)][self.image_column], self.size)
            if (len(self._decoded) + 1) * picture.nbytes > CACHE_BYTES:
                return picture, int(self.labels[row])
            self._decoded[row] = picture
        return self._decoded[row], int(self.labels[row])

    def split(self, held_out: float) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers for training and held out, whole groups on one side, the same in every run.

        A group is held out when the hash of its name falls below the share, so that rows added later move nothing.
        """
        share = np.array([int(hashlib.sha256(g.encode()).hexdigest()[:8], 16) / 2**32 for g in self.groups])
        return np.flatnonzero(share >= held_out), np.flatnonzero(share < held_out)


def _labels(table, column: str | None) -> tuple[list[int], list[str]]:
    if column is None:
        return [0] * len(table), []
    values = list(table[column])
    names = getattr(table.features[column], "names", None)
    if names is None:
        distinct = sorted(set(values))
        return [distinct.index(value) for value in values], [str(value) for value in distinct]
    return values, list(names)

