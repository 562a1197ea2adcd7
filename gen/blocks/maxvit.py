"""The MaxViT block (Tu et al., arXiv 2204.01697): MBConv, attention in windows, attention on a grid."""

import torch
from torch import nn

from brickwork.errors import whole_number
from brickwork.gen.blocks.attention import RelativePositionBias, WindowAttention, heads_of
from brickwork.gen.blocks.conv_norm import SqueezeExcitation
from brickwork.gen.blocks.dit import FeedForward
from brickwork.gen.blocks.modulation import BlockModulation, gated_residual, gated_residual_map, modulate, modulate_map
from brickwork.gen.blocks.norms import LayerNorm, make_norm
from brickwork.gen.blocks.registry import Block, register_block
from brickwork.gen.blocks.windows import Windowing


class MBConv(nn.Module):
    """Inverted bottleneck: 1×1 expansion, depthwise 3×3, squeeze-excitation, 1×1 projection."""

    convbn_pairs = (("expand", "norm1"), ("depthwise", "norm2"))

    def __init__(
        self, dim: int, cond_dim: int, expand_ratio: float, squeeze_ratio: float, conv_norm: str, modulation: str
    ):
        super().__init__()
        hidden_dim = int(dim * expand_ratio)
        self.pre_norm = make_norm(conv_norm, dim, eps=1e-5)
        self.expand = nn.Conv2d(dim, hidden_dim, 1, bias=False)
        self.norm1 = make_norm(conv_norm, hidden_dim, eps=1e-5)
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, bias=False)
        self.norm2 = make_norm(conv_norm, hidden_dim, eps=1e-5)
        self.squeeze = SqueezeExcitation(hidden_dim, max(1, int(dim * squeeze_ratio)))
        self.project = nn.Conv2d(hidden_dim, dim, 1)
        self.modulation = BlockModulation(cond_dim, dim, 1, modulation)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        ((shift, scale, gate),) = self.modulation(temb)
        update = modulate_map(self.pre_norm(hidden_states), shift, scale)
        update = nn.functional.gelu(self.norm1(self.expand(update)))
        update = nn.functional.gelu(self.norm2(self.depthwise(update)))
        return gated_residual_map(hidden_states, gate, self.project(self.squeeze(update)))


class PartitionAttention(nn.Module):
    """Attention within windows (`mode="block"`) or grids with relative position bias, and an MLP."""

    def __init__(
        self, dim: int, cond_dim: int, heads: int, window_size: int, mlp_ratio: float, mode: str, modulation: str
    ):
        super().__init__()
        self.mode, self.window_size = mode, window_size
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, heads)
        self.position_bias = RelativePositionBias(window_size, heads)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), approximate="none")
        self.modulation = BlockModulation(cond_dim, dim, 2, modulation)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        (shift_attn, scale_attn, gate_attn), (shift_mlp, scale_mlp, gate_mlp) = self.modulation(temb)
        windowing = Windowing(hidden_states, self.window_size, self.mode)
        bias = self.position_bias(*windowing.window)
        tokens = windowing.cut(hidden_states)
        update = self.attn(modulate(self.norm1(tokens), shift_attn, scale_attn), windowing.mask, bias)
        tokens = gated_residual(tokens, gate_attn, update)
        update = self.mlp(modulate(self.norm2(tokens), shift_mlp, scale_mlp))
        return windowing.join(gated_residual(tokens, gate_mlp, update))


@register_block("maxvit")
class MaxViTBlock(Block):
    """MBConv, windows, grid; in a decoder the other way round, as the paper's generator has it.

    Args beside those of `Block`:
        window_size: side of the windows and of the grids in pixels of the map.
        expand_ratio: hidden channels of the MBConv over `dim`.
        squeeze_ratio: squeezed channels of its squeeze-excitation over `dim`.
        mlp_ratio: hidden width of the MLPs over `dim`.
        conv_norm: norm of the MBConv, see `make_norm`; the paper's is `"batch"`.
        modulation: see `BlockModulation`; each of the five layers has its own.
        decoder: grid, windows, MBConv.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        attention_head_dim: int = 32,
        window_size: int = 8,
        expand_ratio: float = 4.0,
        squeeze_ratio: float = 0.25,
        mlp_ratio: float = 4.0,
        conv_norm: str = "batch",
        modulation: str = "adaln_zero",
        decoder: bool = False,
        **settings,
    ):
        super().__init__(dim, cond_dim, attention_head_dim=attention_head_dim, **settings)
        whole_number("window_size", window_size)
        heads = heads_of(dim, attention_head_dim)
        self.window_size, self.decoder = window_size, decoder
        self.conv = MBConv(dim, cond_dim, expand_ratio, squeeze_ratio, conv_norm, modulation)
        self.block_attn, self.grid_attn = (
            PartitionAttention(dim, cond_dim, heads, window_size, mlp_ratio, mode, modulation)
            for mode in ("block", "grid")
        )

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        layers = (self.conv, self.block_attn, self.grid_attn)
        for layer in reversed(layers) if self.decoder else layers:
            hidden_states = layer(hidden_states, temb)
        return hidden_states
