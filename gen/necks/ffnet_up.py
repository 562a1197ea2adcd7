"""The up-head of FFNet (Mehta et al., "Simple and Efficient Architectures …", arXiv 2206.08236)."""

from collections.abc import Sequence

import torch
from torch import nn

from brickwork.errors import one_of, whole_number
from brickwork.gen.blocks.conv_norm import ConvNorm
from brickwork.gen.blocks.stages import StageSpec
from brickwork.gen.necks.registry import Neck, RunBlock, register_neck

# For each level from the highest resolution down (the last stands for further ones too), in units of `width`: channels
# on the way up, and channels that go into the concatenation. The authors' unit is 64.
VARIANTS = {
    "A": ((1, 2, 4, 8), (2, 2, 2, 2)),
    "B": ((1, 2, 2, 4), (1.5, 1.5, 1, 0.5)),
    "C": ((2, 2, 2, 2), (2, 0.25, 0.25, 0.25)),
}
UPSAMPLINGS = ("nearest", "bilinear")


@register_neck("ffnet_up")
class FFNetUpNeck(Neck):
    """1×1 on each level, added up from the lowest; 3×3 on each sum; all of them at the first's size, concatenated.

    Args beside those of `Neck` (the condition is not used: the stages read it):
        variant: `"A"`, `"B"` or `"C"`, from the costliest to the cheapest; see `VARIANTS`.
        width: unit of the channels, `None` for those of the first stage.
        upsample: `"nearest"`, or `"bilinear"` with aligned corners.
        conv_norm: see `make_norm`; the authors' is `"batch"`.
    """

    def __init__(
        self,
        stages: Sequence[StageSpec],
        cond_dim: int,
        *,
        variant: str = "A",
        width: int | None = None,
        upsample: str = "nearest",
        conv_norm: str = "group",
    ):
        super().__init__()
        inner, outer = one_of("neck_options.variant", variant, VARIANTS)
        self.upsample = one_of("neck_options.upsample", upsample, UPSAMPLINGS)
        width = stages[0].channels if width is None else width
        whole_number("neck_options.width", width, 4)
        levels = range(len(stages))
        inner, outer = ([int(width * units[min(level, 3)]) for level in levels] for units in (inner, outer))
        self.lateral = nn.ModuleList(
            ConvNorm(stage.channels, channels, conv_norm=conv_norm) for stage, channels in zip(stages, inner)
        )
        self.smooth = nn.ModuleList(
            ConvNorm(channels, out_channels, 3, conv_norm=conv_norm) for channels, out_channels in zip(inner, outer)
        )
        self.up = nn.ModuleList(
            ConvNorm(channels, next_channels, conv_norm=conv_norm) for next_channels, channels in zip(inner, inner[1:])
        )
        self.fuse = nn.Conv2d(sum(outer), stages[0].channels, 1)

    def resize(self, hidden_states: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`hidden_states (B, C, h, w)` at the height and width of `like`."""
        align = True if self.upsample == "bilinear" else None
        return nn.functional.interpolate(hidden_states, like.shape[-2:], mode=self.upsample, align_corners=align)

    def gather(self, features: list[torch.Tensor]) -> torch.Tensor:
        """The concatenation, `(B, channels, H, W)`; `features` as `forward` takes them."""
        features = [lateral(feature) for lateral, feature in zip(self.lateral, features)]
        hidden_states = features[-1]
        smoothed = [self.smooth[-1](hidden_states)]
        for level in range(len(features) - 2, -1, -1):
            hidden_states = self.resize(self.up[level](hidden_states), features[level]) + features[level]
            smoothed.insert(0, self.smooth[level](hidden_states))
        return torch.cat([smoothed[0], *(self.resize(one, smoothed[0]) for one in smoothed[1:])], dim=1)

    def forward(self, features: list[torch.Tensor], run: RunBlock) -> torch.Tensor:
        return self.fuse(self.gather(features))
