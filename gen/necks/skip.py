"""The decoder of diffusion UNets: up again, stage by stage, each block beside its twin of the encoder."""

from collections.abc import Sequence

import torch
from torch import nn

from brickwork.gen.blocks.stages import StageSpec
from brickwork.gen.necks.registry import Neck, RunBlock, register_neck


class UpStage(nn.Module):
    """Blocks of the decoder at one resolution, each after what its twin of the encoder saw, and the way up."""

    def __init__(self, blocks: list[nn.Module], dim: int, next_dim: int | None):
        super().__init__()
        self.fuse = nn.ModuleList(nn.Conv2d(2 * dim, dim, 1) for _ in blocks)
        self.blocks = nn.ModuleList(blocks)
        self.upsample = None if next_dim is None else nn.Conv2d(dim, next_dim, 3, padding=1)


@register_neck("skip")
class SkipNeck(nn.ModuleList, Neck):
    """A mirror of the encoder that reads every one of its blocks."""

    mid_layers = 1
    reads_every_block = True

    def __init__(self, stages: Sequence[StageSpec], cond_dim: int):
        super().__init__(
            UpStage([stage.build(cond_dim, decoder=True) for _ in range(stage.layers)], stage.channels, next_dim)
            for stage, next_dim in zip(reversed(stages), [*(stage.channels for stage in stages[-2::-1]), None])
        )

    def forward(self, features: list[torch.Tensor], run: RunBlock) -> torch.Tensor:
        *skips, hidden_states = features
        for stage in self:
            for fuse, block in zip(stage.fuse, stage.blocks):
                hidden_states = fuse(torch.cat([hidden_states, skips.pop()], dim=1))
                hidden_states = run(block, hidden_states)
            if stage.upsample is not None:
                # To the size of the encoder's map, which odd sides made larger than half.
                hidden_states = nn.functional.interpolate(hidden_states, size=skips[-1].shape[-2:], mode="nearest")
                hidden_states = stage.upsample(hidden_states)
        return hidden_states
