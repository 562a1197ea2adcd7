"""Where a denoiser takes residuals in, ours and diffusers' UNets alike."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

_T2I = "down_intrablock_additional_residuals"
_STAGES = ("CrossAttnDownBlock2D", "DownBlock2D")
_BLOCKS = 4  # of a network of one resolution


class DiffusersSites:
    """The stages of a UNet's encoder, as a T2I-Adapter has them (Mou et al., arXiv 2302.08453).

    Attributes:
        widths: channels of each site, from the finest to the coarsest.
    """

    def __init__(self, network: UNet2DConditionModel):
        strange = {type(block).__name__ for block in network.down_blocks} - set(_STAGES)
        if strange:
            raise ValueError(f"the UNet has stages of {', '.join(sorted(strange))}, which take no residuals.")
        self.stages = [(type(block).__name__ == _STAGES[0], bool(block.downsamplers)) for block in network.down_blocks]
        self.widths = list(network.config.block_out_channels)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of each site, for a sample `(B, C, height, width)`."""
        found, size = [], (height, width)
        for attends, halves in self.stages:
            below = tuple(-(-side // 2) for side in size) if halves else size
            found.append(size if attends else below)  # diffusers adds behind the downsampler where nothing attends
            size = below
        return found

    def arguments(self, residuals: Sequence[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """A residual for each site => arguments of the network's `forward`."""
        return {_T2I: list(residuals)}


class PortSites:
    """As `DiffusersSites`, of a network of ours: its stages and the middle, or some blocks of one resolution."""

    def __init__(self, network: nn.Module):
        self.network, ports = network, network.ports
        if _T2I in ports:
            self.names = [*ports[_T2I], *ports.get("mid_block_additional_residual", ())]
        else:
            every = [name for names in ports.values() for name in names]
            last, count = len(every) - 1, min(_BLOCKS, len(every))
            self.names = [every[round(number * last / max(1, count - 1))] for number in range(count)]
        side = network.config.sample_size
        self.widths = [network.residual_sites(side, side)[name][0] for name in self.names]

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        shapes = self.network.residual_sites(height, width)
        return [shapes[name][1:] for name in self.names]

    def arguments(self, residuals: Sequence[torch.Tensor]) -> dict[str, Any]:
        return self.network.residual_arguments(dict(zip(self.names, residuals)))


def sites_of(network: nn.Module) -> DiffusersSites | PortSites:
    """The sites of a network.

    Raises:
        ValueError: for one that takes no residuals.
    """
    if isinstance(network, UNet2DConditionModel):
        return DiffusersSites(network)
    if getattr(network, "ports", None) and hasattr(network, "residual_sites"):
        return PortSites(network)
    raise ValueError(
        f"a {type(network).__name__} takes no residuals; give a BlockUNet2DModel, a BlockTransformer2DModel, a "
        "LegoTransformer2DModel or diffusers' UNet2DConditionModel, or a pipeline with one."
    )
