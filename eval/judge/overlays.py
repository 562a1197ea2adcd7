"""What was found in a picture, drawn over it: frames with names, and masks as tints."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from brickwork.eval.judge.detectors import Detection
from brickwork.eval.judge.region_head import surest_boxes

FRAME, SIDE, TINTED = "#b3431f", 256, 0.55
TINTS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (120, 120, 120), (148, 103, 189), (140, 86, 75), (23, 190, 207), (188, 189, 34),
)  # fmt: skip


def overlay(
    picture: np.ndarray, found: Mapping[str, Sequence[Detection]], scores: bool = True, tints: Sequence[str] = ()
) -> Image.Image:
    """A picture, enlarged where it is small, with a named frame around each object.

    Args:
        picture: uint8 `(H, W, 3)`.
        found: objects by name, boxes in pixels.
        scores: whether they stand beside names.
        tints: names whose masks are tinted, each in a colour of its place here.
    """
    pixels = picture.astype(np.float32)
    for name, objects in found.items():
        for one in objects:
            if name in tints and one.mask is not None:
                tint = np.array(TINTS[list(tints).index(name) % len(TINTS)], dtype=np.float32)
                pixels[one.mask] = (1 - TINTED) * pixels[one.mask] + TINTED * tint
    image = Image.fromarray(pixels.round().astype(np.uint8))
    scale = max(1, SIDE // max(image.size))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for name, objects in found.items():
        for one in objects:
            left, top, right, bottom = (side * scale for side in one.box)
            pen.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=FRAME)
            told = f"{name} {one.score:.2f}" if scores else name
            pen.text((left + 2, top), told, fill=FRAME, font=font)
    return image


def surest(found: Mapping[str, Sequence[Detection]], least: float) -> dict[str, list[Detection]]:
    """Objects by the name that they have most surely: of boxes that lie over each other, whatever their names, one."""
    every = [(one, name) for name, objects in found.items() for one in objects]
    boxes = torch.tensor([one.box for one, _ in every], dtype=torch.float32).view(-1, 4)
    scores = torch.tensor([one.score for one, _ in every])
    kept = [every[number] for number in surest_boxes(boxes, scores, least)]
    return {name: [one for one, said in kept if said == name] for name in dict.fromkeys(said for _, said in kept)}
