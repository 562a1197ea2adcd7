"""Images with class labels, from a folder, a Parquet file or the hub."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from brickwork.eval.sets.decode import BrokenPicture, crop_to, open_upright, to_rgb
from brickwork.eval.sets.reader import undecoded
from brickwork.eval.sets.scan import say_skipped
from brickwork.eval.sets.tables import find_column, labels_in, numbered, open_table
from brickwork.files import digest
from brickwork.training.config.data import DataConfig, SourceConfig
from brickwork.training.data.buckets import bucket_shapes, nearest_bucket
from brickwork.training.data.build.codepoints import base_codepoints

log = logging.getLogger(__name__)

# Decoded images up to this size in all are kept in memory: small sets are read once.
CACHE_BYTES = 2**30
EMOJI = Path("data/emoji/train.parquet")  # what the configurations here name, and the command below makes


BrokenImage = BrokenPicture


class DataLost(ValueError):
    """So many pictures cannot be read that training must stop."""


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """uint8 `(H, W, 3)` => float32 `(3, H, W)` in [-1, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 127.5 - 1


def load_table(source: str, split: str = "train"):
    """Open a data set without decoding it, and say once what of it was left out.

    Args:
        source: what `brickwork.eval.sets.tables.open_table` reads.
        split: split of a data set from the hub.

    Raises:
        ValueError: where nothing can be read, naming the source.
    """
    if Path(source) == EMOJI and not EMOJI.exists():
        raise ValueError(f"`data.source` is {source!r}, which is not there; `brickwork data build emoji` makes it.")
    table = open_table(source, split, "data.source")
    if told := " ".join([*table.notes, say_skipped(table.skipped)]).strip():
        log.warning("%s: %s", source, told)
    return table


class LabelledImages:
    """The rows of a data set that belong to the wanted classes, as uint8 pictures with labels from 0.

    Args:
        table: a `datasets.Dataset`, or shards (see `load_table`).
        size: side of the pictures in pixels; of the square one, with buckets.
        image_column: column with the pictures.
        label_column: column with class numbers or names, `None` for an unlabelled set.
        group_column: column whose value keeps rows together on one side of the held-out split.
        classes: names of the classes to keep, in the order of their new numbers; `None` for all.
        bucket_step: sides of aspect-ratio buckets are multiples of this; 0 for squares only.
        bucket_max_aspect: longest side of a bucket over its shortest.

    Attributes:
        size, channels: of the square picture that the network trains on.
        labels: `(N,)` class numbers, the one behind the last for rows of no class. class_names: their names.
        groups: `N` names of groups.
        shapes: `(height, width)` of each bucket. buckets: `(N,)` the bucket of each row.

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
        bucket_step: int = 0,
        bucket_max_aspect: float = 2.0,
    ):
        for argument, column in (("image", image_column), ("label", label_column), ("group", group_column)):
            if column is not None:
                name = f"data.{argument}_column"
                otherwise = "" if argument == "image" else f"; {name}=null goes without"
                find_column(table, column, name, otherwise)
        self.size, self.channels, self.image_column = size, 3, image_column
        labels, names = _labels(table, label_column)
        if classes is not None:
            unknown = [name for name in classes if name not in names]
            if unknown:
                raise ValueError(f"`data.classes` has {unknown}; the data set has {', '.join(names) or 'no classes'}.")
            number = {names.index(name): new for new, name in enumerate(classes)}
            rows = [row for row, label in enumerate(labels) if label in number]
            labels, names = [number[labels[row]] for row in rows], list(classes)
            table = table.select(rows)
        if len(table) == 0:
            raise ValueError("The data set has no image of the wanted classes; check `data.classes`.")
        self.labels, self.class_names = np.asarray(labels, dtype=np.int64), names
        groups = table[group_column] if group_column else range(len(table))
        # The skin tones of one emoji, and its two styles, are one drawing: they must not meet across the split.
        name_of = base_codepoints if group_column == "codepoints" else str
        self.groups = [name_of(group) for group in groups]
        self.table = undecoded(table, image_column)
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._kept_bytes = 0
        self.shapes, self.buckets = [(size, size)], np.zeros(len(table), dtype=np.int64)
        if bucket_step:
            self.shapes = bucket_shapes(size, bucket_step, bucket_max_aspect)
            self.buckets = np.array([self._bucket(row) for row in range(len(table))], dtype=np.int64)

    @classmethod
    def of(cls, data: SourceConfig, table, size: int, bucket_step: int = 0, bucket_max_aspect: float = 2.0) -> Self:
        """The rows of a table that a configuration asks for."""
        columns = data.image_column, data.label_column, data.group_column
        return cls(table, size, *columns, data.classes, bucket_step, bucket_max_aspect)

    def __len__(self) -> int:
        return len(self.table)

    def _bucket(self, row: int) -> int:
        try:
            return nearest_bucket(*self.natural_size(row), self.shapes)
        except BrokenImage:  # named when it is drawn; until then it is taken for a square
            return nearest_bucket(1, 1, self.shapes)

    def natural_size(self, row: int) -> tuple[int, int]:
        """Height and width of the picture as it is stored.

        Raises:
            BrokenImage: where there is none.
        """
        if ("decoded", row) in self._kept:
            return self._kept["decoded", row].shape[:2]
        image = open_upright(self.table[int(row)][self.image_column])
        return image.height, image.width

    def decoded(self, row: int) -> Image.Image:
        """The picture as it is stored, decoded, RGB; kept in memory for the many sizes that canvases want of it.

        Raises:
            BrokenImage: where it cannot be read.
        """
        if ("decoded", row) in self._kept:
            return Image.fromarray(self._kept["decoded", row])
        image = to_rgb(open_upright(self.table[int(row)][self.image_column]))
        self._keep("decoded", row, np.asarray(image))
        return image

    def _keep(self, kind: str, row: int, picture: np.ndarray) -> None:
        if self._kept_bytes + picture.nbytes <= CACHE_BYTES:
            self._kept[kind, row] = picture
            self._kept_bytes += picture.nbytes

    def picture(self, row: int, shape: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 `(height, width, 3)`, of the row's bucket or another shape.

        Raises:
            BrokenImage: where the picture cannot be read.
        """
        height, width = shape or self.shapes[self.buckets[row]]
        return crop_to(open_upright(self.table[int(row)][self.image_column]), height, width)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        """The picture of the row's bucket, uint8 `(height, width, 3)`, and the label (0 for unlabelled sets)."""
        return self._fitted(row, None), int(self.labels[row])

    def _fitted(self, row: int, size: int | None) -> np.ndarray:
        """The picture of the row's bucket, or a square, kept in memory."""
        kind = "fitted" if size is None else f"fitted {size}"
        picture = self._kept.get((kind, row))
        if picture is None:
            picture = self.picture(row, None if size is None else (size, size))
            self._keep(kind, row, picture)
        return picture

    def sample(
        self, row: int, random: np.random.Generator | None = None, size: int | None = None
    ) -> tuple[np.ndarray, int]:
        """What the network trains on: float32 `(3, height, width)` in [-1, 1], and the label.

        Args:
            row: its number.
            random: for data whose samples are drawn; not read here.
            size: of a square in place of the row's bucket.
        """
        return to_unit_range(self._fitted(row, size)), int(self.labels[row])

    def still(self, row: int) -> np.ndarray:
        """The square picture, float32 `(3, size, size)` in [-1, 1], whatever the row's bucket; for held-out scores."""
        return to_unit_range(self.picture(row, (self.size, self.size)))

    def content_digest(self) -> str:
        """A digest of the pictures themselves: every file's length, and all bytes of about a hundred files."""
        total = hashlib.sha256()
        for row in range(len(self)):
            value = self.table[row][self.image_column]
            content = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
            if isinstance(content, bytes):
                total.update(len(content).to_bytes(8))
            else:
                total.update(Path(content).stat().st_size.to_bytes(8))
            if row % (len(self) // 100 + 1) == 0:
                total.update(content if isinstance(content, bytes) else Path(content).read_bytes())
        return total.hexdigest()

    @property
    def fingerprint(self) -> str:
        """A digest of rows, labels, groups and shapes: two data sets with one digest give the same training."""
        parts = self.labels.tobytes(), self.buckets.tobytes(), "\n".join(self.groups)
        return digest(f"{len(self)} {self.shapes} {self.class_names}", *parts)

    def split(self, held_out: float) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers for training and held out, whole groups on one side, the same in every run.

        A group is held out when the hash of its name falls below the share, so that rows added later move nothing.
        """
        return split_by_name(self.groups, held_out)


def split_by_name(names: Sequence[str], held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of names for training, and of those held out, whose hash falls below the share."""
    share = np.array([int(digest(name)[:8], 16) / 2**32 for name in names])
    return np.flatnonzero(share >= held_out), np.flatnonzero(share < held_out)


def images_of(data: DataConfig) -> LabelledImages:
    """The data set that a configuration's `data` describes."""
    table = load_table(data.source, data.split)
    return LabelledImages.of(data, table, data.size, data.bucket_step, data.bucket_max_aspect)


def _labels(table, column: str | None) -> tuple[list[int], list[str]]:
    if column is None:
        return [0] * len(table), []
    return numbered(labels_in(table, column), getattr(table.features.get(column), "names", None))
