"""The residual block of diffusion UNets (ADM, Dhariwal & Nichol, arXiv 2105.05233): the plain baseline."""

import torch
from torch import nn

from brickwork.gen.blocks.modulation import BlockModulation, gated_residual_map, modulate_map
from brickwork.gen.blocks.norms import make_norm, zeroed
from brickwork.gen.blocks.registry import Block, register_block


@register_block("resnet")
class ResNetBlock(Block):
    """Norm, SiLU, 3×3 convolution, twice; the condition shifts and scales the second norm.

    Args beside those of `Block`:
        modulation: see `BlockModulation`; ADM's is `"film"`.
    """

    convbn_pairs = (("conv1", "norm2"),)

    def __init__(self, dim: int, cond_dim: int, *, modulation: str = "film", conv_norm: str = "group", **settings):
        super().__init__(dim, cond_dim, **settings)
        self.norm1 = make_norm(conv_norm, dim)
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = make_norm(conv_norm, dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.modulation = BlockModulation(cond_dim, dim, 1, modulation)
        if modulation != "adaln_zero":  # where no gate makes the block start as the identity
            zeroed(self.conv2)

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        ((shift, scale, gate),) = self.modulation(temb)
        update = self.conv1(nn.functional.silu(self.norm1(hidden_states)))
        update = modulate_map(self.norm2(update), shift, scale)
        return gated_residual_map(hidden_states, gate, self.conv2(nn.functional.silu(update)))
