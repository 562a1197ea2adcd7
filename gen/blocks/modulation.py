"""How the condition (time, class) steers a block."""

import torch
from torch import nn

from brickwork.errors import one_of
from brickwork.gen.blocks.norms import zeroed


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
        self.linear = zeroed(nn.Linear(cond_dim, num_chunks * dim))

    def forward(self, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(B, cond_dim)` => `num_chunks` vectors `(B, dim)`: once an image, whatever its number of windows."""
        return self.linear(nn.functional.silu(temb)).chunk(self.num_chunks, dim=-1)


def plain_layer_norm(hidden_states: torch.Tensor) -> torch.Tensor:
    """LayerNorm without weights over the last dimension.

    A function rather than `nn.LayerNorm`, whose `eps` attribute `torch.compile(dynamic=True)` first takes for a
    variable: every graph would be compiled twice.
    """
    return nn.functional.layer_norm(hidden_states, hidden_states.shape[-1:], eps=1e-6)


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor:
    """`hidden_states * (1 + scale) + shift` in one pass over `hidden_states (B, …, D)`.

    Shift and scale are `(B, D)`, or `None` to leave `hidden_states` as they are.
    """
    if shift is None or scale is None:
        return hidden_states
    shape = (shift.shape[0],) + (1,) * (hidden_states.ndim - 2) + (shift.shape[-1],)
    dtype = hidden_states.dtype
    return torch.addcmul(shift.view(shape).to(dtype), hidden_states, 1 + scale.view(shape).to(dtype))


def gated_residual(hidden_states: torch.Tensor, gate: torch.Tensor | None, update: torch.Tensor) -> torch.Tensor:
    """`hidden_states + gate * update` in one pass; both `(B, …, D)`, `gate (B, D)`, or `None` for 1."""
    if gate is None:
        return hidden_states + update
    shape = (gate.shape[0],) + (1,) * (hidden_states.ndim - 2) + (gate.shape[-1],)
    dtype = hidden_states.dtype
    return torch.addcmul(hidden_states, gate.view(shape).to(dtype), update.to(dtype))


MODULATIONS = {"adaln_zero": 3, "film": 2, "none": 0}  # vectors for each layer


class BlockModulation(nn.Module):
    """How the condition steers the layers of a block, each written `x + gate * layer(norm(x) * (1 + scale) + shift)`.

    Args:
        cond_dim: width of the condition.
        dim: width of the block.
        num_layers: layers with a residual of their own.
        kind: `"adaln_zero"` (shift, scale and gate, all zero at the start, so that the block starts as the identity),
            `"film"` (shift and scale, zero at the start; no gate) or `"none"` (the condition is not used).
    """

    def __init__(self, cond_dim: int, dim: int, num_layers: int, kind: str = "adaln_zero"):
        super().__init__()
        self.num_layers, self.per_layer = num_layers, one_of("modulation", kind, MODULATIONS)
        if self.per_layer:
            self.vectors = Modulation(cond_dim, dim, self.per_layer * num_layers)

    def forward(self, temb: torch.Tensor) -> list[tuple[torch.Tensor | None, ...]]:
        """`(B, cond_dim)` => for each layer (shift, scale, gate), each `(B, dim)`, or `None` where there is none."""
        if not self.per_layer:
            return [(None, None, None)] * self.num_layers
        vectors, step = self.vectors(temb), self.per_layer
        absent = (None,) * (3 - step)
        return [vectors[start : start + step] + absent for start in range(0, len(vectors), step)]


def modulate_map(hidden_states: torch.Tensor, shift: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor:
    """`modulate` for feature maps: `hidden_states (B, D, H, W)`."""
    return modulate(hidden_states.permute(0, 2, 3, 1), shift, scale).permute(0, 3, 1, 2)


def gated_residual_map(hidden_states: torch.Tensor, gate: torch.Tensor | None, update: torch.Tensor) -> torch.Tensor:
    """`gated_residual` for feature maps `(B, D, H, W)`."""
    update = gated_residual(hidden_states.permute(0, 2, 3, 1), gate, update.permute(0, 2, 3, 1))
    return update.permute(0, 3, 1, 2)
