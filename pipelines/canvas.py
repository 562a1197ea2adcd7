"""How windows lie on pictures above the training size, from one evaluation of the network to the next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import Module

from brickwork.errors import one_of
from brickwork.gen.conditioning import coordinate_channels
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.pipelines.sampling import Evaluation, Hook

WINDOWS = ("shifted", "fixed", "tiled")
# Steps through the unit square that leave no gaps: 1/g and 1/g² for the g of g³ = g + 1 (Roberts' R2 sequence).
_PLASTIC = 1.32471795724474602596
_STRIDES = (1 / _PLASTIC**2, 1 / _PLASTIC)


@dataclass(frozen=True)
class WindowPlan(Hook):
    """Where the windows lie in one call of a pipeline. A side up to the training size is left as it is.

    Attributes:
        kind: `"shifted"`, `"fixed"` or `"tiled"`, see `LegoPipeline`.
        height, width: of what the network sees.
        sample_size: side of the training images.
        patch_size: windows shift by multiples of this, so that patches stay patches.
    """

    kind: str
    height: int
    width: int
    sample_size: int
    patch_size: int

    @classmethod
    def of(
        cls, kind: str | None, size: tuple[int, int], network: LegoTransformer2DModel, others: Mapping[str, Module]
    ) -> "WindowPlan":
        """The plan for a network, and others by name that share the steps.

        Raises:
            ValueError: for an unknown kind, and for others that cannot be told how windows lie.
        """
        for name, other in others.items():
            if not isinstance(other, LegoTransformer2DModel):
                raise ValueError(
                    f"`networks` has {name!r}, a {type(other).__name__}, and this pipeline tells networks how windows "
                    "lie; give a LegoTransformer2DModel, or draw with ClassToImagePipeline, which takes any."
                )
        config = network.config
        patches = [side for one in (network, *others.values()) for side in one.config.patch_sizes]
        kind = ("shifted" if config.trained_crops else "fixed") if kind is None else kind
        one_of("windows", kind, WINDOWS)
        return cls(kind, *size, config.sample_size, math.lcm(*patches))

    @property
    def cyclic(self) -> tuple[bool, bool]:
        """Whether windows shift down, and across."""
        shifted = self.kind == "shifted"
        return shifted and self.height > self.sample_size, shifted and self.width > self.sample_size

    def offset(self, evaluation: int) -> tuple[int, int]:
        """Where the first window begins in an evaluation, counted from 0; the first one shifts nothing."""
        return tuple(
            int(evaluation * stride % 1 * (side // self.patch_size)) * self.patch_size if shifts else 0
            for side, stride, shifts in zip((self.height, self.width), _STRIDES, self.cyclic)
        )

    def before(self, sample: torch.Tensor, evaluation: Evaluation) -> tuple[torch.Tensor, dict]:
        """`sample (B, C, H, W)` as the network is to see it, and what the network is told besides."""
        height, width = sample.shape[-2:]
        if any(self.cyclic):
            down, across = self.offset(evaluation.number)
            coordinates = coordinate_channels(height, width, sample.device, torch.float32)
            coordinates, sample = (torch.roll(x, (-down, -across), (2, 3)) for x in (coordinates, sample))
            return sample, {"coordinates": coordinates, "cyclic": self.cyclic}
        if self.kind == "tiled" and max(height, width) > self.sample_size:
            tile = [min(side, self.sample_size) for side in (height, width)]
            coordinates = coordinate_channels(*tile, sample.device, torch.float32)
            repeats = (1, 1, -(-height // tile[0]), -(-width // tile[1]))
            return sample, {"coordinates": coordinates.repeat(repeats)[..., :height, :width]}
        return sample, {}

    def after(self, output: torch.Tensor, evaluation: Evaluation) -> torch.Tensor:
        """What the network returned `(B, C, H, W)`, shifted back."""
        return torch.roll(output, self.offset(evaluation.number), (2, 3)) if any(self.cyclic) else output
