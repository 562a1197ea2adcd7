"""What is in a data set, and what is wrong with it, before a run finds out."""

import argparse
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from brickwork import options
from brickwork.eval.report.pictures import labelled_sheet, save_picture
from brickwork.eval.sets.decode import BrokenPicture, kinds_of, open_upright, to_rgb
from brickwork.eval.sets.tables import CAPTIONS, LABELS, captions_in, find_column, guessed_column, image_column
from brickwork.files import digest, file_digest, new_folder, write_file, write_json
from brickwork.training.data.buckets import bucket_shapes, nearest_bucket
from brickwork.training.data.images import LabelledImages, load_table


@dataclass
class DataReport:
    """What `check_data` found; rows are numbers in the data set.

    Attributes:
        rows: how many there are.
        names: what each is called.
        skipped: reason => names of what was left out of the source.
        notes: what else of the source a reader should know.
        kinds: what of pictures is not plain (`brickwork.eval.sets.decode.kinds_of`) => their rows.
        no_class: rows of no class, where others have one.
        broken: row => why its picture cannot be read.
        tiny: rows whose shorter side is below the training size.
        duplicates: groups of rows with the same file.
        look_alikes: groups of rows whose pictures are the same to the eye, and whose files are not.
        captions_missing: rows without a caption, where a caption column was named.
        labels: class name => number of images.
        buckets: `height×width` => number of images.
    """

    rows: int = 0
    names: list[str] = field(default_factory=list, repr=False)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kinds: dict[str, list[int]] = field(default_factory=dict)
    no_class: list[int] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)
    tiny: list[int] = field(default_factory=list)
    duplicates: list[list[int]] = field(default_factory=list)
    look_alikes: list[list[int]] = field(default_factory=list)
    captions_missing: list[int] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    buckets: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """The report for a reader; long lists are cut."""
        lines = [f"{self.rows:,} images"]
        lines += [f"  {name}: {number:,}" for name, number in self.labels.items()]
        lines += [f"note: {note}" for note in self.notes]
        lines += [_listed(f"left out: {reason}", names) for reason, names in self.skipped.items()]
        lines.append(_listed("broken, cannot be read", [f"{self._name(r)} ({why})" for r, why in self.broken.items()]))
        rows_of = dict(sorted(self.kinds.items())) | {"of no class": self.no_class}
        rows_of |= {"smaller than the training size": self.tiny, "without a caption": self.captions_missing}
        lines += [_listed(title, list(map(self._name, rows))) for title, rows in rows_of.items()]
        for title, groups in (("identical files", self.duplicates), ("pictures that look alike", self.look_alikes)):
            lines.append(_listed(f"groups of {title}", [" = ".join(map(self._name, group)) for group in groups]))
        lines.append("buckets (height×width): " + ", ".join(f"{name} {n:,}" for name, n in self.buckets.items()))
        return "\n".join(lines)

    def _name(self, row: int) -> str:
        return self.names[row] if row < len(self.names) else f"row {row}"


def _listed(title: str, entries: list) -> str:
    shown = "; ".join(str(entry) for entry in entries[:5]) + (" …" if len(entries) > 5 else "")
    return f"{len(entries):,} {title}" + (f": {shown}" if entries else "")


def check_data(
    images: LabelledImages,
    bucket_step: int = 8,
    bucket_max_aspect: float = 2.0,
    captions: list[str | None] | None = None,
) -> DataReport:
    """Read every picture once.

    Args:
        images: the data set; its `size` is the training size.
        bucket_step: sides of aspect-ratio buckets are multiples of this.
        bucket_max_aspect: longest side of a bucket over its shortest.
        captions: one for each row, if there should be any.
    """
    shapes = bucket_shapes(images.size, bucket_step, bucket_max_aspect)
    files, looks, buckets = defaultdict(list), defaultdict(list), Counter()
    report = DataReport(rows=len(images), names=list(getattr(images.table, "names", [])))
    report.notes = list(getattr(images.table, "notes", []))
    for entry in getattr(images.table, "skipped", []):
        report.skipped.setdefault(entry.reason, []).append(entry.name)
    for row in range(len(images)):
        value = images.table[row][images.image_column]
        try:
            picture = open_upright(value)
            kinds = kinds_of(picture)
            picture = to_rgb(picture)
        except BrokenPicture as error:
            report.broken[row] = str(error)
            continue
        for kind in kinds:
            report.kinds.setdefault(kind, []).append(row)
        if min(picture.size) < images.size:
            report.tiny.append(row)
        file = _file_digest(value)
        files[file].append(row)
        looks[_look(picture)].append((row, file))
        height, width = shapes[nearest_bucket(picture.height, picture.width, shapes)]
        buckets[f"{height}×{width}"] += 1
    report.duplicates = [rows for rows in files.values() if len(rows) > 1]
    report.look_alikes = [
        [row for row, _ in group] for group in looks.values() if len({file for _, file in group}) > 1
    ]
    report.captions_missing = [row for row, text in enumerate(captions or []) if not (text or "").strip()]
    report.no_class = np.flatnonzero(images.labels == len(images.class_names)).tolist() if images.class_names else []
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    report.labels = {name: int(counts[number]) for number, name in enumerate(images.class_names)}
    names = [f"{height}×{width}" for height, width in shapes]
    report.buckets = {name: buckets[name] for name in names if buckets[name]}
    return report


