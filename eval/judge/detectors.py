"""Detectors: from pictures and the names of objects to boxes with scores, behind one small protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from brickwork.errors import loader_of
from brickwork.gen.registry import Registry

# Of one picture: detections by name, in any order.
Found = Mapping[str, Sequence["Detection"]]


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        box: `(left, top, right, bottom)` in pixels.
        score: confidence, from 0 to 1.
        mask: bool `(H, W)` of the picture, where the detector has one.
    """

    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


class Detector(Protocol):
    """What finds objects.

    Attributes:
        name: what results call it, with its weights.
        names: the objects that it knows; `None` for any.
    """

    name: str
    names: Sequence[str] | None

    def __call__(self, pictures: Sequence[np.ndarray], names: Sequence[Sequence[str]]) -> list[Found]:
        """What is in each picture, uint8 `(H, W, 3)`, of the names that are asked for in it."""


DETECTORS = Registry("detector")  # loaders; one that takes a source, and what `load_detector` does, as `NAME:`
register_detector = DETECTORS.register


def load_detector(name: str, device: Any = None, **options: str) -> Detector:
    """A detector by name, such as `"shapes"` or `"owlv2:google/owlv2-base-patch16-ensemble"`.

    Args:
        name: of a registered detector, and behind a colon its source.
        device: of its network.
        options: of the hub, `revision`, `variant` and `token`; one without a source needs none.

    Raises:
        ValueError: for an unknown name, or one without its source.
    """
    load = loader_of("detector", name, DETECTORS.classes)
    return load(device=device, **options) if ":" in name else load()


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes whose corners are pixels of them, as GenEval counts."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    total = area(*a) + area(*b) - shared
    return shared / total if total else 0.0


def kept(
    detections: Sequence[Detection], threshold: float, max_objects: int = 16, max_overlap: float = 1.0
) -> list[Detection]:
    """Detections above a score, the surest first and at most so many, none over another by `max_overlap` or more."""
    sure = sorted((one for one in detections if one.score > threshold), key=lambda one: -one.score)[:max_objects]
    found: list[Detection] = []
    for one in sure:
        if max_overlap == 1 or all(overlap(one.box, other.box) < max_overlap for other in found):
            found.append(one)
    return found
