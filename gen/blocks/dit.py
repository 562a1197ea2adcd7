"""The DiT block (Peebles & Xie, arXiv 2212.09748): attention and an MLP, each steered by adaLN-zero."""

import torch
from torch import nn

from brickwork.errors import whole_number
from brickwork.gen.blocks.attention import WindowAttention, heads_of
from brickwork.gen.blocks.modulation import Modulation, gated_residual, modulate, plain_layer_norm
from brickwork.gen.blocks.recompute import not_kept, recomputed
from brickwork.gen.blocks.registry import Block, register_block
from brickwork.gen.blocks.windows import Windowing


class FeedForward(nn.Module):
    """Linear, GELU, Linear.

    Args:
        dim: width of a token.
        hidden_dim: width between the layers.
        approximate: `"tanh"` for DiT's GELU, `"none"` for the exact one.
    """

    def __init__(self, dim: int, hidden_dim: int, approximate: str = "tanh"):
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        activation = tanh_gelu if self.approximate == "tanh" else nn.functional.gelu
        hidden_states = recomputed(activation, self.fc1(hidden_states))
        with not_kept(hidden_states):
            return self.fc2(hidden_states)


def tanh_gelu(hidden_states: torch.Tensor) -> torch.Tensor:
    """DiT's GELU."""
    return nn.functional.gelu(hidden_states, approximate="tanh")


def modulated_norm(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LayerNorm of `(B, …, D)`, then shift and scale `(B, D)`, in the dtype of `hidden_states`."""
    # Under autocast norms come in float32; the layer that reads this one would cast it, and keep the copy.
    return modulate(plain_layer_norm(hidden_states), shift, scale).to(hidden_states.dtype)


def residual_and_norm(
    hidden_states: torch.Tensor, gate: torch.Tensor, update: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`hidden_states + gate * update`, and `modulated_norm` of it."""
    hidden_states = gated_residual(hidden_states, gate, update)
    return hidden_states, modulated_norm(hidden_states, shift, scale)


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
        self.attn = WindowAttention(dim, num_attention_heads)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))
        self.modulation = Modulation(cond_dim, dim, 6)

    def linears(self) -> tuple[nn.Linear, ...]:
        """The layers that start out as in the paper."""
        return self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor, token_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`hidden_states (B, windows, tokens, D)`, `temb (B, cond_dim)`, `token_mask` bool `(windows, tokens)`."""
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.modulation(temb)
        normed = recomputed(modulated_norm, hidden_states, shift_attn, scale_attn)
        with not_kept(normed):
            update = self.attn(normed, token_mask)
        hidden_states, normed = recomputed(residual_and_norm, hidden_states, gate_attn, update, shift_mlp, scale_mlp)
        with not_kept(normed):
            update = self.mlp(normed)
        return gated_residual(hidden_states, gate_mlp, update)


@register_block("dit")
class DiTBlock(Block):
    """A DiT block on a feature map. It knows no positions: the network adds them.

    Args beside those of `Block`:
        mlp_ratio: hidden width of the MLP over `dim`.
        window_size: side of the windows in which pixels attend to one another, `None` for the full map.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        attention_head_dim: int = 64,
        mlp_ratio: float = 4.0,
        window_size: int | None = None,
        **settings,
    ):
        super().__init__(dim, cond_dim, attention_head_dim=attention_head_dim, **settings)
        if window_size is not None:
            whole_number("window_size", window_size)
        self.window_size = window_size
        self.map_attentions = ("core.attn",) if window_size is None else ()
        self.core = DiTTokenBlock(dim, heads_of(dim, attention_head_dim), mlp_ratio, cond_dim)

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        if self.window_size is None:
            height, width = hidden_states.shape[-2:]
            tokens = self.core(hidden_states.flatten(2).transpose(1, 2)[:, None], temb)
            return tokens[:, 0].transpose(1, 2).unflatten(2, (height, width))
        windowing = Windowing(hidden_states, self.window_size, "block")
        return windowing.join(self.core(windowing.cut(hidden_states), temb, windowing.mask))
