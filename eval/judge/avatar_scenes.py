"""Scenes of two avatars for judges: named by their styles or another attribute, coloured by their hair."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from brickwork.eval.judge.requirements import COLOURS
from brickwork.eval.judge.scenes import Scene, Shape, arranged, plant

NOTHING = (None, "none", "bald")  # values of an attribute that are the lack of it


class AvatarScenes:
    """Draws scenes of avatars whose hair has a colour that prompts can ask for.

    Args:
        source: pictures of single avatars (`brickwork data build avatars`): a `.parquet` file, or a folder.
        attribute: what names an avatar: its `label`, which is the style, or a column such as `hair`.

    Attributes:
        names: the styles, or the values of the attribute, that some avatar with a colour of hair has.

    Raises:
        ValueError: for pictures without colours of hair, or without the attribute.
    """

    def __init__(self, source: str, attribute: str = "label"):
        from brickwork.eval.sets.reader import open_pictures

        pictures = open_pictures(source)
        if "hair_colour" not in pictures.table.column_names:
            raise ValueError(
                f"`avatars` is {source!r}, which names no hair; build it with `brickwork data build avatars`."
            )
        if attribute not in pictures.table.column_names:
            raise ValueError(f"`names` is {attribute!r}, which {source!r} does not tell; give label, hair or clothes.")
        # Name and ground => colour => pictures.
        self._known: dict[tuple[str, tuple], dict[str, list[np.ndarray]]] = {}
        named = pictures.labels if attribute == "label" else pictures.table[attribute]
        for picture, name, colour in zip(pictures, named, pictures.table["hair_colour"], strict=True):
            if colour in COLOURS and name not in NOTHING:
                of_name = self._known.setdefault((name, _ground(picture.image)), {})
                of_name.setdefault(colour, []).append(picture.image)
        self.names = tuple(sorted({name for name, _ in self._known}))

    def make(self, random: np.random.Generator, names: Sequence[str]) -> Scene:
        """A scene of two avatars of different names out of `names`, both on the same ground."""
        one, other = random.choice(list(names), 2, False).tolist()
        grounds = sorted(self._grounds(one) & self._grounds(other))
        if not grounds:
            raise ValueError(f"`avatars` has no {one} and {other} of three colours on one ground; give more pictures.")
        ground = grounds[random.integers(len(grounds))]
        shapes = [self._avatar(random, name, ground) for name in (one, other)]
        return replace(arranged(random, shapes), ground=ground)

    def plant(self, scene: Scene, error: str, random: np.random.Generator) -> Scene:
        """See `scenes.plant`; for an avatar in another colour, another of its name with such hair is taken."""
        return plant(scene, error, random, self._recoloured)

    def _grounds(self, name: str) -> set[tuple]:
        """Those on which an avatar can be recoloured in a third colour."""
        return {ground for (style, ground), colours in self._known.items() if style == name and len(colours) > 2}

    def _avatar(self, random: np.random.Generator, name: str, ground: tuple, but: Sequence[str] = ()) -> Shape:
        by_colour = self._known[name, ground]
        colour = str(random.choice([colour for colour in sorted(by_colour) if colour not in but]))
        picture = by_colour[colour][random.integers(len(by_colour[colour]))]
        return Shape(name, colour, (0.0, 0.0, 1.0, 1.0), picture)

    def _recoloured(self, shape: Shape, other: Shape, random: np.random.Generator) -> Shape:
        found = self._avatar(random, shape.name, _ground(shape.picture), (shape.colour, other.colour))
        return replace(found, box=shape.box)


def _ground(picture: np.ndarray) -> tuple[int, int, int]:
    return tuple(picture[0, 0].tolist())
