"""EMOv2's improved inverted residual mobile block, i2RMB (Zhang et al., arXiv 2412.06674), steered by adaLN-zero."""

import torch
from torch import nn

from brickwork.errors import whole_number
from brickwork.gen.blocks.attention import Attention, heads_of, window_attn_mask
from brickwork.gen.blocks.modulation import BlockModulation, gated_residual_map, modulate_map
from brickwork.gen.blocks.norms import make_norm
from brickwork.gen.blocks.registry import Block, register_block
from brickwork.gen.blocks.windows import Windowing


class SpanningAttention(Attention):
    """One query, key and value for two attentions: in windows of neighbours and in grids over the map.

    The value is `expand_ratio` times as wide as the input, which makes it the block's expansion.

    Args:
        dim: channels.
        expand_ratio: channels of the value and of the output over `dim`.
        num_attention_heads: heads; divides `dim`.
        window_size: side of the windows and of the grids.
    """

    def __init__(self, dim: int, expand_ratio: float, num_attention_heads: int, window_size: int):
        super().__init__(dim, num_attention_heads)
        whole_number("window_size", window_size)
        self.window_size = window_size
        self.qk = nn.Linear(dim, 2 * dim)
        self.v = nn.Linear(dim, int(dim * expand_ratio))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, D, H, W)` => `(B, D * expand_ratio, H, W)`."""
        windowings = [Windowing(hidden_states, self.window_size, mode) for mode in ("block", "grid")]
        close, remote = self.cut(hidden_states, windowings)
        output = self.attend_within(windowings[0], *close)
        del close  # the value is the largest tensor of the network
        # Not in place: kernels keep their output for the backward pass, and it may be this very tensor.
        return output + self.attend_within(windowings[1], *remote)

    def cut(self, hidden_states: torch.Tensor, windowings: list[Windowing]) -> list[list[torch.Tensor]]:
        """Query, key and value for each windowing, each `(B * windows, tokens, heads, head_dim)`."""
        tokens, heads = hidden_states.permute(0, 2, 3, 1), self.num_attention_heads
        query, key = self.qk(tokens).permute(0, 3, 1, 2).chunk(2, dim=1)
        value = nn.functional.gelu(self.v(tokens)).permute(0, 3, 1, 2)
        return [[windowing.cut_heads(tensor, heads) for tensor in (query, key, value)] for windowing in windowings]

    def attend_within(self, windowing: Windowing, *qkv: torch.Tensor) -> torch.Tensor:
        """What `cut` gives for a windowing => `(B, expanded, H, W)`."""
        batch = len(qkv[0]) // windowing.count
        attended = self.processor(*qkv, window_attn_mask(windowing.mask, None, batch, qkv[0]))
        return windowing.join(attended.unflatten(0, (batch, windowing.count)))


@register_block("i2rmb")
class I2RMB(Block):
    """Norm, spanning attention that expands, depthwise convolution, projection: one residual around it all.

    The authors' classifier scales the branch by 1e-6 at the start (LayerScale); the gate of adaLN-zero takes its place
    in a denoiser.

    Args beside those of `Block`:
        attention_head_dim: channels of a head's query and key; divides `dim`.
        window_size: side of the windows and of the grids in pixels of the map.
        expand_ratio: hidden channels over `dim`.
        kernel_size: side of the depthwise convolution, odd.
        conv_norm: norm after it, see `make_norm`; the authors' is `"batch"`.
    """

    convbn_pairs = (("conv", "conv_norm"),)

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        attention_head_dim: int = 32,
        window_size: int = 8,
        expand_ratio: float = 4.0,
        kernel_size: int = 5,
        conv_norm: str = "batch",
        modulation: str = "adaln_zero",
        **settings,
    ):
        super().__init__(dim, cond_dim, attention_head_dim=attention_head_dim, **settings)
        heads, hidden_dim = heads_of(dim, attention_head_dim), int(dim * expand_ratio)
        if hidden_dim % heads:
            raise ValueError(
                f"`expand_ratio` is {expand_ratio}, which makes {hidden_dim} hidden channels, and {heads} heads do "
                "not divide them; choose a whole number."
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` is {kernel_size}; an odd one keeps the size of the map.")
        self.window_size = window_size
        self.norm = make_norm("layer", dim)
        self.attn = SpanningAttention(dim, expand_ratio, heads, window_size)
        self.conv = nn.Conv2d(
            hidden_dim, hidden_dim, kernel_size, padding=kernel_size // 2, groups=hidden_dim, bias=False
        )
        self.conv_norm = make_norm(conv_norm, hidden_dim)
        self.proj = nn.Linear(hidden_dim, dim, bias=False)
        self.modulation = BlockModulation(cond_dim, dim, 1, modulation)

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        ((shift, scale, gate),) = self.modulation(temb)
        expanded = self.attn(modulate_map(self.norm(hidden_states), shift, scale))
        expanded = nn.functional.silu(self.conv_norm(self.conv(expanded))).add_(expanded)
        update = self.proj(expanded.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return gated_residual_map(hidden_states, gate, update)
