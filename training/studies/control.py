"""Our control adapter beside diffusers' ControlNet of equal size, on a frozen text-to-image base.

    python -m brickwork.training.studies.control runs/scenes/general/pipeline data/scenes-square -o runs/control

Both learn from the same scenes, maps and noise (see `brickwork.training.studies.side_by_side`). Pictures are drawn
from the captions and maps of held-out scenes:

- **Edges**: the harmonic mean of the shares of drawn edges near an asked one and of asked edges near a drawn one
  (within a pixel).
- **Masks**: the intersection over the union of what stands on the ground, drawn and asked.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import ndimage

from brickwork.adapters.control.adapter import ControlAdapter
from brickwork.adapters.modules import ModuleAdapter
from brickwork.eval.judge.flat_ground import differs_from_ground
from brickwork.training.commands.train import run_script
from brickwork.training.studies.scenes_proof import Scenes
from brickwork.training.studies.side_by_side import SHOWN, SideBySide, add_arguments

STEEP = 60.0  # levels of 255 by a pixel, from which a border is an edge


def edges(picture: np.ndarray) -> np.ndarray:
    """Where some channel of a picture, uint8 `(H, W, 3)`, changes fast; bool `(H, W)`."""
    channels = picture.astype(np.float64)
    slopes = [ndimage.sobel(channels, axis=axis, mode="nearest") / 4 for axis in (0, 1)]
    return np.hypot(*slopes).max(axis=-1) > STEEP


def mask(picture: np.ndarray) -> np.ndarray:
    """Where something stands on a picture's ground; bool `(H, W)`."""
    return ndimage.binary_fill_holes(differs_from_ground(picture))


MAPS = {"edges": edges, "mask": mask}


def edges_agree(drawn: np.ndarray, asked: np.ndarray) -> float:
    """The F-measure of two maps of edges, in [0, 1], where a pixel's distance does not count."""
    near = np.ones((3, 3), bool)
    shares = [
        float(ndimage.binary_dilation(other, near)[one].mean()) if one.any() else 0.0
        for one, other in ((drawn, asked), (asked, drawn))
    ]
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def masks_agree(drawn: np.ndarray, asked: np.ndarray) -> float:
    """Intersection over union of two masks, in [0, 1]."""
    union = (drawn | asked).sum()
    return float((drawn & asked).sum() / union) if union else 1.0


AGREEMENT = {"edges": edges_agree, "mask": masks_agree}


class Control(SideBySide):
    """The cells of the study; see `SideBySide`."""

    name, title, none = "control", "Two control adapters of equal size", "no control"
    measures: ClassVar = {"losses": "held-out paired loss", "edges": "edges", "mask": "masks"}
    asked = ("scenes", "map")

    @property
    def ways(self) -> dict[str, Callable[[Any], ModuleAdapter]]:
        return {
            "ControlAdapter": partial(ControlAdapter.create, image_channels=1, variant="composite", middle=True),
            "ControlNet": partial(ControlAdapter.create, image_channels=1, variant="controlnet"),
        }

    def read(self, split: str, count: int) -> dict[str, Any]:
        """Scenes, with `maps (N, 1, H, W)`."""
        scenes, size = Scenes(self.args.scenes, split), (self.args.size,) * 2
        rows = scenes.rows(size, count)
        pictures = scenes.pictures(rows, size)
        maps = torch.from_numpy(np.stack([MAPS[self.args.map](picture) for picture in pictures]))
        return {"pictures": pictures, "captions": scenes.captions(rows), "maps": maps[:, None].float()}

    def given(self, data: Mapping[str, Any], rows: Any) -> dict[str, Any]:
        return {"image": data["maps"][rows]}

    def measure(self, pictures: np.ndarray, data: Mapping[str, Any]) -> dict[str, list[float]]:
        return {
            name: [agree(MAPS[name](one), MAPS[name](own)) for one, own in zip(pictures, data["pictures"])]
            for name, agree in AGREEMENT.items()
        }

    def shown(self, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        maps = (255 * data["maps"][:SHOWN, 0].numpy()).astype(np.uint8)
        return {"scene": data["pictures"][:SHOWN], self.args.map: np.repeat(maps[..., None], 3, axis=-1)}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help="folder of a Stable Diffusion pipeline")
    parser.add_argument("scenes", help="folder of square scenes, `brickwork data build avatars --scenes`")
    parser.add_argument("--map", choices=MAPS, default="edges", help="what the adapters are shown (default: edges)")
    add_arguments(parser)
    parser.set_defaults(run=lambda args: Control(args).run())


main = partial(run_script, "control", __doc__, configure_parser)

if __name__ == "__main__":
    sys.exit(main())
