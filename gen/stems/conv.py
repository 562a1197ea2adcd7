"""The plain stem of diffusion UNets: one convolution at full resolution."""

from collections.abc import Sequence

from torch import nn

from brickwork.gen.stems.registry import register_stem


@register_stem("conv")
def conv_stem(in_channels: int, widths: Sequence[int]) -> nn.Conv2d:
    """A 3×3 convolution; torch's own class, of which PEFT makes others."""
    return nn.Conv2d(in_channels, widths[0], 3, padding=1)
