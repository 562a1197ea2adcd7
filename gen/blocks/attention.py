"""Attention: within windows, within windows and grids at once, and to a text."""

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from brickwork.gen.blocks.norms import LayerNorm, zeroed

# Windows of so few tokens are not worth a fused kernel: launched once a window and head, it spends its time on
# tiles that are mostly empty, and cuDNN's backward kernel fails outright on tens of thousands of such windows.
# Two batched matrix products are faster there, on CPUs as well (forward and backward in bf16: 4 times at 4 tokens,
# 15 times at 16).
SMALL_WINDOW = 16


def small_window_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Written-out attention over `(N, tokens, heads, head_dim)`.

    The mask broadcasts over `(N, heads, tokens, tokens)`: bool, true where attention may go, or added to the scores.
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2)


def window_attn_mask(
    token_mask: torch.Tensor | None, position_bias: torch.Tensor | None, batch: int, like: torch.Tensor
) -> torch.Tensor | None:
    """One mask for all windows of a batch.

    Args:
        token_mask: bool `(windows, tokens)`, true where a token is real.
        position_bias: `(heads, tokens, tokens)`, added to the scores.
        batch: images.
        like: a tensor with the dtype of the scores.

    Returns:
        What broadcasts over `(batch * windows, heads, tokens, tokens)`: bool without a bias, else added to the scores.
    """
    if position_bias is not None:
        position_bias = position_bias[None].to(like.dtype)
    if token_mask is None:
        return position_bias
    windows, tokens = token_mask.shape
    attn_mask = token_mask.expand(batch, windows, tokens).reshape(batch * windows, 1, 1, tokens)
    if position_bias is None:
        return attn_mask
    return position_bias.masked_fill(~attn_mask, float("-inf"))


class AttnProcessor:
    """Attention by hand where windows are small, otherwise by diffusers' backends."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention over `(N, tokens, heads, head_dim)`; the head width of `value` may be another."""
        # No fused kernel of the CPU takes values wider than keys, and what torch does instead checks every score.
        plain_cpu = self._attention_backend is None and query.device.type == "cpu"
        by_hand = plain_cpu and query.shape[-1] != value.shape[-1]
        if by_hand or (query.shape[1] <= SMALL_WINDOW and key.shape[1] <= SMALL_WINDOW):
            return small_window_attention(query, key, value, attn_mask)
        # A default float counts as a variable under `torch.compile(dynamic=True)`; a given one is a constant.
        return dispatch_attention_fn(
            query, key, value, attn_mask=attn_mask, dropout_p=0.0, backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )  # fmt: skip


class Attention(nn.Module, AttentionModuleMixin):
    """Layers whose processor attends, so that `set_attention_backend` reaches it.

    Args:
        dim: width of a token.
        num_attention_heads: heads; divides `dim`.
    """

    _default_processor_cls = AttnProcessor
    _available_processors = [AttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_attention_heads: int):
        super().__init__()
        check_heads(dim, num_attention_heads)
        self.num_attention_heads = num_attention_heads
        self.set_processor(AttnProcessor())


