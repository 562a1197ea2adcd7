"""The avatar data set: DiceBear's styles, every part drawn by us, so that all attributes of a picture are known.

`brickwork data build avatars` writes three Parquet files: pictures to train on, pictures with combinations of
attributes that no training picture has, and pictures of other seeds.
"""

import io
import random
import tempfile
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from itertools import count as counted
from pathlib import Path

import PIL.Image
from tqdm import tqdm

from brickwork.errors import one_of
from brickwork.files import check_folder, new_folder
from brickwork.training.data.build.attributes import ATTRIBUTES, Drawing, draw, table, values_of
from brickwork.training.data.build.captions import caption
from brickwork.training.data.build.dicebear import Artist, artist, install, require_programs

SPLITS = {"train": "train.parquet", "combination": "held_out_combinations.parquet", "seed": "held_out_seeds.parquet"}
CARD = "README.md"
MAKER = "brickwork data build avatars"
MIN_SIZE, MAX_SIZE = 32, 1024
ROWS_PER_GROUP = 500
PATIENCE = 1000  # drawings tried for one of the wanted kind


def build_avatars(
    output: str | Path,
    *,
    count: int = 10000,
    held_out: int = 1000,
    size: int = 128,
    styles: list[str] | None = None,
    where: dict[str, list[str]] | None = None,
    seed: int = 0,
    packages: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Builds the data set in the folder `output` and returns that; the same bytes for the same arguments and versions.

    Args:
        count: of training pictures. held_out: of pictures in each of the two other files.
        size: side of the pictures in pixels.
        styles: names of styles, in equal shares; None for all. The classes are these, in this order.
        where: the values to draw from by attribute, such as `{"mood": ["happy", "sad"]}`.
        packages: folder in which the styles' npm packages are kept; None for a temporary one.
        overwrite: replace what an earlier run wrote.

    Raises `ValueError` for unknown styles, attributes and values, styles whose licence does not allow it, files in the
    way, and where Node, npm or resvg-py are missing.
    """
    output, styles, where = Path(output), list(styles or table()["styles"]), where or {}
    _check_numbers(count, held_out, size)
    _check_names(styles, where)
    check_folder(output, MAKER, overwrite=overwrite)
    require_programs()
    with (
        tempfile.TemporaryDirectory(prefix="brickwork-avatars-") as installed,
        new_folder(output, MAKER, overwrite=overwrite) as building,
    ):
        folder, counts = Path(packages or installed), Counter()
        install(folder)
        with artist(folder, styles) as hand:
            check_licences(hand.styles)
            for split, name in SPLITS.items():
                rows = [*_drawings(split, count if split == "train" else held_out, styles, hand, where, seed)]
                counts.update(drawing.style for drawing, _ in rows)
                _write(building / name, split, rows, styles, hand, size)
            card = _card(hand, counts, size, count, held_out, seed)
        (building / CARD).write_text(card, encoding="utf-8")
    return output


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_numbers(count: int, held_out: int, size: int) -> None:
    if count < 1 or held_out < 0:
        raise ValueError(f"count is {count} and held_out {held_out}: give 1 or more, and 0 or more.")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size is {size}: choose {MIN_SIZE} to {MAX_SIZE} pixels.")


def _check_names(styles: list[str], where: dict[str, list[str]]) -> None:
    for style in styles:
        if style in table()["refused"]:
            refuse(style, table()["refused"][style])
        one_of("styles", style, table()["styles"])
    if len(set(styles)) < len(styles):
        raise ValueError(f"styles names one twice: {' '.join(styles)}; name each once.")
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


# --- drawing and writing --------------------------------------------------------------------------------------------


def _drawings(
    split: str, wanted: int, styles: list[str], hand: Artist, where: dict, seed: int
) -> Iterator[tuple[Drawing, str]]:
    """Drawings and captions, the styles in turn; with held-out combinations in the split of that name only."""
    tried = counted()
    for row in range(wanted):
        style = styles[row % len(styles)]
        for _ in range(PATIENCE):
            rng = random.Random(f"{seed} {split} {next(tried)}")
            drawing = draw(style, hand.styles[style]["options"], rng, where)
            if drawing.held_out == (split == "combination"):
                break
        else:
            raise ValueError(
                f"where leaves {style} no combination for the split {split!r}: allow more, or held_out 0."
            )
        yield drawing, caption(drawing, rng)


def _write(
    path: Path, split: str, rows: list[tuple[Drawing, str]], styles: list[str], hand: Artist, size: int
) -> None:
    """One Parquet file in the Hugging Face image layout."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import resvg_py
    from datasets import ClassLabel, Features, Image, Value

    text = Value("string")
    columns = dict.fromkeys(("text", "split", "combination", *ATTRIBUTES), text)
    schema = Features(image=Image(), label=ClassLabel(names=styles), **columns).arrow_schema
    random.Random(0).shuffle(rows)  # so that any part of the file is a fair sample
    with pq.ParquetWriter(path, schema, compression="zstd") as writer, tqdm(total=len(rows), desc=path.stem) as bar:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            batch = []
            for row, (drawing, words) in enumerate(rows[start : start + ROWS_PER_GROUP], start):
                svg = hand.draw(drawing.style, drawing.options)
                image = {
                    "bytes": _opaque(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)),
                    "path": f"{split}/{row:07d}.png",
                }
                told = {"text": words, "split": split, "combination": drawing.combination}
                batch.append({"image": image, "label": styles.index(drawing.style), **told, **drawing.attributes})
                bar.update()
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _opaque(picture: bytes) -> bytes:
    """The PNG without its alpha channel, which the ground leaves nothing to do."""
    file = io.BytesIO()
    PIL.Image.open(io.BytesIO(bytes(picture))).convert("RGB").save(file, "PNG")
    return file.getvalue()


