"""A label factory: masks and boxes of what a denoiser draws, out of the features that it draws with.

The up-head of FFNet (arXiv 2206.08236, `gen.necks.ffnet_up`) puts the maps of several sites together, and a 1×1
convolution says of every pixel which class it shows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from brickwork.eval.judge.denoiser_features import Standardized
from brickwork.eval.judge.detectors import Detection
from brickwork.eval.judge.flat_ground import SMALLEST, regions
from brickwork.gen.blocks.stages import StageSpec
from brickwork.gen.necks.ffnet_up import FFNetUpNeck


class LabelHead(ModelMixin, ConfigMixin):
    """Classes of pixels from a denoiser's feature maps.

    Args:
        channels: of the maps, in the order of `DenoiserFeatures`, the finest first.
        names: of the classes; what belongs to none is the ground.
        size: of the masks, in pixels.
        width: unit of the up-head's channels.
        variant: of the up-head, `"A"`, `"B"` or `"C"`.
        pipeline: whose features it reads, for whoever loads the head.
        features: how (`DenoiserFeatures.to_dict`), likewise.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int],
        names: Sequence[str],
        size: int,
        width: int = 32,
        variant: str = "B",
        pipeline: str | None = None,
        features: dict | None = None,
    ):
        super().__init__()
        self.standardized = Standardized(channels)
        stages = [StageSpec("basic", count) for count in channels]
        self.neck = FFNetUpNeck(stages, 0, variant=variant, width=width)
        self.neck.fuse = nn.Conv2d(self.neck.fuse.in_channels, len(names) + 1, 1)  # the classifier in its place

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps `(B, C, h, w)` of each site => logits `(B, 1 + names, size, size)`, the ground's first."""
        logits = self.neck.fuse(self.neck.gather(self.standardized(maps)))
        return F.interpolate(logits, (self.config.size, self.config.size), mode="bilinear")

    @torch.no_grad()
    def labels(self, maps: Sequence[torch.Tensor]) -> list[dict[str, list[Detection]]]:
        """Objects by name in each picture: connected pixels of one class, with box, mask and mean probability."""
        found = []
        for shares in self(maps).softmax(dim=1).cpu():
            classes, objects = shares.argmax(dim=0), {}
            for number, name in enumerate(self.config.names, 1):
                for mask in regions((classes == number).numpy()):
                    if mask.sum() >= SMALLEST:
                        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
                        box = tuple(map(float, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))
                        score = float(shares[number][torch.from_numpy(mask)].mean())
                        objects.setdefault(name, []).append(Detection(box, score, mask))
            found.append(objects)
        return found


def soft_overlap(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """One less the intersection over union of probabilities, the mean over classes that occur: all count alike.

    Args:
        logits: `(B, C, H, W)`.
        classes: `(B, H, W)`.
    """
    shares, wanted = logits.softmax(dim=1), F.one_hot(classes, logits.shape[1]).movedim(-1, 1).to(logits)
    shared, total = (one.sum(dim=(0, 2, 3)) for one in (shares * wanted, shares + wanted - shares * wanted))
    occurs = wanted.amax(dim=(0, 2, 3)) > 0
    return 1 - (shared / total)[occurs].mean()


def mean_overlap(found: torch.Tensor, wanted: torch.Tensor, classes: int) -> float:
    """Mean intersection over union of the classes, ground among them, that occur in either.

    Args:
        found, wanted: class numbers `(B, H, W)`, 0 for the ground.
        classes: how many there are, without the ground.
    """
    table = torch.bincount((wanted * (classes + 1) + found).flatten(), minlength=(classes + 1) ** 2)
    table = table.view(classes + 1, classes + 1).double()
    shared, total = table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal()
    return float((shared[total > 0] / total[total > 0]).mean())