class WindowAttention(Attention):
    """Multi-head self-attention within each window, with biases; arguments are those of `Attention`."""

    def __init__(self, dim: int, num_attention_heads: int):
        super().__init__(dim, num_attention_heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend within each window.

        Args:
            hidden_states: `(B, windows, tokens, D)`.
            token_mask: bool `(windows, tokens)`, true where a token is real.
            position_bias: `(heads, tokens, tokens)`, added to the scores.
            encoder_hidden_states: `(B, windows, length, D)`, what keys and values are made of in place of
                `hidden_states`, such as a shorter copy; without mask and bias.

        Returns:
            `(B, windows, tokens, D)`.
        """
        batch, windows, tokens, dim = hidden_states.shape
        if encoder_hidden_states is None:
            qkv = self.qkv(hidden_states).view(batch * windows, tokens, 3, self.num_attention_heads, -1)
            query, key, value = qkv.unbind(2)
        else:
            query, key, value = self.project_apart(hidden_states, encoder_hidden_states)
        attended = self.processor(query, key, value, window_attn_mask(token_mask, position_bias, batch, query))
        return self.proj(attended.reshape(batch, windows, tokens, dim))

    def project_apart(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries of one, keys and values of the other, `(B * windows, tokens, heads, head_dim)` each."""
        dim = hidden_states.shape[-1]
        if type(self.qkv) is nn.Linear:
            weights, biases = self.qkv.weight.split((dim, 2 * dim)), self.qkv.bias.split((dim, 2 * dim))
            query = nn.functional.linear(hidden_states, weights[0], biases[0])
            both = nn.functional.linear(encoder_hidden_states, weights[1], biases[1])
        else:  # quantised, or with a LoRA: its parts cannot be called apart
            query, both = self.qkv(hidden_states)[..., :dim], self.qkv(encoder_hidden_states)[..., dim:]
        parts = [query, *both.chunk(2, dim=-1)]
        return tuple(part.unflatten(-1, (self.num_attention_heads, -1)).flatten(0, 1) for part in parts)


class RelativePositionBias(nn.Module):
    """A learned number for each head and each offset within a window (Swin, MaxViT), zero at the start.

    Args:
        window_size: largest side of a window, in tokens.
        num_attention_heads: heads.
    """

    def __init__(self, window_size: int, num_attention_heads: int):
        super().__init__()
        self.window_size = window_size
        self.table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_attention_heads))

    def forward(self, rows: int, columns: int) -> torch.Tensor:
        """`(heads, rows * columns, rows * columns)` for a window of that size."""
        row = torch.arange(rows, device=self.table.device)
        column = torch.arange(columns, device=self.table.device)
        down = (row[:, None] - row + self.window_size - 1)[:, None, :, None]
        across = (column[:, None] - column + self.window_size - 1)[None, :, None, :]
        index = down * (2 * self.window_size - 1) + across
        return self.table[index.reshape(rows * columns, rows * columns)].permute(2, 0, 1)


class TextAttention(Attention):
    """Cross-attention from a feature map to a sequence, normed before, zero at the start.

    The layers are not called `to_q` and the like: `convert_state_dict_to_diffusers` renames those alone, and a LoRA
    file that mixes two conventions loses layers when it is loaded.

    Args:
        dim: channels of the feature map.
        cross_attention_dim: width of the sequence.
        num_attention_heads: heads; divides `dim`.
    """

    def __init__(self, dim: int, cross_attention_dim: int, num_attention_heads: int):
        super().__init__(dim, num_attention_heads)
        self.norm = LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(cross_attention_dim, dim, bias=False)
        self.v = nn.Linear(cross_attention_dim, dim, bias=False)
        self.proj = zeroed(nn.Linear(dim, dim))

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """`hidden_states (B, C, H, W)`, `encoder_hidden_states (B, length, cross_attention_dim)` => `(B, C, H, W)`."""
        height, width = hidden_states.shape[-2:]
        tokens = self.norm(hidden_states.flatten(2).transpose(1, 2))
        text = encoder_hidden_states.to(tokens.dtype)
        read = ((self.q, tokens), (self.k, text), (self.v, text))
        query, key, value = (layer(given).unflatten(-1, (self.num_attention_heads, -1)) for layer, given in read)
        tokens = self.proj(self.processor(query, key, value).flatten(-2))
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def check_heads(dim: int, num_attention_heads: int) -> None:
    """Raise a `ValueError` unless the heads divide the width."""
    if num_attention_heads < 1 or dim % num_attention_heads:
        raise ValueError(
            f"`num_attention_heads` is {num_attention_heads}, which does not divide the width {dim}; "
            "choose a divisor of it."
        )


def heads_of(dim: int, attention_head_dim: int) -> int:
    """Heads of a width, `attention_head_dim` channels each."""
    if attention_head_dim < 1 or dim % attention_head_dim:
        divisors = [size for size in range(8, dim + 1, 8) if dim % size == 0]
        raise ValueError(
            f"`attention_head_dim` is {attention_head_dim}, which does not divide the width {dim}; choose a divisor "
            f"of it, such as {', '.join(map(str, divisors[:4])) or dim}."
        )
    return dim // attention_head_dim


def head_dim_of(dim: int, num_attention_heads: int, attention_head_dim: int | None = None) -> int:
    """Channels of a head of a width that so many heads share; `attention_head_dim` is `None`, or says the same."""
    check_heads(dim, num_attention_heads)
    head_dim = dim // num_attention_heads
    if attention_head_dim not in (None, head_dim):
        raise ValueError(
            f"`num_attention_heads` is {num_attention_heads} and `attention_head_dim` {attention_head_dim}, where the "
            f"width is {dim}; give one of them."
        )
    return head_dim
