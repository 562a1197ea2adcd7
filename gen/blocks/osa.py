"""One-shot aggregation, the block of VoVNet (Lee et al., arXiv 1904.09730 and, with eSE, 1911.06667)."""

import torch
import torch.nn.functional as F
from torch import nn

from brickwork.gen.blocks.conv_norm import ConvNorm
from brickwork.gen.blocks.modulation import BlockModulation, gated_residual_map, modulate_map
from brickwork.gen.blocks.registry import Block, register_block


class EffectiveSqueezeExcitation(nn.Module):
    """Scale each channel by a hard sigmoid of what one layer says of the means of all."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc = nn.Linear(dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` => same."""
        scale = F.hardsigmoid(self.fc(hidden_states.mean(dim=(2, 3))))
        return hidden_states * scale[:, :, None, None]


class SeparableConvNorm(nn.Module):
    """Depthwise 3×3, then `ConvNorm` of 1×1."""

    def __init__(self, dim: int, conv_norm: str):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.pointwise = ConvNorm(dim, dim, conv_norm=conv_norm)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` => same."""
        return self.pointwise(self.depthwise(hidden_states))


@register_block("osa")
class OSABlock(Block):
    """3×3 convolutions in a row, their input and outputs concatenated once, 1×1, squeeze-excitation; a residual.

    A dense block reads every map again in each layer; this one reads it once, at the end: less memory traffic at the
    same receptive fields. The condition shifts and scales what the block reads.

    Args beside those of `Block`:
        mid_ratio: channels of each 3×3 convolution over `dim`; the authors' stages have 0.5 down to 0.22.
        num_convs: 3×3 convolutions.
        depthwise: separable convolutions in their place, for small devices; behind a 1×1 to their width.
        conv_norm: see `make_norm`; the authors' is `"batch"`.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        mid_ratio: float = 0.5,
        num_convs: int = 5,
        depthwise: bool = False,
        conv_norm: str = "group",
        modulation: str = "adaln_zero",
        **settings,
    ):
        super().__init__(dim, cond_dim, **settings)
        width = int(dim * mid_ratio)
        if width < 1 or num_convs < 1:
            raise ValueError(
                f"`mid_ratio` is {mid_ratio} and `num_convs` {num_convs}, which makes {num_convs} convolutions of "
                f"{width} channels where the stage has {dim}; make both at least 1."
            )
        self.squeeze_conv = ConvNorm(dim, width, conv_norm=conv_norm) if depthwise and width != dim else None
        self.convs = nn.ModuleList(
            SeparableConvNorm(width, conv_norm)
            if depthwise
            else ConvNorm(width if number else dim, width, 3, conv_norm=conv_norm)
            for number in range(num_convs)
        )
        self.concat = ConvNorm(dim + num_convs * width, dim, conv_norm=conv_norm)
        self.squeeze = EffectiveSqueezeExcitation(dim)
        self.modulation = BlockModulation(cond_dim, dim, 1, modulation)

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        ((shift, scale, gate),) = self.modulation(temb)
        maps = [modulate_map(hidden_states, shift, scale)]
        update = maps[0] if self.squeeze_conv is None else self.squeeze_conv(maps[0])
        for conv in self.convs:
            update = conv(update)
            maps.append(update)
        update = self.squeeze(self.concat(torch.cat(maps, dim=1)))
        return gated_residual_map(hidden_states, gate, update)
