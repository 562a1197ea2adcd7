"""Scenes: one to five avatars on one ground, in pictures of several shapes, with the exact box of each.

A scene is laid out in shares of the picture: a larger picture shows the same scene in more pixels.
"""

import contextlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from brickwork.training.data.build.attributes import Drawing, table
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
from brickwork.training.data.build.captions import phrase, scene_caption

ASPECTS = (1 / 2, 2 / 3, 3 / 4, 1, 1, 4 / 3, 3 / 2, 2)  # width over height
MULTIPLE = 8  # of both sides in pixels
MOST = 5  # avatars
FILLED = (0.7, 1.0)  # share of its cell's shorter side that an avatar takes


@dataclass
class Placed:
    """A drawing in a scene: `square` is left, top and side of where it is drawn, in pixels."""

    drawing: Drawing
    words: str
    square: tuple[int, int, int]


@dataclass
class Scene:
    """One picture to be, in pixels; avatars from left to right on a ground of the palette."""

    width: int
    height: int
    ground: str
    avatars: list[Placed]
    caption: str


def picture_sides(size: int, aspect: float) -> tuple[int, int]:
    """Width and height of about `size`² pixels, each a multiple of `MULTIPLE`."""
    width, height = size * aspect**0.5, size / aspect**0.5
    return tuple(max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE) for side in (width, height))


