"""The norm factory of the blocks, for feature maps `(B, C, H, W)`."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of every pixel of `(B, C, H, W)`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose running statistics see a batch once, even where gradient checkpointing runs a layer twice."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Inside a backward pass a forward can only be the recomputation of a checkpoint.
        recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if self.training and recomputing:
            unread = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(hidden_states, *unread, self.weight, self.bias, True, self.momentum or 0.0, self.eps)
        return super().forward(hidden_states)


def make_norm(kind: str, dim: int, eps: float = 1e-6, affine: bool = True) -> nn.Module:
    """A norm over `(B, dim, H, W)`.

    Args:
        kind: `"layer"` (over the channels of a pixel), `"group"` (32 groups, or as many as divide `dim`), `"batch"`
            (running statistics in eval mode) or `"none"`.
        dim: channels.
        eps: added to the variance.
        affine: with a weight and a bias for each channel.
    """
    if kind == "layer":
        return ChannelLayerNorm(dim, eps=eps, elementwise_affine=affine)
    if kind == "group":
        return nn.GroupNorm(math.gcd(dim, 32), dim, eps=eps, affine=affine)
    if kind == "batch":
        return BatchNorm(dim, eps=eps, affine=affine)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"`kind` of norm is {kind!r}; choose 'layer', 'group', 'batch' or 'none'.")
