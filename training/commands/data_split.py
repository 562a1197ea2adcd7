"""Scores on held-out pictures (`brickwork search`, `brickwork evaluate calc --paired`) and references of the training
pictures alone (`brickwork evaluate ref`) read them like any other folder.

Write the pictures that a run trains on and those that it holds out as two image folders, train and held-out, at the
run's size and with labels numbered as the network's.

example:
  brickwork data split --config lego_emoji_64 --output runs/emoji-split
  brickwork evaluate calc samples --paired my-model runs/emoji-split/held-out …
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from brickwork import options
from brickwork.files import digest, new_folder, read_json, write_json
from brickwork.training.config.config import load_config
from brickwork.training.data.images import BrokenImage, LabelledImages, images_of

RECORD = "split.json"
PARTS = ("train", "held-out")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    options.add_common(parser, "--config", "--overwrite", "overrides")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the two folders and say what is in them."""
    config = load_config(args.config, args.overrides)
    counts = write_split(images_of(config.data), config.data.held_out, args.output, args.overwrite)
    print(", ".join(f"{args.output / part}: {count:,} pictures" for part, count in counts.items()))
    return 0


def write_split(
    images: LabelledImages, held_out: float, output: str | Path, overwrite: bool = False
) -> dict[str, int]:
    """Write the folders `train` and `held-out` as PNGs with a `metadata.jsonl` of labels.

    The same split again is left as it is.

    Args:
        images: of the run; squares of its size are written. Broken pictures are left out.
        held_out: share of the groups that are held out.
        output: folder to write; it appears complete or not at all.
        overwrite: replace another split in it.

    Returns:
        The number of pictures in each folder.

    Raises:
        ValueError: for an output that holds something else, or a share that holds nothing out.
    """
    output = Path(output)
    rows = dict(zip(PARTS, images.split(held_out)))
    for part, numbers in rows.items():
        if not len(numbers):
            raise ValueError(
                f"`data.held_out` is {held_out}, which leaves nothing for {part} of {len(images)} pictures; give a "
                "share between 0 and 1 that holds some out."
            )
    fingerprint = digest(f"{images.fingerprint} {images.content_digest()} {held_out}")
    if (output / RECORD).is_file():
        found = read_json(output / RECORD, "record of a split")
        if found.get("fingerprint") == fingerprint:
            return found["pictures"]
    with new_folder(output, "brickwork data split", overwrite=overwrite) as folder:
        counts = {part: _write_folder(images, numbers, folder / part) for part, numbers in rows.items()}
        record = {"fingerprint": fingerprint, "classes": images.class_names, "size": images.size, "pictures": counts}
        write_json(folder / RECORD, record)
    return counts


def _write_folder(images: LabelledImages, rows: np.ndarray, folder: Path) -> int:
    folder.mkdir(parents=True)
    lines = []
    for row in rows:
        try:
            picture = images.picture(row, (images.size, images.size))
        except BrokenImage:
            continue
        name = f"{row:06d}.png"
        Image.fromarray(picture).save(folder / name)
        label = {"label": int(images.labels[row])} if images.class_names else {}
        lines.append(json.dumps({"file_name": name} | label) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)
