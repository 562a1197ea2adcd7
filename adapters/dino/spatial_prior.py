"""What a vision transformer's patches blur, seen by convolutions: the spatial-prior branch of Dino U-Net's adapter.

Papers: Chen et al., "Vision Transformer Adapter" (arXiv 2205.08534); Gao et al., "Dino U-Net" (arXiv 2508.20909).
`SpatialPrior` equals the authors' module.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from brickwork.adapters.dino.projection import Norm, group_norm

STRIDES = (4, 8, 16, 32)


class SpatialPrior(nn.Module):
    """Maps of a picture at the strides 4, 8, 16 and 32, of as many channels as the encoder's features.

    Args:
        channels: of the maps.
        width: channels of the stem; the coarser ones have twice and four times as many.
        norm: of a number of channels.
    """

    def __init__(self, channels: int, width: int = 64, norm: Norm = group_norm):
        super().__init__()

        def convolved(reads: int, gives: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(reads, gives, 3, stride, 1, bias=False), norm(gives), nn.ReLU()]

        stem = [*convolved(3, width, 2), *convolved(width, width, 1), *convolved(width, width, 1)]
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.stages = nn.ModuleList([nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))])
        self.stages.extend(nn.Sequential(*convolved(*pair, 2)) for pair in zip(widths, widths[1:]))
        self.projections = nn.ModuleList(nn.Conv2d(one, channels, 1) for one in widths)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Pixels `(B, 3, H, W)` as the encoder takes them => `(B, channels, H / stride, W / stride)` by stride."""
        maps = []
        for stage, project in zip(self.stages, self.projections):
            pixels = stage(pixels)
            maps.append(project(pixels))
        return maps


def with_prior(features: Sequence[torch.Tensor], maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Features `(B, C, rows, columns)` of the sites, finest first, each with the prior's map of its share of strides.

    The authors add the features to the maps at the maps' sizes, as here; between them they have deformable attention.
    """
    share = (len(maps) - 1) / max(1, len(features) - 1)
    chosen = [maps[round(site * share)] for site in range(len(features))]
    return [
        one + F.interpolate(feature, size=one.shape[-2:], mode="bilinear", align_corners=False)
        for feature, one in zip(features, chosen)
    ]
