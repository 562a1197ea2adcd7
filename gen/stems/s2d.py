"""The space-to-depth chain of GiraffeDet (Jiang et al., arXiv 2202.04256): all levels, at next to no cost."""

from collections.abc import Sequence

import torch
from torch import nn

from brickwork.gen.blocks.conv_norm import ConvNorm
from brickwork.gen.blocks.windows import pad_to_multiple
from brickwork.gen.stems.registry import Stem, check_reduction, register_stem


@register_stem("s2d")
class SpaceToDepthStem(Stem):
    """A 3×3 convolution, then for each further stage four pixels as one of four times the channels, and 1×1.

    It gives every stage its map: stages need no blocks of their own beside a heavy neck (`layers_per_block=0`).

    Args beside those of `Stem`:
        reduction: pixels of the sample along one of the first map: 1, or 2, 4, 8 by as many strided convolutions as
            it takes.
        conv_norm: see `make_norm`; the authors' is `"batch"`.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, reduction: int = 1, conv_norm: str = "group"):
        super().__init__()
        self.reduction, self.levels = check_reduction(reduction, (1, 2, 4, 8)), len(widths)
        strides = [2] * (reduction.bit_length() - 1) or [1]
        dims = [in_channels] + [widths[0]] * len(strides)
        layer = {"conv_norm": conv_norm, "activation": "silu"}
        self.convs = nn.ModuleList(
            ConvNorm(dim, out_dim, 3, stride, **layer) for dim, out_dim, stride in zip(dims, dims[1:], strides)
        )
        self.chain = nn.ModuleList(ConvNorm(4 * dim, out_dim, **layer) for dim, out_dim in zip(widths, widths[1:]))

    def forward(self, sample: torch.Tensor) -> list[torch.Tensor] | torch.Tensor:
        for conv in self.convs:
            sample = conv(sample)
        maps = [sample]
        for conv in self.chain:
            maps.append(conv(nn.functional.pixel_unshuffle(pad_to_multiple(maps[-1], 2), 2)))
        return maps
