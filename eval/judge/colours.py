"""The colour of an object in a picture, as a name: by its pixels, or by a CLIP as GenEval asks it."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from brickwork.errors import loader_of
from brickwork.eval.judge.detectors import Detection
from brickwork.eval.judge.requirements import COLOURS

# sRGB; grey takes what is no colour, and is never an answer that a prompt asks for.
_SAMPLES = {
    "red": [(215, 35, 35), (160, 20, 30)],
    "orange": [(242, 140, 30), (230, 110, 20)],
    "yellow": [(245, 215, 45), (250, 235, 120)],
    "green": [(50, 165, 70), (25, 100, 45), (130, 200, 90)],
    "blue": [(40, 95, 215), (25, 40, 130), (90, 165, 235)],
    "purple": [(130, 60, 175), (90, 30, 120), (165, 110, 205)],
    "pink": [(245, 150, 190), (235, 90, 160), (250, 195, 210)],
    "brown": [(125, 78, 42), (85, 50, 28), (160, 110, 70)],
    "black": [(18, 18, 20), (45, 45, 48)],
    "white": [(248, 248, 248), (230, 230, 232)],
    "grey": [(128, 128, 128), (180, 180, 182), (85, 85, 88)],
}
_BACKGROUND = (153, 153, 153)  # GenEval's "#999" where a mask leaves out
_DIFFERENT = 12.0  # ΔE of pixels that do not belong to the ground around a box
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class ColourNamer(Protocol):
    """What names colours; `name` is what results call it."""

    name: str

    def __call__(self, picture: np.ndarray, objects: Sequence[Detection], name: str) -> list[str]:
        """The colour of each of the objects called `name` in a picture, uint8 `(H, W, 3)`."""


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB `(…, 3)` in [0, 255] => CIELAB (D65)."""
    linear = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    cube = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(cube, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


class PixelColours:
    """The colour that most pixels of an object are nearest to, in CIELAB.

    Without a mask, pixels of a box like those just around it count as ground and are left out.
    """

    name = "pixels"

    def __init__(self):
        self._names = [name for name, samples in _SAMPLES.items() for _ in samples]
        self._lab = to_lab(np.array([sample for samples in _SAMPLES.values() for sample in samples]))

    def __call__(self, picture: np.ndarray, objects: Sequence[Detection], name: str) -> list[str]:
        return [self._of(picture, found) for found in objects]

    def _of(self, picture: np.ndarray, found: Detection) -> str:
        pixels = to_lab(_pixels_of(picture, found))
        nearest = np.linalg.norm(pixels[:, None] - self._lab[None], axis=-1).argmin(axis=1)
        votes = np.bincount(nearest, minlength=len(self._names))
        totals = {colour: sum(votes[i] for i, one in enumerate(self._names) if one == colour) for colour in _SAMPLES}
        return max(totals, key=totals.get)


def _pixels_of(picture: np.ndarray, found: Detection) -> np.ndarray:
    """The pixels of an object `(N, 3)`, N at least 1."""
    height, width = picture.shape[:2]
    left, top, right, bottom = (round(side) for side in found.box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    right, bottom = max(min(right, width), left + 1), max(min(bottom, height), top + 1)
    box = picture[top:bottom, left:right]
    if found.mask is not None and found.mask[top:bottom, left:right].any():
        return box[found.mask[top:bottom, left:right]]
    around = picture[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2]
    border = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
    far = np.linalg.norm(to_lab(box) - to_lab(np.median(border, axis=0)), axis=-1) > _DIFFERENT
    return box[far] if far.mean() > 0.05 else box.reshape(-1, 3)


class ClipColours:
    """GenEval's way: a CLIP chooses among `COLOURS` for the crop of each object, by the mean of three templates.

    Args:
        source: a CLIP of transformers, a folder or a hub id.
        device: of the network.
    """

    def __init__(self, source: str, device: Any = None):
        from brickwork.eval.extractors.vision_models import load_clip
        from brickwork.eval.sampling.pipelines import to_device

        self.name = f"clip:{source}"
        model, self.processor = load_clip(source)
        self.model = to_device(model, device)

    def __call__(self, picture: np.ndarray, objects: Sequence[Detection], name: str) -> list[str]:
        import torch

        if not objects:
            return []
        spelled = [[t.format(colour=colour, name=name) for t in TEMPLATES] for colour in COLOURS]
        texts = _unit(torch.stack([self.embed_texts(spellings).mean(dim=0) for spellings in spelled]))
        best = (self.embed_pictures([_crop(picture, found) for found in objects]) @ texts.T).argmax(dim=1)
        return [COLOURS[index] for index in best.tolist()]

    def embed_texts(self, texts: Sequence[str]):
        """Texts => directions `(N, D)` of length one."""
        import torch

        inputs = self.processor.tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            return _unit(self.model.get_text_features(**inputs.to(self.model.device)))

    def embed_pictures(self, pictures: Sequence):
        """Pictures => directions `(N, D)` of length one."""
        import torch

        inputs = self.processor.image_processor(pictures, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            return _unit(self.model.get_image_features(**inputs))


def _crop(picture: np.ndarray, found: Detection) -> Image.Image:
    if found.mask is not None:
        picture = np.where(found.mask[..., None], picture, np.array(_BACKGROUND, dtype=np.uint8))
    left, top, right, bottom = found.box
    return Image.fromarray(picture).crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True)


class HairColours:
    """The colour of avatars' hair, named by the judge of attributes that ships."""

    name = "avatar-attributes"

    def __init__(self):
        from brickwork.eval.extractors.attributes import load_judge

        self.judge = load_judge()

    def __call__(self, picture: np.ndarray, objects: Sequence[Detection], name: str) -> list[str]:
        from brickwork.eval.judge.crops import name_boxes

        return [one["hair_colour"] for one in name_boxes(self.judge, picture, [found.box for found in objects])]


def load_colours(name: str, device: Any = None) -> ColourNamer:
    """`"pixels"`, `"avatar-attributes"`, or `"clip:<folder or hub id>"`."""
    known = {"pixels": PixelColours, "avatar-attributes": HairColours, "clip:": ClipColours}
    load = loader_of("colours", name, known)
    return load(device) if ":" in name else load()
