"""Self-attention inside windows."""

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

# Windows of so few tokens are not worth a fused kernel: launched once a window and head, it spends its time on
# tiles that are mostly empty, and cuDNN's backward kernel fails outright on tens of thousands of such windows.
# Two batched matrix products are faster there, on CPUs as well (forward and backward in bf16: 4 times at 4 tokens,
# 15 times at 16).
SMALL_WINDOW = 16


def small_window_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Written-out attention over `(N, tokens, heads, head_dim)`; the boolean mask broadcasts over `(N, h, t, t)`."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2)


class WindowAttnProcessor:
    """Each window is a sequence of its own; large ones go through diffusers' attention backends."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "WindowAttention", hidden_states: torch.Tensor, token_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, windows, tokens, dim = hidden_states.shape
        qkv = attn.qkv(hidden_states).view(batch * windows, tokens, 3, attn.num_attention_heads, -1)
        query, key, value = qkv.unbind(2)
        attn_mask = None
        if token_mask is not None:
            attn_mask = token_mask.expand(batch, windows, tokens).reshape(batch * windows, 1, 1, tokens)
        if tokens <= SMALL_WINDOW:
            hidden_states = small_window_attention(query, key, value, attn_mask)
        else:
            hidden_states = dispatch_attention_fn(
                query, key, value, attn_mask=attn_mask, backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )  # fmt: skip
        return attn.proj(hidden_states.reshape(batch, windows, tokens, dim))


class WindowAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention within each window, with biases.

    Args:
        dim: width of a token.
        num_attention_heads: heads; divides `dim`.
    """

    _default_processor_cls = WindowAttnProcessor
    _available_processors = [WindowAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_attention_heads: int):
        super().__init__()
        if dim % num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` is {num_attention_heads}, which does not divide the width {dim}; "
                "choose a divisor of it."
            )
        self.num_attention_heads = num_attention_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.set_processor(WindowAttnProcessor())

    def forward(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, windows, tokens, D)` => same; `token_mask` bool `(windows, tokens)`, true where a token is real."""
        return self.processor(self, hidden_states, token_mask)