def _card(hand: Artist, counts: Counter, size: int, count: int, held_out: int, seed: int) -> str:
    """What the data are, their designers and licences."""
    lines = [
        f"| {style} | {counts[style]} | [{told['title']}]({told['source']}) by {told['creator']} | "
        f"[{told['license']['name']}]({told['license']['url']}) |"
        for style, told in hand.styles.items()
    ]
    values = {
        name: dict.fromkeys(value for style in hand.styles for value in values_of(style, name)) for name in ATTRIBUTES
    }
    listed = [f"| {name} | {', '.join(known)} |" for name, known in values.items() if known]
    return "\n".join(
        [
            "# Avatars",
            "",
            f"Made by `{MAKER}`: {counts.total()} pictures of {size}×{size} pixels, seed {seed}; DiceBear 9.4.3.",
            "",
            f"- `{SPLITS['train']}`: {count} pictures",
            f"- `{SPLITS['combination']}`: {held_out} whose `combination` is in no training picture",
            f"- `{SPLITS['seed']}`: {held_out} of other seeds, with the training pictures' combinations",
            "",
            "| style | pictures | design | licence |",
            "| --- | --- | --- | --- |",
            *lines,
            "",
            "**Changes**: parts and colours were drawn anew and the drawings rasterised. No endorsement is implied.",
            "",
            "| attribute | values (none: without; empty: not of this style, or hidden) |",
            "| --- | --- |",
            *listed,
            "",
        ]
    )


# --- the command ----------------------------------------------------------------------------------------------------


def configure_parser(parser: ArgumentParser) -> None:
    """`brickwork data build avatars`."""
    parser.description = (
        "Build avatars of known attributes with DiceBear's styles: about 5 ms a picture at 128 pixels."
    )
    parser.epilog = (
        "example: brickwork data build avatars --output data/avatars --count 40000 --size 64\n"
        "         brickwork data build avatars --styles micah bottts --where mood=happy,sad"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("data/avatars"), help="a folder (default: %(default)s)"
    )
    parser.add_argument("-n", "--count", type=int, default=10000, help="training pictures (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=1000, help="in each held-out file (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels (default: %(default)s)")
    parser.add_argument("--styles", nargs="+", metavar="STYLE", help=f"of {', '.join(table()['styles'])}")
    parser.add_argument("--where", nargs="+", default=[], metavar="ATTRIBUTE=VALUE,…", help="draw these values only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", type=Path, metavar="DIR", help="keep the npm packages there, for the next time")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    where = {}
    for given in args.where:
        attribute, equals, values = given.partition("=")
        if not equals or not values:
            raise ValueError(f"--where has {given!r}; write attribute=value, or attribute=value,value.")
        where[attribute] = values.split(",")
    asked = {name: getattr(args, name) for name in ("count", "held_out", "size", "styles", "seed", "packages")}
    output = build_avatars(args.output, where=where, overwrite=args.overwrite, **asked)
    print(f"{', '.join(SPLITS.values())} in {output}; designers and licences in {output / CARD}")
    return 0
