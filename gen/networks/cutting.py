"""Networks that can be cut between their layers, so that another network of their family takes over."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Site(NamedTuple):
    """A map that crosses a cut.

    Attributes:
        tap: the part of the network whose output it is.
        group: maps of one group have one height and width in all networks of the family.
        channels: of the map.
    """

    tap: str
    group: int
    channels: int


class Cuttable(ABC):
    """For networks of layers that are run one after another.

    Attributes:
        layer_names: the layers, or stages, or bricks, in order.
        has_head: whether what comes behind the last layer is worth running behind another network's layers.
        aligned: whether behind layer n of one network only layer n + 1 of another can follow.
    """

    layer_names: Sequence[str] = ()
    has_head = True
    aligned = False

    @abstractmethod
    def seam(self, layers: int) -> list[Site]:
        """The maps that the first `layers` layers leave to the others, by group."""

    @abstractmethod
    def run_front(self, layers: int, sample: torch.Tensor, timestep: torch.Tensor, **conditions) -> list[torch.Tensor]:
        """The maps of `seam(layers)`, of inputs of `forward`."""

    @abstractmethod
    def run_end(
        self, start: int, maps: Sequence[torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor, **conditions
    ) -> torch.Tensor:
        """The estimate `(B, out_channels, H, W)`, from maps in place of those of `seam(start)`."""

    def family(self) -> dict[str, Any]:
        """What networks must agree in, beside what they read and estimate, to be stitched."""
        return {}


def paired_sites(front: Sequence[Site], end: Sequence[Site]) -> list[tuple[int, int]]:
    """For each map that is wanted at an end, the number of the one at a front that stands in for it, and its own.

    Within a group they correspond by their share of the depth.
    """
    pairs = []
    for number, site in enumerate(end):
        given = [place for place, other in enumerate(front) if other.group == site.group]
        wanted = [place for place, other in enumerate(end) if other.group == site.group]
        share = (wanted.index(number) + 1) * len(given) / len(wanted)
        pairs.append((given[max(0, round(share) - 1)], number))
    return pairs
