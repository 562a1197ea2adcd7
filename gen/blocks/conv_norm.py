"""A convolution, its norm and its activation, of which the convolutional blocks, stems and necks are made."""

import torch
import torch.nn.functional as F
from torch import nn

from brickwork.errors import one_of
from brickwork.gen.blocks.norms import make_norm

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "none": None}


class ConvNorm(nn.Module):
    """Convolution, norm, activation: `(B, dim, H, W)` => `(B, out_dim, H / stride, W / stride)`, rounded up.

    Args:
        dim: channels of the input.
        out_dim: channels of the output.
        kernel_size: side of the convolution, odd.
        stride: of the convolution.
        groups: of the convolution.
        conv_norm: see `make_norm`; with `"none"` the convolution has a bias.
        activation: `"relu"`, `"silu"` or `"none"`.
    """

    convbn_pairs = (("conv", "norm"),)

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        conv_norm: str = "group",
        activation: str = "relu",
    ):
        super().__init__()
        self.activation = one_of("activation", activation, ACTIVATIONS)
        bias = conv_norm == "none"
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)
        self.norm = make_norm(conv_norm, out_dim, eps=1e-5)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm(self.conv(hidden_states))
        return hidden_states if self.activation is None else self.activation(hidden_states)


def start_at_zero(norm: nn.Module, conv: nn.Conv2d) -> None:
    """Let a branch that ends in a convolution and its norm start at zero: the norm's weight, or without one the
    convolution's."""
    last = norm if isinstance(getattr(norm, "weight", None), nn.Parameter) else conv
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


class SqueezeExcitation(nn.Module):
    """Scale each channel by what the means of all channels say.

    Args:
        dim: channels.
        squeezed_dim: width between the two layers.
        activation: between them, see `ConvNorm`.
    """

    def __init__(self, dim: int, squeezed_dim: int, activation: str = "silu"):
        super().__init__()
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.fc1 = nn.Linear(dim, squeezed_dim)
        self.fc2 = nn.Linear(squeezed_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` => same."""
        scale = self.fc2(self.activation(self.fc1(hidden_states.mean(dim=(2, 3))))).sigmoid()
        return hidden_states * scale[:, :, None, None]


def check_stride(stride: int) -> int:
    """`stride`, or a `ValueError` unless it is 1 or 2."""
    if stride not in (1, 2):
        raise ValueError(f"`stride` is {stride!r}; give 1, or 2 for half the sides.")
    return stride
