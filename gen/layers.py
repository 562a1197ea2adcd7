"""Networks whose layers can be run one stretch after another, so that another network can take over between two."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Passage(NamedTuple):
    """What the layers and the head of a network need to know of its inputs.

    Attributes:
        size: height and width of the sample.
        grid: rows and columns of the map that the layers work on.
        temb: condition of time and class `(B, D)`.
        context: tokens that the layers attend to `(B, length, cross_attention_dim)`, or `None`.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    temb: torch.Tensor
    context: torch.Tensor | None


class Layered:
    """For networks that are an embedding, a stack of layers of one shape, and a head.

    Attributes:
        layer_names: the modules whose outputs are the maps `(B, layer_width, rows, columns)` behind each layer.
        layer_width: channels of the maps.
    """

    layer_names: Sequence[str] = ()
    layer_width: int = 0

    def begin(self, sample: torch.Tensor, timestep: torch.Tensor | float, **conditions) -> Passage:
        """Check the inputs of `forward`, and embed the conditions."""
        raise NotImplementedError

    def embed(self, sample: torch.Tensor, passage: Passage) -> torch.Tensor:
        """What the first layer reads, `(B, layer_width, rows, columns)`."""
        raise NotImplementedError

    def run_layers(
        self,
        hidden_states: torch.Tensor,
        passage: Passage,
        start: int = 0,
        stop: int | None = None,
        residuals: Sequence[torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """The map behind layer `stop - 1`, from the one before layer `start`."""
        raise NotImplementedError

    def head(self, hidden_states: torch.Tensor, passage: Passage) -> torch.Tensor:
        """The estimate `(B, out_channels, H, W)` from the map behind the last layer."""
        raise NotImplementedError
