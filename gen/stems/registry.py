"""What a stem is: the way from a sample to the first map of a network, and where to find one by name.

A new stem is one file in this folder: a subclass of `Stem` under `@register_stem("name")`, and the name of that
file in `__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from brickwork.gen.registry import Registry

STEMS = Registry("stem")
register_stem = STEMS.register
list_stems = STEMS.names


class Stem(nn.Module, ABC):
    """`Stem(in_channels, widths, **options)`; settings are keyword arguments.

    Args:
        in_channels: of the sample.
        widths: channels of the network's stages.

    Attributes:
        reduction: pixels of the sample along one pixel of the first map; the network's head shuffles as many back.
        levels: how many maps it gives: 1, or one for every stage, each with half the sides of the one before, rounded
            up; then the network has no way down of its own.
    """

    reduction: int = 1
    levels: int = 1

    @abstractmethod
    def forward(self, sample: torch.Tensor) -> torch.Tensor | Sequence[torch.Tensor]:
        """`(B, in_channels, H, W)` => `(B, widths[0], H / reduction, W / reduction)` rounded up, or all maps."""


def stem_shape(stem: nn.Module) -> tuple[int, int]:
    """`reduction` and `levels` of a stem, which a plain layer of torch does not say: 1 and 1."""
    return getattr(stem, "reduction", 1), getattr(stem, "levels", 1)


def check_reduction(reduction: int, allowed: Sequence[int]) -> int:
    """`reduction`, or a `ValueError` unless the stem can have it."""
    if isinstance(reduction, bool) or reduction not in allowed:
        *most, last = map(str, allowed)
        raise ValueError(f"`stem_options.reduction` is {reduction!r}; give {', '.join(most)} or {last}.")
    return reduction
