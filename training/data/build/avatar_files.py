"""What data sets of avatars share: their three files and card, drawings in turn, and what is refused."""

import io
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count as counted
from pathlib import Path

import PIL.Image
from tqdm import tqdm

from brickwork.errors import one_of
from brickwork.files import check_folder, filled, new_folder
from brickwork.training.data.build.attributes import ATTRIBUTES, Drawing, draw, table, values_of
from brickwork.training.data.build.captions import caption
from brickwork.training.data.build.dicebear import Artist, artist, install, require_programs
from brickwork.training.data.build.svg import rasterise

SPLITS = {"train": "train.parquet", "combination": "held_out_combinations.parquet", "seed": "held_out_seeds.parquet"}
CARD, TEMPLATE = "README.md", Path(__file__).with_name("avatars.md.jinja")
MAKER = "brickwork data build avatars"
MIN_SIZE, MAX_SIZE = 32, 1024
ROWS_PER_GROUP = 500
PATIENCE = 1000  # drawings tried for one of the wanted kind


@dataclass
class Wanted:
    """What to draw.

    Attributes:
        count: of training pictures. held_out: of pictures in each of the two other files.
        size: side of the pictures in pixels.
        styles: names of styles, in equal shares; none for all. The classes are these, in this order.
        where: the values to draw from by attribute, such as `{"mood": ["happy", "sad"]}`.
        seed: of the draw.

    Raises:
        ValueError: for numbers out of range, unknown styles, attributes and values, and styles whose licence does not
            allow it.
    """

    count: int = 10000
    held_out: int = 1000
    size: int = 128
    styles: list[str] | None = None
    where: dict[str, list[str]] | None = None
    seed: int = 0

    def __post_init__(self):
        self.styles, self.where = list(self.styles or table()["styles"]), self.where or {}
        if self.count < 1 or self.held_out < 0:
            raise ValueError(f"count is {self.count} and held_out {self.held_out}: give 1 or more, and 0 or more.")
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f"size is {self.size}: choose {MIN_SIZE} to {MAX_SIZE} pixels.")
        _check_styles(self.styles)
        _check_where(self.where, self.styles)

    def rows(self, split: str) -> int:
        """The number of pictures in one of `SPLITS`."""
        return self.count if split == "train" else self.held_out


def _check_styles(styles: list[str]) -> None:
    for style in styles:
        if style in table()["refused"]:
            refuse(style, table()["refused"][style])
        one_of("styles", style, table()["styles"])
    if len(set(styles)) < len(styles):
        raise ValueError(f"styles names one twice: {' '.join(styles)}; name each once.")


def _check_where(where: dict[str, list[str]], styles: list[str]) -> None:
    for attribute, wanted in where.items():
        one_of("where", attribute, ATTRIBUTES)
        for style in styles:
            known = values_of(style, attribute)
            if known and not set(wanted) & set(known):
                for value in wanted:
                    one_of(f"where: {attribute} of {style}", value, known)
        every = list(dict.fromkeys(value for style in styles for value in values_of(style, attribute)))
        for value in wanted:
            one_of(f"where: {attribute}", value, every)


def check_licences(styles: dict[str, dict]) -> None:
    """Refuses styles whose package does not state one of the allowed licences."""
    for style, described in styles.items():
        licence = described["license"]["name"].strip(" .")
        if licence not in table()["allowed_licences"]:
            refuse(style, licence)


def refuse(style: str, licence: str) -> None:
    allowed = ", ".join(table()["allowed_licences"])
    raise ValueError(f"styles has {style!r}, whose licence is {licence!r}; leave it out: allowed are {allowed}.")


@contextmanager
def open_set(
    output: str | Path, wanted: Wanted, packages: str | Path | None, overwrite: bool, title: str, told: Iterable[str]
) -> Iterator[tuple[Path, Artist, Counter]]:
    """A folder to write into, which becomes `output`, with a card, when the block ends.

    Args:
        output: the folder.
        wanted: what is drawn.
        packages: folder in which the styles' npm packages are kept; None for a temporary one.
        overwrite: replace what an earlier run wrote.
        title: of the data, for the card. told: lines on them.

    Yields:
        The folder, the artist of the styles, and a count of the drawings by style, for the block to fill in.

    Raises:
        ValueError: for files in the way, refused licences, and where Node, npm or resvg-py are missing.
    """
    check_folder(output, MAKER, overwrite=overwrite)
    require_programs()
    drawn: Counter = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="brickwork-avatars-") as installed,
        new_folder(output, MAKER, overwrite=overwrite) as building,
    ):
        folder = Path(packages or installed)
        install(folder)
        with artist(folder, wanted.styles) as hand:
            check_licences(hand.styles)
            yield building, hand, drawn
            _write_card(building / CARD, title, told, hand.styles, drawn)


