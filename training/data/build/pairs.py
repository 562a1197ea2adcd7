"""Pairs: the same avatar in two styles, one drawing as the reference of the other."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from brickwork.training.data.build.attributes import ATTRIBUTES, Drawing, draw, values_of
from brickwork.training.data.build.avatar_files import (
    MAKER,
    SPLITS,
    Draws,
    Wanted,
    draw_picture,
    open_set,
    png_of,
    write_rows,
)
from brickwork.training.data.build.captions import caption


def in_style(drawing: Drawing, style: str, described: dict, rng: random.Random, where: dict) -> Drawing:
    """The same avatar in another style: every value that the style has, others as they fall.

    Args:
        described, rng, where: see `draw`; the drawing's values come before those of `where`.
    """
    has = {name: [value] for name, value in drawing.attributes.items() if value in values_of(style, name)}
    return draw(style, described, rng, {**where, **has})


def shared(one: Drawing, other: Drawing) -> dict[str, str]:
    """The attributes that two drawings show alike."""
    return {name: value for name, value in one.attributes.items() if value and value == other.attributes[name]}


def build_pairs(
    output: str | Path, *, packages: str | Path | None = None, overwrite: bool = False, **asked: Any
) -> Path:
    """Builds pairs in the folder `output` and returns that; the same bytes for the same arguments and versions.

    The columns are those of single avatars, which `image` and `text` belong to, with `reference`, a picture of the
    same avatar in another style, `reference_style`, and `shared`, the attributes that both show alike, as JSON. In
    `held_out_combinations.parquet` no training picture has the combination of `image`.

    Args:
        packages, overwrite: see `open_set`.
        asked: see `Wanted`; two styles at least.

    Raises `ValueError` for what `Wanted` and `open_set` refuse, and for a single style.
    """
    wanted = Wanted(**asked)
    if len(wanted.styles) < 2:
        raise ValueError(f"styles is {' '.join(wanted.styles)}; name two or more, as a pair is of two styles.")
    told = [
        f"Made by `{MAKER} --pairs`: {wanted.count} pairs of pictures of {wanted.size}×{wanted.size} pixels, and "
        f"{wanted.held_out} in each held-out file, seed {wanted.seed}; DiceBear 9.4.3.",
    ]
    with open_set(output, wanted, packages, overwrite, "Avatars in two styles", told) as (folder, hand, drawn):
        for split, name in SPLITS.items():
            _write(folder / name, split, wanted, hand, drawn)
    return Path(output)


def _write(path: Path, split: str, wanted: Wanted, hand, drawn: Counter) -> None:
    from datasets import ClassLabel, Features, Image, Value

    styles, draws, rows = wanted.styles, Draws(split, wanted, hand.styles), []
    for number in range(wanted.rows(split)):
        drawing, rng = draws(styles[number % len(styles)])
        style = rng.choice([one for one in styles if one != drawing.style])
        reference = in_style(drawing, style, hand.styles[style]["options"], rng, wanted.where)
        rows.append((drawing, reference, caption(drawing, rng)))
        drawn.update((drawing.style, reference.style))

    def finish(number: int, row: tuple) -> dict:
        drawing, reference, words = row
        pictures = [png_of(draw_picture(hand, one.style, one.options, wanted.size)) for one in (drawing, reference)]
        image, other = (
            {"bytes": png, "path": f"{split}/{number:07d}{end}.png"} for png, end in zip(pictures, ("", "-reference"))
        )
        told = {"text": words, "split": split, "combination": drawing.combination, **drawing.attributes}
        pair = {"reference_style": reference.style, "shared": json.dumps(shared(drawing, reference))}
        return {"image": image, "reference": other, "label": styles.index(drawing.style), **told, **pair}

    names = ("text", "split", "combination", *ATTRIBUTES, "reference_style", "shared")
    kinds = {"image": Image(), "reference": Image(), "label": ClassLabel(names=styles)}
    write_rows(path, Features(**kinds, **dict.fromkeys(names, Value("string"))), rows, finish)
