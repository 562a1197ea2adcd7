"""The stem of ResNet-D (He et al., arXiv 1812.01187) and ResNet-RS (Bello et al., arXiv 2103.07579)."""

from collections.abc import Sequence

import torch
from torch import nn

from brickwork.gen.blocks.conv_norm import ConvNorm
from brickwork.gen.stems.registry import Stem, check_reduction, register_stem


@register_stem("resnet_d")
class ResNetDStem(Stem):
    """Three 3×3 convolutions in place of one large one, the first with half the sides.

    Args beside those of `Stem`:
        reduction: 2; 4 for a fourth convolution with half the sides (ResNet-RS), 1 for none that halves them.
        conv_norm: see `make_norm`; the authors' is `"batch"`.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, reduction: int = 2, conv_norm: str = "group"):
        super().__init__()
        self.reduction = check_reduction(reduction, (1, 2, 4))
        width, half = widths[0], max(1, widths[0] // 2)
        layers = [(in_channels, half, 1 if reduction == 1 else 2), (half, half, 1), (half, width, 1)]
        layers += [(width, width, 2)] if reduction == 4 else []
        self.convs = nn.ModuleList(
            ConvNorm(dim, out_dim, 3, stride, conv_norm=conv_norm) for dim, out_dim, stride in layers
        )

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            sample = conv(sample)
        return sample
