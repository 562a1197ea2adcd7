"""The norm factory of the blocks, for feature maps `(B, C, H, W)`."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from brickwork import compat
from brickwork.errors import one_of

NORMS = ("layer", "group", "batch", "none")


def constant(name: str) -> property:
    """A float of a module, or `None`, that compilers take for a constant.

    `torch.compile(dynamic=True)` takes a module's floats for variables at first, and compiles every graph twice; a
    ratio of whole numbers says the same, and those are constants.
    """
    ratio = f"_{name}_ratio"

    def read(self: nn.Module) -> float | None:
        fraction = getattr(self, ratio)
        return None if fraction is None else fraction[0] / fraction[1]

    def write(self: nn.Module, value: float | None) -> None:
        self.__dict__[name] = value  # for whoever changes the module's class
        setattr(self, ratio, None if value is None else float(value).as_integer_ratio())

    return property(read, write)


class LayerNorm(nn.LayerNorm):
    """torch's, compiled once."""

    eps = constant("eps")


class GroupNorm(nn.GroupNorm):
    """torch's, compiled once."""

    eps = constant("eps")


class ChannelLayerNorm(LayerNorm):
    """LayerNorm over the channels of every pixel of `(B, C, H, W)`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose running statistics see a batch once, even where gradient checkpointing runs a layer twice."""

    eps, momentum = constant("eps"), constant("momentum")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Inside a backward pass a forward can only be the recomputation of a checkpoint.
        recomputing = not torch.compiler.is_compiling() and compat.in_backward()
        if self.training and recomputing:
            unread = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(hidden_states, *unread, self.weight, self.bias, True, self.momentum or 0.0, self.eps)
        return super().forward(hidden_states)


def zeroed(layer: nn.Module) -> nn.Module:
    """A linear layer or a convolution that starts out adding nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def make_norm(kind: str, dim: int, eps: float = 1e-6) -> nn.Module:
    """A norm over `(B, dim, H, W)`.

    Args:
        kind: `"layer"` (over the channels of a pixel), `"group"` (32 groups, or as many as divide `dim`), `"batch"`
            (running statistics in eval mode) or `"none"`.
        dim: channels.
        eps: added to the variance.
    """
    if kind == "layer":
        return ChannelLayerNorm(dim, eps=eps)
    if kind == "group":
        return GroupNorm(math.gcd(dim, 32), dim, eps=eps)
    if kind == "batch":
        return BatchNorm(dim, eps=eps)
    one_of("kind", kind, NORMS)
    return nn.Identity()
