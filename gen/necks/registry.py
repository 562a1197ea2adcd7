"""What a neck is: the way from the maps of all stages back to one of the first stage's size, and where to find one.

A new neck is one file in this folder: a subclass of `Neck` under `@register_neck("name")`, and the name of that
file in `__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from brickwork.gen.registry import Registry

NECKS = Registry("neck")
register_neck = NECKS.register
list_necks = NECKS.names
RunBlock = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Neck(nn.Module, ABC):
    """`Neck(stages, cond_dim, **options)`; settings are keyword arguments.

    Args:
        stages: of the network, from the highest resolution down; `stages[i].build(cond_dim)` is a block of one.
        cond_dim: width of the condition.

    Attributes:
        mid_layers: blocks between the encoder's last map and the neck.
        reads_every_block: whether it reads what each block of the encoder computed, rather than each stage's last.
    """

    mid_layers: int = 0
    reads_every_block: bool = False

    @abstractmethod
    def forward(self, features: list[torch.Tensor], run: RunBlock) -> torch.Tensor:
        """Fuse the encoder's maps.

        Args:
            features: from the highest resolution down, the last behind the blocks in the middle. Each stage's sides
                are half of those of the one before, rounded up. With `reads_every_block` all blocks' outputs in their
                order, then the map behind the middle; otherwise one for each stage.
            run: `run(block, hidden_states)` runs a block under the network's conditions, with gradient checkpointing
                where that is on.

        Returns:
            `(B, stages[0].channels, H, W)`, the size of the first.
        """
