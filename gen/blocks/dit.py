"""The DiT block (Peebles & Xie, arXiv 2212.09748): attention and an MLP, each steered by adaLN-zero."""

import torch
from torch import nn

from brickwork.gen.blocks.attention import WindowAttention
from brickwork.gen.blocks.modulation import Modulation, gated_residual, modulate


class FeedForward(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states), approximate="tanh"))


class DiTTokenBlock(nn.Module):
    """The token core of a DiT block: tokens attend within their window, the modulation is one vector an image.

    Args:
        dim: width of a token.
        num_attention_heads: heads; divides `dim`.
        mlp_ratio: hidden width of the MLP over `dim`.
        cond_dim: width of the condition.
    """

    def __init__(self, dim: int, num_attention_heads: int, mlp_ratio: float, cond_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = WindowAttention(dim, num_attention_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))
        self.modulation = Modulation(cond_dim, dim, 6)

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor, token_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`hidden_states (B, windows, tokens, D)`, `temb (B, cond_dim)`, `token_mask` bool `(windows, tokens)`."""
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.modulation(temb)
        update = self.attn(modulate(self.norm1(hidden_states), shift_attn, scale_attn), token_mask)
        hidden_states = gated_residual(hidden_states, gate_attn, update)
        update = self.mlp(modulate(self.norm2(hidden_states), shift_mlp, scale_mlp))
        return gated_residual(hidden_states, gate_mlp, update)
