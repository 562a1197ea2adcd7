"""Augmentation that does not leak into samples: the network is told what was done (Karras et al., 2206.00364, F.2).

A picture is turned, shifted and stretched as a vector of labels says, which the network reads beside it. Without the
vector, which is how samples are drawn, it means pictures to which nothing was done. Zeros mean the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

OCTAVES = 0.2  # standard deviation of scale and stretch
SHIFT = 0.125  # of the sides: standard deviation of `shift`, farthest of `pixel_shift`
ROTATED_STRETCH = 0.5  # how often a stretch is along an axis that is not the picture's


def _moved(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def _scaled(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def _turned(angle: float) -> np.ndarray:
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])


def _draw_rotate(random: np.random.Generator) -> list[float]:
    angle = random.uniform(-np.pi, np.pi)
    return [np.cos(angle) - 1, np.sin(angle)]


def _draw_stretch(random: np.random.Generator) -> list[float]:
    # The authors' label has the angle itself, under which a stretch and its inverse, half a turn on, look the same.
    strength, angle, rotated = random.normal(), random.uniform(-np.pi, np.pi), random.random() < ROTATED_STRETCH
    return [strength * np.cos(2 * angle), strength * np.sin(2 * angle)] if rotated else [strength, 0.0]


def _quarters(labels: Sequence[float]) -> int:
    return {(0, 0): 0, (1, 0): 1, (1, 1): 2, (0, 1): 3}[labels[0], labels[1]]


def _pixel_shift(image: np.ndarray, labels: Sequence[float]) -> np.ndarray:
    """Moved by whole pixels, to the right and up; what comes in is mirrored at the border."""
    height, width = image.shape[1:]
    right, up = round(labels[0] * SHIFT * width), round(labels[1] * SHIFT * height)

    def mirrored(positions: np.ndarray, length: int) -> np.ndarray:
        return length - 1 - abs(length - 1 - positions % max(1, 2 * length - 2))

    rows, columns = mirrored(np.arange(height) + up, height), mirrored(np.arange(width) - right, width)
    return image[:, rows[:, None], columns]


def _undo_rotate(labels: Sequence[float], height: int, width: int) -> np.ndarray:
    return _turned(np.arctan2(labels[1], labels[0] + 1))


def _undo_stretch(labels: Sequence[float], height: int, width: int) -> np.ndarray:
    angle, by = np.arctan2(labels[1], labels[0]) / 2, 2 ** (OCTAVES * np.hypot(*labels))
    return _turned(-angle) @ _scaled(1 / by, by) @ _turned(angle)


class Kind(NamedTuple):
    """One thing that is done to pictures.

    Attributes:
        width: numbers of its label, zero where nothing is done.
        draw: random numbers => a label.
        blit: picture `(3, H, W)`, label => picture, without resampling; `None` for those below.
        undo: label, H, W => where in the picture a point of the result comes from, about the centre.
        always: whether every picture is drawn for, rather than the share of `probability`.
    """

    width: int
    draw: Callable[[np.random.Generator], Sequence[float]]
    blit: Callable[[np.ndarray, Sequence[float]], np.ndarray] | None = None
    undo: Callable[[Sequence[float], int, int], np.ndarray] | None = None
    always: bool = False


# In the order in which they are done; the two flips, scale, rotate, stretch and shift are what the authors train with.
KINDS = {
    "x_flip": Kind(1, lambda r: [r.integers(2)], lambda image, w: image[..., ::-1] if w[0] else image, always=True),
    "y_flip": Kind(1, lambda r: [r.integers(2)], lambda image, w: image[:, ::-1] if w[0] else image),
    "quarter_turn": Kind(
        2,
        lambda r: [(0, 0), (1, 0), (1, 1), (0, 1)][r.integers(4)],
        lambda image, w: np.rot90(image, _quarters(w), axes=(1, 2)),
    ),
    "pixel_shift": Kind(2, lambda r: r.uniform(-1, 1, 2), _pixel_shift),
    "scale": Kind(1, lambda r: [r.normal()], undo=lambda w, *_: _scaled(*[2 ** (-OCTAVES * w[0])] * 2)),
    "rotate": Kind(2, _draw_rotate, undo=_undo_rotate),
    "stretch": Kind(2, _draw_stretch, undo=_undo_stretch),
    "shift": Kind(
        2, lambda r: r.normal(size=2), undo=lambda w, h, width: _moved(-w[0] * SHIFT * width, -w[1] * SHIFT * h)
    ),
}  # fmt: skip


def label_width(names: Sequence[str]) -> int:
    """Numbers in the label of an augmentation of these kinds; what a network has as `augment_dim`."""
    return sum(KINDS[name].width for name in names)


@dataclass(frozen=True)
class Augmentation:
    """What is done to the pictures of a run, and how often.

    Attributes:
        probability: of each kind by itself, but mirroring left to right, which half of the pictures are.
        names: of `KINDS`.
    """

    probability: float
    names: Sequence[str]

    @property
    def kinds(self) -> list[Kind]:
        return [kind for name, kind in KINDS.items() if name in self.names]

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Labels, float32 `(label_width(names),)`."""
        drawn: list[float] = []
        for kind in self.kinds:
            label, done = kind.draw(random), kind.always or random.random() < self.probability
            drawn += list(label) if done else [0.0] * kind.width
        return np.array(drawn, dtype=np.float32)

    def apply(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The picture, float32 `(3, H, W)` in [-1, 1], as labels say; bit for bit the same where they are zero."""
        height, width = image.shape[1:]
        back, start = np.eye(3), 0
        for kind in self.kinds:
            label = labels[start : start + kind.width].tolist()
            start += kind.width
            if not any(label):
                continue
            if kind.blit is not None:
                image = kind.blit(image, label)
            else:
                back = back @ kind.undo(label, height, width)
        return np.ascontiguousarray(image if np.array_equal(back, np.eye(3)) else resample(image, back))


def resample(image: np.ndarray, back: np.ndarray) -> np.ndarray:
    """A picture seen through an affine map.

    Cubic, at twice the resolution, of which each pixel is the mean of four (the authors filter with a wavelet); beyond
    its borders the picture is mirrored.

    Args:
        image: float32 `(3, H, W)` in [-1, 1].
        back: `(3, 3)`, from where in the result to where in the picture, x before y, in pixels from the centre.
    """
    sides = np.array(image.shape[:0:-1])  # width, height
    x, y = [(np.arange(2 * side) + 0.5) / 2 - side / 2 for side in sides]
    points = np.stack([*np.meshgrid(x, y), np.ones((len(y), len(x)))], axis=-1) @ back.T
    grid = torch.from_numpy(points[..., :2] / (np.maximum(sides - 1, 1) / 2)).float()
    picture = torch.from_numpy(np.ascontiguousarray(image))[None]
    seen = torch.nn.functional.grid_sample(
        picture, grid[None], mode="bicubic", padding_mode="reflection", align_corners=True
    )
    return torch.nn.functional.avg_pool2d(seen, 2)[0].clamp(-1, 1).numpy()
