"""The basic block of ResNet (He et al., arXiv 1512.03385), of which FFNet (Mehta et al., arXiv 2206.08236) is made."""

import torch
from torch import nn

from brickwork.gen.blocks.conv_norm import ConvNorm, check_stride, start_at_zero
from brickwork.gen.blocks.modulation import BlockModulation, gated_residual_map, modulate_map
from brickwork.gen.blocks.norms import make_norm
from brickwork.gen.blocks.registry import Block, register_block


@register_block("basic")
class BasicBlock(Block):
    """Two 3×3 convolutions, and ReLU behind the sum; the condition shifts and scales the first norm.

    Deep and narrow stacks of it see far without dilation, attention or windows.

    Args beside those of `Block`:
        conv_norm: see `make_norm`; the authors' is `"batch"`.
        modulation: see `BlockModulation`; without a gate the last norm starts at zero.
    """

    convbn_pairs = (("conv1", "norm1"), ("conv2", "norm2"))

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        out_dim: int | None = None,
        stride: int = 1,
        conv_norm: str = "group",
        modulation: str = "adaln_zero",
        **settings,
    ):
        super().__init__(dim, cond_dim, out_dim, check_stride(stride), **settings)
        out_dim = self.out_dim
        self.conv1 = nn.Conv2d(dim, out_dim, 3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(conv_norm, out_dim, eps=1e-5)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = make_norm(conv_norm, out_dim, eps=1e-5)
        changes = (dim, 1) != (out_dim, stride)
        self.shortcut = None
        if changes:
            self.shortcut = ConvNorm(dim, out_dim, 1, stride, conv_norm=conv_norm, activation="none")
        self.modulation = BlockModulation(cond_dim, out_dim, 1, modulation)
        if modulation != "adaln_zero":
            start_at_zero(self.norm2, self.conv2)

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        ((shift, scale, gate),) = self.modulation(temb)
        update = nn.functional.relu(modulate_map(self.norm1(self.conv1(hidden_states)), shift, scale))
        update = self.norm2(self.conv2(update))
        shortcut = hidden_states if self.shortcut is None else self.shortcut(hidden_states)
        return nn.functional.relu(gated_residual_map(shortcut, gate, update))
