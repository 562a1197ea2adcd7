"""Spatial-reduction attention, the block of the Pyramid Vision Transformer (Wang et al., arXiv 2102.12122)."""

import torch
from torch import nn

from brickwork.errors import whole_number
from brickwork.gen.blocks.attention import Attention, heads_of
from brickwork.gen.blocks.dit import FeedForward
from brickwork.gen.blocks.modulation import BlockModulation, gated_residual, modulate
from brickwork.gen.blocks.norms import LayerNorm
from brickwork.gen.blocks.registry import Block, register_block
from brickwork.gen.blocks.windows import pad_to_multiple


class SRAttention(Attention):
    """Attention whose keys and values come from a map with `sr_ratio` times smaller sides.

    Args:
        dim: channels.
        num_attention_heads: heads; divides `dim`.
        sr_ratio: pixels along one of the smaller map; 1 is plain attention.
    """

    def __init__(self, dim: int, num_attention_heads: int, sr_ratio: int):
        super().__init__(dim, num_attention_heads)
        advice = ", such as 8, 4, 2, 1 (plain attention) from the highest resolution down, by `stage_options`"
        self.sr_ratio = whole_number("sr_ratio", sr_ratio, more=advice)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.reduction = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio)
            self.norm = LayerNorm(dim, eps=1e-5)

    def reduce(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, H, W, D)` => `(B, tokens, D)`, what keys and values are made of.

        Zeros behind the borders add nothing to the convolution: a patch cut by a border is the sum over its pixels
        that are there, and the norm takes it to the size of the others.
        """
        if self.sr_ratio == 1:
            return hidden_states.flatten(1, 2)
        padded = pad_to_multiple(hidden_states.permute(0, 3, 1, 2), self.sr_ratio)
        return self.norm(self.reduction(padded).flatten(2).transpose(1, 2))

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, H, W, D)` => same; `encoder_hidden_states (B, tokens, D)` in place of what `reduce` makes."""
        batch, height, width, dim = hidden_states.shape
        heads = self.num_attention_heads
        query = self.q(hidden_states).view(batch, height * width, heads, -1)
        reduced = self.reduce(hidden_states) if encoder_hidden_states is None else encoder_hidden_states
        key, value = self.kv(reduced).view(batch, reduced.shape[1], 2, heads, -1).unbind(2)
        return self.proj(self.processor(query, key, value).reshape(batch, height, width, dim))


@register_block("sra")
class SRABlock(Block):
    """Attention to a smaller copy of the map, and an MLP. It knows no positions beyond a patch.

    The authors' pyramid has ratios 8, 4, 2, 1 from the highest resolution down, heads of 64 channels, and MLP ratios
    8, 8, 4, 4.

    Args beside those of `Block`:
        mlp_ratio: hidden width of the MLP over `dim`.
        sr_ratio: see `SRAttention`; any map does, whether the ratio divides it or not.
        modulation: see `BlockModulation`; each of the two layers has its own.
    """

    map_attentions = ("attn",)

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        attention_head_dim: int = 64,
        mlp_ratio: float = 4.0,
        sr_ratio: int = 2,
        modulation: str = "adaln_zero",
        **settings,
    ):
        super().__init__(dim, cond_dim, attention_head_dim=attention_head_dim, **settings)
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = SRAttention(dim, heads_of(dim, attention_head_dim), sr_ratio)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), approximate="none")
        self.modulation = BlockModulation(cond_dim, dim, 2, modulation)

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        (shift_attn, scale_attn, gate_attn), (shift_mlp, scale_mlp, gate_mlp) = self.modulation(temb)
        tokens = hidden_states.permute(0, 2, 3, 1)
        update = self.attn(modulate(self.norm1(tokens), shift_attn, scale_attn))
        tokens = gated_residual(tokens, gate_attn, update)
        update = self.mlp(modulate(self.norm2(tokens), shift_mlp, scale_mlp))
        return gated_residual(tokens, gate_mlp, update).permute(0, 3, 1, 2)
