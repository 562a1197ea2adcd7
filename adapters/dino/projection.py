"""From a frozen encoder's features to a denoiser's residuals: the fidelity-aware projection of Dino U-Net.

Paper: Gao et al., "Dino U-Net" (arXiv 2508.20909). `FAPM` equals the authors' module.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.Module:
    """Of one group, so that a picture's features do not depend on the batch."""
    return nn.GroupNorm(1, channels)


class SqueezeExcitation(nn.Module):
    """Channels weighed by what their means say (Hu et al., arXiv 1709.01507)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        reduced = max(1, channels // reduction)
        self.down, self.up = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` => the same shape."""
        means = hidden_states.mean(dim=(2, 3), keepdim=True)
        return hidden_states * self.up(F.relu(self.down(means))).sigmoid()


class Refinement(nn.Module):
    """A depthwise separable convolution between two projections, squeeze-excitation, and a shortcut past them."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj_in, self.norm_in = nn.Conv2d(in_channels, channels, 1, bias=False), group_norm(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise, self.norm = nn.Conv2d(channels, channels, 1, bias=False), group_norm(channels)
        self.proj_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.excitation = SqueezeExcitation(channels)
        equal = in_channels == channels
        self.shortcut = nn.Identity() if equal else nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, in_channels, H, W)` => `(B, channels, H, W)`."""
        refined = F.relu(self.norm_in(self.proj_in(hidden_states)))
        refined = F.relu(self.norm(self.pointwise(self.depthwise(refined))))
        return self.excitation(self.proj_out(refined)) + self.shortcut(hidden_states)


class FAPM(nn.Module):
    """Fidelity-aware projection: what all scales share modulates what is particular to each, which is then refined.

    Args:
        in_channels: of the features.
        rank: channels of the bases.
        channels: of the result, for each scale.
    """

    def __init__(self, in_channels: int, rank: int, channels: Sequence[int]):
        super().__init__()
        self.shared = nn.Conv2d(in_channels, rank, 1, bias=False)
        self.own = nn.ModuleList(nn.Conv2d(in_channels, rank, 1, bias=False) for _ in channels)
        self.film = nn.ModuleList(nn.Conv2d(rank, 2 * rank, 1, bias=False) for _ in channels)
        self.refinements = nn.ModuleList(Refinement(rank, width) for width in channels)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """For each scale `(B, in_channels, H, W)` => `(B, channels of the scale, H, W)`."""
        results = []
        for feature, own, film, refine in zip(features, self.own, self.film, self.refinements, strict=True):
            scale, shift = film(self.shared(feature)).chunk(2, dim=1)
            results.append(refine(scale * own(feature) + shift))
        return results


class LinearProjection(nn.Module):
    """The plain alternative: a 1×1 convolution for each scale.

    Args:
        in_channels: of the features.
        channels: of the result, for each scale.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]):
        super().__init__()
        self.scales = nn.ModuleList(nn.Conv2d(in_channels, width, 1) for width in channels)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `FAPM`."""
        return [project(feature) for project, feature in zip(self.scales, features, strict=True)]


class LearnedUpsample(nn.Module):
    """Doublings by one transposed convolution while they fit, then bilinear to the very size."""

    def __init__(self, channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, hidden_states: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """`(B, C, H, W)` => `(B, C, *size)`."""
        while all(2 * side <= wanted for side, wanted in zip(hidden_states.shape[-2:], size)):
            hidden_states = self.up(hidden_states)
        if tuple(hidden_states.shape[-2:]) != tuple(size):
            hidden_states = F.interpolate(hidden_states, size=size, mode="bilinear", align_corners=False)
        return hidden_states
