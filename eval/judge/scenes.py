"""Scenes of coloured shapes, or of avatars with coloured hair, with captions and boxes, and the same with a planted
error: ground truth for judges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw

from brickwork.eval.judge.requirements import Clause, Requirements

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (215, 40, 40), "orange": (242, 140, 30), "yellow": (245, 215, 45), "green": (50, 165, 70),
    "blue": (45, 95, 215), "purple": (130, 60, 175), "pink": (245, 150, 190), "brown": (125, 78, 42),
}  # fmt: skip
GROUNDS = ((240, 240, 236), (200, 208, 214), (60, 64, 70))
ERRORS = ("dropped", "moved", "recoloured", "doubled")
_SUPERSAMPLED = 4


@dataclass(frozen=True)
class Shape:
    """One shape: `box` is `(left, top, right, bottom)` from 0 to 1; a `picture` on the scene's ground in its place."""

    name: str
    colour: str
    box: tuple[float, float, float, float]
    picture: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Scene:
    """Shapes that do not overlap on a flat ground.

    Attributes:
        shapes: from the back to the front.
        asked: what the caption asks for.
        ground: its colour.
    """

    shapes: tuple[Shape, ...]
    asked: Requirements
    ground: tuple[int, int, int] = field(default=GROUNDS[0])

    def draw(self, size: int = 64) -> np.ndarray:
        """The picture, uint8 `(size, size, 3)`, with smooth edges."""
        large = size * _SUPERSAMPLED
        image = Image.new("RGB", (large, large), self.ground)
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            left, top, right, bottom = (round(side * large) for side in shape.box)
            colour = COLOURS.get(shape.colour)
            if shape.picture is not None:
                pasted = Image.fromarray(shape.picture).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
                image.paste(pasted, (left, top))
            elif shape.name == "circle":
                pen.ellipse((left, top, right - 1, bottom - 1), colour)
            elif shape.name == "square":
                pen.rectangle((left, top, right - 1, bottom - 1), colour)
            else:
                pen.polygon([((left + right) // 2, top), (left, bottom - 1), (right - 1, bottom - 1)], colour)
        return np.array(image.resize((size, size), Image.Resampling.BOX))


def make_scene(random: np.random.Generator, shapes=SHAPES) -> Scene:
    """Two of these shapes, of different names and colours, one beside or above the other, as the caption says."""
    names, coloured = (random.choice(list(kinds), 2, False).tolist() for kinds in (shapes, COLOURS))
    scene = arranged(random, [Shape(name, colour, (0, 0, 1, 1)) for name, colour in zip(names, coloured)])
    return replace(scene, ground=GROUNDS[random.integers(len(GROUNDS))])


def arranged(random: np.random.Generator, shapes: Sequence[Shape]) -> Scene:
    """Two shapes of different names, one of them beside or above the other, as the caption says."""
    one, other = shapes
    relation = str(random.choice(["left of", "right of", "above", "below"]))
    near, far = random.uniform(0.04, 0.16, 2)
    sizes = random.uniform(0.24, 0.36, 2)
    across = random.uniform(0.28, 0.6 - sizes / 2)
    along = np.array([near, 1 - far - sizes[1]])
    if relation in ("right of", "below"):
        along = np.array([1 - far - sizes[0], near])
    horizontal = relation in ("left of", "right of")
    lefts, tops = (along, across) if horizontal else (across, along)
    drawn = tuple(
        replace(shape, box=(left, top, left + size, top + size))
        for shape, left, top, size in zip(shapes, lefts.tolist(), tops.tolist(), sizes.tolist())
    )
    prompt = f"one {one.colour} {one.name} {relation} one {other.colour} {other.name}"
    include = Clause(other.name, 1, other.colour), Clause(one.name, 1, one.colour, (relation, 0))
    return Scene(drawn, Requirements(prompt, include, (Clause(other.name, 2), Clause(one.name, 2))))


def _other_colour(shape: Shape, other: Shape, random: np.random.Generator) -> Shape:
    others = [colour for colour in COLOURS if colour not in (shape.colour, other.colour)]
    return replace(shape, colour=str(random.choice(others)))


def plant(
    scene: Scene, error: str, random: np.random.Generator,
    recolour: Callable[[Shape, Shape, np.random.Generator], Shape] = _other_colour,
) -> Scene:  # fmt: skip
    """The same scene, and the same caption, with one of `ERRORS` in one of its shapes.

    Args:
        scene: two shapes.
        error: one of `ERRORS`.
        random: draws which shape, and how.
        recolour: a shape, and the one beside it => the shape in a third colour.
    """
    index = int(random.integers(2))
    shape, other = scene.shapes[index], scene.shapes[1 - index]
    if error == "dropped":
        shapes = [other]
    elif error == "recoloured":
        shapes = [recolour(shape, other, random), other]
    elif error == "moved":  # both exchange sides
        shapes = [replace(shape, box=_moved(shape.box, other.box)), replace(other, box=_moved(other.box, shape.box))]
    else:
        shapes = [shape, other, replace(shape, box=_free_box(scene, random))]
    return replace(scene, shapes=tuple(shapes))


def _moved(box: tuple, target: tuple) -> tuple:
    """A box of its own size around the middle of another, within the picture."""
    size = box[2] - box[0]
    left, top = (min(max((target[i] + target[i + 2] - size) / 2, 0.02), 0.98 - size) for i in (0, 1))
    return left, top, left + size, top + size


def _free_box(scene: Scene, random: np.random.Generator) -> tuple:
    """A box that touches none of a scene's."""
    for _ in range(1000):
        size = float(random.uniform(0.2, 0.26))
        left, top = random.uniform(0.02, 0.98 - size, 2).tolist()
        box = left, top, left + size, top + size
        if not any(_touch(box, shape.box) for shape in scene.shapes):
            return box
    raise ValueError("`scene` has no room for a further shape; make its shapes smaller.")


def _touch(a: tuple, b: tuple, gap: float = 0.03) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap
