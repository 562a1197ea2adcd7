"""The bottleneck of ResNet-RS (Bello et al., arXiv 2103.07579)."""

import torch
from torch import nn

from brickwork.gen.blocks.conv_norm import SqueezeExcitation, check_stride, start_at_zero
from brickwork.gen.blocks.modulation import BlockModulation, gated_residual_map, modulate_map
from brickwork.gen.blocks.norms import make_norm
from brickwork.gen.blocks.registry import Block, register_block


class AverageShortcut(nn.Module):
    """The shortcut of ResNet-D: the mean of the pixels that become one, then 1×1 and a norm; none is passed over."""

    convbn_pairs = (("conv", "norm"),)

    def __init__(self, dim: int, out_dim: int, stride: int, conv_norm: str):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(dim, out_dim, 1, bias=False)
        self.norm = make_norm(conv_norm, out_dim, eps=1e-5)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, dim, H, W)` => `(B, out_dim, H / stride, W / stride)`, rounded up."""
        if self.stride > 1:
            hidden_states = nn.functional.avg_pool2d(
                hidden_states, self.stride, ceil_mode=True, count_include_pad=False
            )
        return self.norm(self.conv(hidden_states))


@register_block("resnet_rs")
class ResNetRSBlock(Block):
    """1×1, 3×3, 1×1, squeeze-excitation, and ReLU behind the sum; the condition shifts and scales the last norm.

    Stochastic depth, the paper's other part, is `drop_path` of the network.

    Args beside those of `Block`:
        bottleneck_ratio: channels of the 3×3 convolution over those of the output.
        squeeze_ratio: squeezed channels of the squeeze-excitation over those of the output, in steps of 8.
        conv_norm: see `make_norm`; the authors' is `"batch"`.
        modulation: see `BlockModulation`; without a gate the last norm starts at zero, as in the paper. (Both at zero
            would never learn: the gradient of each is a multiple of the other.)
    """

    convbn_pairs = (("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3"))

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        out_dim: int | None = None,
        stride: int = 1,
        bottleneck_ratio: float = 0.25,
        squeeze_ratio: float = 0.25,
        conv_norm: str = "group",
        modulation: str = "adaln_zero",
        **settings,
    ):
        super().__init__(dim, cond_dim, out_dim, check_stride(stride), **settings)
        width, out_dim = max(1, int(self.out_dim * bottleneck_ratio)), self.out_dim
        self.conv1 = nn.Conv2d(dim, width, 1, bias=False)
        self.norm1 = make_norm(conv_norm, width, eps=1e-5)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = make_norm(conv_norm, width, eps=1e-5)
        self.conv3 = nn.Conv2d(width, out_dim, 1, bias=False)
        self.norm3 = make_norm(conv_norm, out_dim, eps=1e-5)
        self.squeeze = SqueezeExcitation(out_dim, max(8, int(out_dim * squeeze_ratio + 4) // 8 * 8), "relu")
        changes = (dim, 1) != (out_dim, stride)
        self.shortcut = AverageShortcut(dim, out_dim, stride, conv_norm) if changes else None
        self.modulation = BlockModulation(cond_dim, out_dim, 1, modulation)
        if modulation != "adaln_zero":
            start_at_zero(self.norm3, self.conv3)

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        ((shift, scale, gate),) = self.modulation(temb)
        update = nn.functional.relu(self.norm1(self.conv1(hidden_states)))
        update = nn.functional.relu(self.norm2(self.conv2(update)))
        update = self.squeeze(modulate_map(self.norm3(self.conv3(update)), shift, scale))
        shortcut = hidden_states if self.shortcut is None else self.shortcut(hidden_states)
        return nn.functional.relu(gated_residual_map(shortcut, gate, update))
