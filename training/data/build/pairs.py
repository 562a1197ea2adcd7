"""Pairs: the same avatar in two styles, one drawing as the reference of the other."""

import random
from pathlib import Path
from typing import Any

from brickwork.training.data.build.attributes import Drawing, draw, values_of
from brickwork.training.data.build.avatar_files import MAKER, SPLITS, Wanted, open_set, write_avatars


def in_style(drawing: Drawing, style: str, described: dict, rng: random.Random, where: dict) -> Drawing:
    """The same avatar in another style: every value that the style has, others as they fall.

    Args:
        described, rng, where: see `draw`; the drawing's values come before those of `where`.
    """
    has = {name: [value] for name, value in drawing.attributes.items() if value in values_of(style, name)}
    return draw(style, described, rng, {**where, **has})


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

        def other(drawing: Drawing, rng: random.Random) -> Drawing:
            style = rng.choice([one for one in wanted.styles if one != drawing.style])
            return in_style(drawing, style, hand.styles[style]["options"], rng, wanted.where)

        for split, name in SPLITS.items():
            write_avatars(folder / name, split, wanted, hand, drawn, reference=other)
    return Path(output)