def _file_digest(value) -> str:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return digest(value) if isinstance(value, bytes) else file_digest(value)


def _look(picture: Image.Image) -> bytes:
    """A picture as 12×12 pixels of 4 bits a channel: the same for copies in other sizes and formats, mostly."""
    thumbnail = np.asarray(picture.resize((12, 12), Image.Resampling.BOX), dtype=np.uint16)
    return ((thumbnail + 8) // 16).astype(np.uint8).tobytes()


def contact_sheet(images: LabelledImages, report: DataReport, path: Path, examples: int = 8) -> None:
    """Draw a PNG with a row of examples for the data set as it is read, and one for each kind that was found."""
    side, blank = 96, Image.new("RGB", (96, 96), "white")
    every = [row for row in range(len(images)) if row not in report.broken]
    rows = {
        "as training sees them": [every[index * len(every) // examples] for index in range(min(examples, len(every)))]
    }
    rows |= report.kinds | {"of no class": report.no_class, "smaller than the training size": report.tiny}
    rows |= {"look alike": [row for group in report.look_alikes for row in group]}
    rows = {title: numbers[:examples] for title, numbers in rows.items() if numbers}
    drawn = [[Image.fromarray(images.picture(row, (side, side))) for row in numbers] for numbers in rows.values()]
    padded = [pictures + [blank] * (examples - len(pictures)) for pictures in drawn]
    save_picture(labelled_sheet(padded, list(rows), [""] * examples, side), path)


def histogram(counts: dict[str, int], path: Path) -> None:
    """Draw a bar chart of named counts as a PNG."""
    row, left, width = 22, 110, 640
    image = Image.new("RGB", (width, row * max(len(counts), 1) + 10), "white")
    draw, most = ImageDraw.Draw(image), max([*counts.values(), 1])
    for number, (name, count) in enumerate(counts.items()):
        top = 5 + row * number
        end = left + count / most * (width - left - 80)
        draw.rectangle((left, top + 3, end, top + row - 3), fill="#3366cc")
        draw.text((8, top + 4), name, fill="black")
        draw.text((end + 6, top + 4), f"{count:,}", fill="black")
    save_picture(image, path)


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.epilog = "example: brickwork data check train.parquet --caption-column text --histogram buckets.png"
    parser.add_argument("source", help="an image folder, a Parquet file, shards, or a data set on the hub")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image-column", help="by default `image`, or the only one that can be")
    parser.add_argument("--label-column", default=None, help="class names or numbers; by default `label`, if there")
    parser.add_argument("--caption-column", default=None, help="by default `text`, `caption` or the like")
    parser.add_argument("--size", type=int, default=64, help="training size in pixels (default: 64)")
    parser.add_argument("--bucket-step", type=int, default=8)
    parser.add_argument("--bucket-max-aspect", type=float, default=2.0)
    parser.add_argument("--histogram", type=Path, help="draw the buckets into this PNG")
    parser.add_argument("-o", "--output", type=Path, help="folder for a contact sheet and the complete report")
    options.add_common(parser, "--overwrite")
    parser.add_argument("--json", type=Path, help="write everything, uncut, into this file")
    parser.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> int:
    """Check, print; returns 1 where pictures are broken, else 0."""
    options.check_at_least(args, 1, "size")
    if not 1 <= args.bucket_step <= args.size:
        raise ValueError(f"`--bucket-step` is {args.bucket_step}; give 1 to --size = {args.size}.")
    table = load_table(args.source, args.split)
    label_column = args.label_column or guessed_column(table, LABELS, "--label-column")
    images = LabelledImages(table, args.size, image_column(table, args.image_column, "--image-column"), label_column)
    captions = None
    if args.caption_column is not None:
        captions = captions_in(table, find_column(table, args.caption_column, "--caption-column"))
    elif guessed := guessed_column(table, CAPTIONS, "--caption-column"):
        captions = captions_in(table, guessed)
    report = check_data(images, args.bucket_step, args.bucket_max_aspect, captions)
    print(report.text())
    if args.json:
        write_json(args.json, asdict(report), indent=1)
    if args.histogram:
        histogram(report.buckets, args.histogram)
        print(f"The buckets are drawn in {args.histogram}.")
    if args.output:
        with new_folder(args.output, "brickwork data check", overwrite=args.overwrite, argument="--output") as folder:
            contact_sheet(images, report, folder / "contact-sheet.png")
            histogram(report.buckets, folder / "buckets.png")
            write_json(folder / "report.json", asdict(report), indent=1)
            write_file(folder / "report.txt", report.text() + "\n")
        print(f"A contact sheet and the complete report are in {args.output}.")
    return 1 if report.broken else 0