def draw_picture(hand: Artist, style: str, options: dict, side: int) -> PIL.Image.Image:
    """One avatar, RGBA, of so many pixels."""
    return PIL.Image.open(io.BytesIO(rasterise(hand.draw(style, options), side))).convert("RGBA")


def png_of(picture: PIL.Image.Image) -> bytes:
    """A picture as a PNG without an alpha channel."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG")
    return file.getvalue()


class Draws:
    """Drawings of one split, each from a seed of its own.

    Args:
        split: one of `SPLITS`; held-out combinations are drawn for "combination" alone.
        wanted: what to draw from.
        described: options of the styles, as `Artist.styles` has them.
    """

    def __init__(self, split: str, wanted: Wanted, described: dict[str, dict]):
        self.split, self.wanted, self.described, self._tried = split, wanted, described, counted()

    def __call__(self, style: str, where: dict[str, list[str]] | None = None) -> tuple[Drawing, random.Random]:
        """A drawing, and the random numbers that it left, for its caption.

        Args:
            where: more values to draw from, over those of the whole set.

        Raises:
            ValueError: where no combination is left.
        """
        for _ in range(PATIENCE):
            rng = random.Random(f"{self.wanted.seed} {self.split} {next(self._tried)}")
            drawing = draw(style, self.described[style]["options"], rng, self.wanted.where | (where or {}))
            if drawing.held_out == (self.split == "combination"):
                return drawing, rng
        raise ValueError(
            f"where leaves {style} no combination for the split {self.split!r}: allow more, or held_out 0."
        )


def write_rows(path: Path, features, rows: list, finish: Callable[[int, object], dict]) -> None:
    """One Parquet file in the Hugging Face image layout.

    Args:
        path: of the file; its stem names the bar.
        features: columns, as `datasets.Features`.
        rows: in the order of the draw; any part of the file is a fair sample of them.
        finish: makes a row's columns, with the picture; called with the row's number, as rows are written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    random.Random(0).shuffle(rows)
    schema = features.arrow_schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer, tqdm(total=len(rows), desc=path.stem) as bar:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            batch = []
            for number, row in enumerate(rows[start : start + ROWS_PER_GROUP], start):
                batch.append(finish(number, row))
                bar.update()
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def shared(one: Drawing, other: Drawing) -> dict[str, str]:
    """The attributes that two drawings show alike."""
    return {name: value for name, value in one.attributes.items() if value and value == other.attributes[name]}


def write_avatars(
    path: Path, split: str, wanted: Wanted, hand: Artist, drawn: Counter, reference: Callable | None = None
) -> None:
    """The pictures of one split, the styles in turn.

    Args:
        path, split, wanted: the file, and what to draw.
        hand, drawn: see `open_set`.
        reference: gives another drawing of an avatar, from its drawing and the random numbers that it left, whose
            picture stands beside it; `None` for none.
    """
    from datasets import ClassLabel, Features, Image, Value

    styles, draws, rows = wanted.styles, Draws(split, wanted, hand.styles), []
    for number in range(wanted.rows(split)):
        drawing, rng = draws(styles[number % len(styles)])
        other = reference and reference(drawing, rng)
        rows.append((drawing, other, caption(drawing, rng)))
        drawn.update(one.style for one in (drawing, other) if one)

    def finish(number: int, row: tuple) -> dict:
        drawing, other, words = row

        def picture(one: Drawing, end: str = "") -> dict:
            png = png_of(draw_picture(hand, one.style, one.options, wanted.size))
            return {"bytes": png, "path": f"{split}/{number:07d}{end}.png"}

        told = {"text": words, "split": split, "combination": drawing.combination, **drawing.attributes}
        if other:
            told |= {"reference": picture(other, "-reference"), "reference_style": other.style}
            told |= {"shared": json.dumps(shared(drawing, other))}
        return {"image": picture(drawing), "label": styles.index(drawing.style), **told}

    pictures, further = (("image", "reference"), ("reference_style", "shared")) if reference else (("image",), ())
    columns = {name: Image() for name in pictures} | {"label": ClassLabel(names=styles)}
    texts = ("text", "split", "combination", *ATTRIBUTES, *further)
    write_rows(path, Features(columns | dict.fromkeys(texts, Value("string"))), rows, finish)


def _write_card(path: Path, title: str, told: Iterable[str], styles: dict[str, dict], drawn: Counter) -> None:
    """What the data are, their designers and licences, and the values of their attributes."""
    values = {
        name: dict.fromkeys(value for style in styles for value in values_of(style, name)) for name in ATTRIBUTES
    }
    card = filled(TEMPLATE, title=title, told=told, styles=styles, drawn=drawn, attributes=values)
    path.write_text(card, encoding="utf-8")
