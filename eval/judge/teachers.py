"""Frozen image-text teachers of the region head: pictures and names as directions in one space."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from brickwork.errors import advice, loader_of


class Teacher(Protocol):
    """What embeds pictures and names.

    Attributes:
        name: what a head notes of it.
        names: those that it knows; `None` for any.
        scales: of the crops of an object that it looks at, in sides of its box (ViLD's are 1 and 1.5).
    """

    name: str
    names: Sequence[str] | None
    scales: tuple[float, ...]

    def texts(self, names: Sequence[str]) -> torch.Tensor:
        """Names => directions `(C, D)` of length one."""

    def pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures uint8 `(N, 3, H, W)` => directions `(N, D)` of length one."""


class ShapeTeacher:
    """Outlines: where an 8 × 8 picture differs from its border. A name is drawn and looked at in the same way."""

    name, names, side = "shapes", ("circle", "square", "triangle"), 8
    scales = (1.5,)  # a border has to be seen

    def texts(self, names: Sequence[str]) -> torch.Tensor:
        from brickwork.eval.judge.grammar import read_caption
        from brickwork.eval.judge.scenes import Scene, Shape

        drawn = []
        for name in names:
            _check_known(name, self)
            scene = Scene((Shape(name, "blue", (1 / 6, 1 / 6, 5 / 6, 5 / 6)),), read_caption(f"a {name}"))
            drawn.append(torch.from_numpy(scene.draw(32)).permute(2, 0, 1))
        return self.pictures(torch.stack(drawn))

    def pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        pixels = pictures.float()
        border = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], dim=-1)
        far = (pixels - border.median(dim=-1).values[..., None, None]).abs().amax(dim=1, keepdim=True)
        outline = F.adaptive_avg_pool2d((far > 24).float(), self.side).flatten(1) - 0.5
        return F.normalize(outline, dim=1)


class AttributeTeacher:
    """The judge of avatars that ships: its features, and for a value of an attribute the direction that names it.

    Values that several attributes have, such as colours, name nothing.
    """

    name, scales = "avatar-attributes", (1.0, 1.5)

    def __init__(self):
        from brickwork.eval.extractors.attributes import load_judge

        self.judge = load_judge()
        self._directions = {}
        count = Counter(value for values in self.judge.attributes.values() for value in values)
        for name, values in self.judge.attributes.items():
            weight = self.judge.heads[name].weight.detach()
            directions = F.normalize(weight - weight.mean(dim=0), dim=1)
            self._directions |= {value: one for value, one in zip(values, directions) if count[value] == 1}
        self.names = tuple(self._directions)

    def texts(self, names: Sequence[str]) -> torch.Tensor:
        for name in names:
            _check_known(name, self)
        return torch.stack([self._directions[name] for name in names])

    @torch.no_grad()
    def pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.judge.logits(pictures)["features"], dim=1).cpu()


class ClipTeacher:
    """A CLIP of transformers.

    Args:
        source: a folder or a hub id.
        device: of the network.
    """

    names, scales = None, (1.0, 1.5)

    def __init__(self, source: str, device: Any = None):
        from brickwork.eval.judge.colours import ClipColours

        self.name = f"clip:{source}"
        self.clip = ClipColours(source, device)

    def texts(self, names: Sequence[str]) -> torch.Tensor:
        return self.clip.embed_texts([f"a photo of a {name}" for name in names]).cpu()

    def pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.clip.embed_pictures(list(pictures.permute(0, 2, 3, 1).numpy())).cpu()


def _check_known(name: str, teacher: Teacher) -> None:
    if name not in teacher.names:
        raise ValueError(f"`names` has {name!r}, which {teacher.name} does not know; {advice(name, teacher.names)}")


def load_teacher(name: str, device: Any = None) -> Teacher:
    """A teacher by name: `shapes`, `avatar-attributes` or `clip:<folder or hub id>`."""
    teachers = {"shapes": ShapeTeacher, "avatar-attributes": AttributeTeacher, "clip:": ClipTeacher}
    load = loader_of("teacher", name, teachers)
    return load(device) if ":" in name else load()


def embed_regions(teacher: Teacher, picture: torch.Tensor, boxes: torch.Tensor, side: int = 64) -> torch.Tensor:
    """ViLD's target of regions of a picture: the mean of the teacher's directions of their crops at its scales.

    Crops are squares around the boxes, which keeps their objects' shapes; beyond the picture its border goes on.

    Args:
        teacher: see there.
        picture: uint8 `(3, H, W)`.
        boxes: `(N, 4)` from 0 to 1.
        side: that crops are brought to, in pixels.

    Returns:
        `(N, D)`, of length one.
    """
    height, width = picture.shape[-2:]
    total = 0
    padded = F.pad(picture[None].float(), (width, width, height, height), mode="replicate")
    for scale in teacher.scales:
        sides = (boxes[:, 2:] - boxes[:, :2]) * torch.tensor([width, height])
        half = sides.amax(dim=1, keepdim=True) / 2 * scale
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2 * torch.tensor([width, height])
        corners = torch.cat([middle - half, middle + half], dim=1) + torch.tensor([width, height] * 2)
        crops = []
        for left, top, right, bottom in corners.round().int().clamp_min(0).tolist():
            crop = padded[..., top : max(bottom, top + 1), left : max(right, left + 1)]
            crops.append(F.interpolate(crop, (side, side), mode="bilinear", antialias=True)[0])
        total = total + teacher.pictures(torch.stack(crops).round().clamp(0, 255).to(torch.uint8))
    return F.normalize(total, dim=1)


def to_square(picture: np.ndarray, side: int) -> torch.Tensor:
    """A picture uint8 `(H, W, 3)` => `(3, side, side)`, stretched, so that boxes from 0 to 1 stay where they are."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if pixels.shape[-2:] == (side, side):
        return pixels
    resized = F.interpolate(pixels[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)
