"""`open_pictures`: the one way to read pictures, for training, checks and evaluation alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
from PIL import Image

from brickwork.eval.sets.decode import BrokenPicture, check_background, open_upright, to_rgb
from brickwork.eval.sets.scan import Skipped
from brickwork.eval.sets.tables import (
    CAPTIONS,
    LABELS,
    captions_in,
    find_column,
    guessed_column,
    image_column,
    labels_in,
    open_table,
)


@dataclass(frozen=True)
class Picture:
    """One picture of a set.

    Attributes:
        image: uint8 `(H, W, 3)`, upright, on the background.
        caption: a text, or `None`.
        label: the name of its class, or `None`.
        name: its path relative to the source, with suffix; of a table without paths, `row N`.
    """

    image: np.ndarray
    caption: str | None
    label: str | None
    name: str


class Pictures(Sequence):
    """Pictures that are decoded when asked for; see `open_pictures`.

    Iteration leaves out pictures that do not decode and adds them to `skipped`; indexing one raises a `ValueError`.

    Attributes:
        names: of all that are listed.
        captions: a text or `None` for each.
        labels: a class name, a class number where no name is known, or `None` for each.
        skipped: `(name, reason)` of what was left out.
        notes: what else a reader should be told once.
    """

    def __init__(self, table, background: str, image: str, caption: str | None, label: str | None):
        self.table, self.background, self.column = table, check_background(background), image
        self._caption, self._label = caption, label
        self.names: list[str] = _names(table, image)
        self.skipped: list[Skipped] = list(table.skipped)
        self.notes: list[str] = list(table.notes)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def captions(self) -> list[str | None]:
        return [None] * len(self) if self._caption is None else captions_in(self.table, self._caption)

    @cached_property
    def labels(self) -> list[int | str | None]:
        return [None] * len(self) if self._label is None else labels_in(self.table, self._label)

    def open(self, index: int) -> Image.Image:
        """A picture upright, but neither decoded nor on the background.

        Raises:
            BrokenPicture: where there is none.
        """
        return open_upright(self.table[int(index)][self.column])

    def _picture(self, index: int) -> Picture:
        with self.open(index) as image:
            pixels = np.array(to_rgb(image, self.background))
        label = self.labels[index]
        return Picture(pixels, self.captions[index], None if label is None else str(label), self.names[index])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        try:
            return self._picture(row)
        except BrokenPicture as error:
            raise ValueError(f"{self.names[row]!r} cannot be read ({error}); replace or remove it.") from None

    def __iter__(self) -> Iterator[Picture]:
        for row in range(len(self)):
            try:
                yield self._picture(row)
            except BrokenPicture as error:
                entry = Skipped(self.names[row], str(error))
                if entry not in self.skipped:
                    self.skipped.append(entry)


def open_pictures(
    source: str | Path,
    background: str = "white",
    *,
    image: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    split: str = "train",
) -> Pictures:
    """The pictures of a source, in one order for all who read it.

    Args:
        source: a folder of pictures (see `brickwork.eval.sets.scan` for classes and captions), a `.parquet` file or a
            folder of them, WebDataset shards, one picture, or a data set on the hub.
        background: the colour under transparent pictures.
        image: column of the pictures; by default `image`, or the only one that can be.
        caption: column of the captions; by default the one with a name of `tables.CAPTIONS` (`text`, `caption`, …).
        label: column of the classes; by default the one with a name of `tables.LABELS` (`label`, `class`, …).
        split: of a data set on the hub.

    Raises:
        ValueError: for a source without pictures, metadata that cannot be read, and columns of which several could be
            meant and say different things.
    """
    table = open_table(source, split)
    column = image_column(table, image, "image")
    chosen = [
        guessed_column(table, known, argument) if given is None else find_column(table, given, argument)
        for given, known, argument in ((caption, CAPTIONS, "caption"), (label, LABELS, "label"))
    ]
    return Pictures(undecoded(table, column), background, column, *chosen)


def undecoded(table, column: str):
    """The same table with pictures as bytes or paths, so that a broken one can be told and skipped."""
    if type(getattr(table, "features", {}).get(column)).__name__ != "Image":
        return table
    import datasets

    plain = table.cast_column(column, datasets.Image(decode=False))
    plain.skipped, plain.notes = getattr(table, "skipped", []), getattr(table, "notes", [])
    return plain


def _names(table, column: str) -> list[str]:
    if hasattr(table, "names"):
        return table.names
    paths = [None] * len(table)
    cells = table.data.column(column)
    if pyarrow.types.is_struct(cells.type) and cells.type.get_field_index("path") >= 0:
        paths = pyarrow.compute.struct_field(cells, "path").to_pylist()  # without the bytes beside them
    return [path or f"row {row}" for row, path in enumerate(paths)]