def place(count: int, aspect: float, rng: random.Random) -> list[tuple[float, float, float]]:
    """Squares that do not overlap, as left, top and side in a picture of area one, from left to right.

    Each lies in a cell of its own of the grid with the largest cells.
    """
    width, height = aspect**0.5, aspect**-0.5
    grids = [(columns, -(-count // columns)) for columns in range(1, count + 1)]
    columns, rows = max(grids, key=lambda grid: min(width / grid[0], height / grid[1]))
    squares = []
    for cell in rng.sample(range(columns * rows), count):
        side = rng.uniform(*FILLED) * min(width / columns, height / rows)
        left = (cell % columns) * width / columns + rng.random() * (width / columns - side)
        top = (cell // columns) * height / rows + rng.random() * (height / rows - side)
        squares.append((left, top, side))
    return sorted(squares)


def to_pixels(square: tuple[float, float, float], aspect: float, width: int, height: int) -> tuple[int, int, int]:
    """A square of `place` in a picture of about that aspect."""
    across, down = width / aspect**0.5, height * aspect**0.5
    left, top, side = square
    return int(left * across), int(top * down), int(side * min(across, down))


def compose(number: int, draws: Draws, wanted: Wanted, aspects: Sequence[float] = ASPECTS) -> Scene:
    """The scene of a number: how many avatars, which, and where, in one of the shapes."""
    rng = random.Random(f"{wanted.seed} scene {draws.split} {number}")
    aspect = rng.choice(aspects)
    width, height = picture_sides(wanted.size, aspect)
    ground = rng.choice(wanted.where.get("ground") or list(table()["palettes"]["ground"]))
    avatars = []
    for square in place(rng.randint(1, MOST), aspect, rng):
        drawing, words = _drawn(draws, wanted.styles, rng.choice(wanted.styles), {"ground": [ground]})
        drawing.options = _without_ground(drawing.options, draws.described[drawing.style], rng)
        avatars.append(Placed(drawing, phrase(drawing, words), to_pixels(square, aspect, width, height)))
    return Scene(width, height, ground, avatars, scene_caption([one.words for one in avatars], ground, rng))


def _drawn(draws: Draws, styles: list[str], first: str, where: dict[str, list[str]]) -> tuple[Drawing, random.Random]:
    """A drawing in the first style, or in another where that has no combination for the split on this ground."""
    for style in [first, *(style for style in styles if style != first)]:
        with contextlib.suppress(ValueError):
            return draws(style, where)
    return draws(first, where)


def _without_ground(options: dict, described: dict, rng: random.Random) -> dict:
    """The options of a drawing on nothing; a style that is nothing but a face on its ground gets a round one."""
    options = {name: value for name, value in options.items() if name != "backgroundColor"}
    faces = described["options"].get("backgroundColor", {}).get("initial") or []
    return options | {"backgroundColor": [rng.choice(faces)], "radius": 50} if len(faces) > 1 else options


def paint(scene: Scene, hand) -> tuple[bytes, list[dict]]:
    """The picture as a PNG, and of every avatar its box, style, words and attributes.

    A box is left, top, right and bottom in shares of the picture, around the pixels that the avatar covers.
    """
    page = PIL.Image.new("RGB", (scene.width, scene.height), f"#{table()['palettes']['ground'][scene.ground]}")
    boxes = []
    for one in scene.avatars:
        left, top, side = one.square
        drawn = draw_picture(hand, one.drawing.style, one.drawing.options, side)
        page.paste(drawn, (left, top), drawn)
        covered = drawn.getbbox(alpha_only=True) or (0, 0, side, side)
        corners = [covered[0] + left, covered[1] + top, covered[2] + left, covered[3] + top]
        shares = [round(edge / length, 5) for edge, length in zip(corners, (scene.width, scene.height) * 2)]
        boxes.append({"box": shares, "label": one.drawing.style, "text": one.words, **one.drawing.attributes})
    return png_of(page), boxes


def build_scenes(
    output: str | Path,
    *,
    aspects: Sequence[float] | None = None,
    packages: str | Path | None = None,
    overwrite: bool = False,
    **asked: Any,
) -> Path:
    """Builds scenes in the folder `output` and returns that; the same bytes for the same arguments and versions.

    The columns are `image`, `text`, `split`, `count` (of avatars), `ground` and `boxes`, a JSON list of dictionaries
    with `box`, `label` (the style), `text` and the attributes of each avatar, from left to right. The held-out files
    are as those of single avatars: of combinations that no avatar of the training pictures has, and of other seeds.

    Args:
        aspects: width over height, from 1:2 to 2:1, of which each picture takes one; None for eight shapes.
        packages, overwrite: see `open_set`.
        asked: see `Wanted`; `size` is the root of the area of a picture in pixels.

    Raises `ValueError` for what `Wanted` and `open_set` refuse.
    """
    wanted = Wanted(**asked)
    shapes = ASPECTS if aspects is None else tuple(aspects)
    for aspect in shapes:
        if not 1 / 2 <= aspect <= 2:
            raise ValueError(f"aspects holds {aspect}; give width over height, from 0.5 to 2.")
    if not shapes:
        raise ValueError("aspects is empty; give width over height, from 0.5 to 2.")
    told = [
        f"Made by `{MAKER} --scenes`: {wanted.count} pictures of one to {MOST} avatars, and {wanted.held_out} in each "
        f"held-out file; about {wanted.size}² pixels, from 1:2 to 2:1, seed {wanted.seed}; DiceBear 9.4.3.",
    ]
    with open_set(output, wanted, packages, overwrite, "Scenes of avatars", told) as (folder, hand, drawn):
        # Laid out before the first is painted, the small files first: what cannot be drawn is said at once.
        draws = {split: Draws(split, wanted, hand.styles) for split in SPLITS}
        laid_out = {
            split: [compose(number, draws[split], wanted, shapes) for number in range(wanted.rows(split))]
            for split in reversed(SPLITS)
        }
        for split, name in SPLITS.items():
            drawn.update(one.drawing.style for scene in laid_out[split] for one in scene.avatars)
            _write(folder / name, split, laid_out[split], hand)
    return Path(output)


def _write(path: Path, split: str, scenes: list[Scene], hand) -> None:
    from datasets import Features, Image, Value

    def finish(number: int, scene: Scene) -> dict:
        png, boxes = paint(scene, hand)
        told = {"text": scene.caption, "split": split, "count": len(boxes), "ground": scene.ground}
        return {"image": {"bytes": png, "path": f"{split}/{number:07d}.png"}, **told, "boxes": json.dumps(boxes)}

    text = Value("string")
    features = Features(image=Image(), text=text, split=text, count=Value("int64"), ground=text, boxes=text)
    write_rows(path, features, scenes, finish)
