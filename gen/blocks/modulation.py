"""How the condition (time, class) steers a block."""

import torch
from torch import nn


class Modulation(nn.Module):
    """SiLU and a linear layer from the condition to `num_chunks` vectors, zero at the start (adaLN-zero, DiT §3.2).

    Args:
        cond_dim: width of the condition.
        dim: width of each vector.
        num_chunks: how many vectors: 6 for a DiT block (shift, scale, gate, twice), 2 for a final layer.
    """

    def __init__(self, cond_dim: int, dim: int, num_chunks: int):
        super().__init__()
        self.num_chunks = num_chunks
        self.linear = nn.Linear(cond_dim, num_chunks * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(B, cond_dim)` => `num_chunks` vectors `(B, dim)`: once an image, whatever its number of windows."""
        return self.linear(nn.functional.silu(temb)).chunk(self.num_chunks, dim=-1)


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`hidden_states * (1 + scale) + shift` in one pass over `hidden_states (B, …, D)`; shift, scale `(B, D)`."""
    shape = (shift.shape[0],) + (1,) * (hidden_states.ndim - 2) + (shift.shape[-1],)
    dtype = hidden_states.dtype
    return torch.addcmul(shift.view(shape).to(dtype), hidden_states, 1 + scale.view(shape).to(dtype))


def gated_residual(hidden_states: torch.Tensor, gate: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """`hidden_states + gate * update` in one pass; `hidden_states` and `update (B, …, D)`, `gate (B, D)`."""
    shape = (gate.shape[0],) + (1,) * (hidden_states.ndim - 2) + (gate.shape[-1],)
    dtype = hidden_states.dtype
    return torch.addcmul(hidden_states, gate.view(shape).to(dtype), update.to(dtype))
