"""Residuals into a network: what an adapter adds to what named parts of it computed.

A site has the name of the part behind which the residual is added, as taps have. `model.residual_sites(height, width)`
says which there are and of which shape, so that an adapter can be built from it, and `model.residual_arguments` makes
of residuals by site what `forward` takes, under the names that diffusers has for them. A residual of zeros adds
nothing: outputs stay equal bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch

from brickwork.errors import no_unknown


class ResidualPorts(ABC):
    """For networks that take residuals in.

    Attributes:
        ports: the sites behind each argument of `forward`, in the order of its entries.
    """

    ports: Mapping[str, Sequence[str]] = {}

    @abstractmethod
    def residual_sites(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Channels, rows and columns of the residual at every site, for images of `height` × `width`."""

    def residual_arguments(self, residuals: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | tuple]:
        """Residuals by site => keyword arguments of `forward`.

        Raises:
            ValueError: for a site that the network does not have, with the one that comes near.
        """
        known = [site for sites in self.ports.values() for site in sites]
        no_unknown("residuals", residuals, known, type(self).__name__)
        arguments: dict[str, torch.Tensor | tuple] = {}
        for argument, sites in self.ports.items():
            given = tuple(residuals.get(site) for site in sites)
            if any(residual is not None for residual in given):
                arguments[argument] = given if argument.endswith("s") else given[0]
        return arguments

    def _residuals(self, argument: str, given: Sequence[torch.Tensor | None] | None) -> list[torch.Tensor | None]:
        """One entry for each site of an argument of `forward`."""
        sites = self.ports[argument]
        if given is None:
            return [None] * len(sites)
        if isinstance(given, torch.Tensor) or len(given) != len(sites):
            what = "a tensor" if isinstance(given, torch.Tensor) else f"{len(given)} entries"
            raise ValueError(
                f"`{argument}` is {what}; give {len(sites)}, a tensor or None for each of {', '.join(sites)}."
            )
        return list(given)

    def _add(
        self, hidden_states: torch.Tensor, residual: torch.Tensor | None, argument: str, number: int = 0
    ) -> torch.Tensor:
        """`hidden_states (B, C, H, W)` with the residual of an argument's site number `number`."""
        if residual is None:
            return hidden_states
        added = hidden_states + as_map(residual, hidden_states.shape, argument, self.ports[argument][number])
        if added.stride() == hidden_states.stride():
            return added
        # Convolutions choose their kernel, and with it how they round, by strides, those of a batch of one too.
        return hidden_states.new_empty_strided(hidden_states.shape, hidden_states.stride()).copy_(added)


def as_map(residual: torch.Tensor, shape: Sequence[int], argument: str, site: str) -> torch.Tensor:
    """A residual as the map `(B, C, H, W)`, or `(1, C, H, W)`, that a site of this `shape` takes.

    Args:
        residual: such a map, or its pixels in rows as tokens `(B, H * W, C)`.
        shape: `(B, C, H, W)`.
        argument: of `forward`, for the error.
        site: for the error.

    Raises:
        ValueError: naming the site, for another shape.
    """
    batch, channels, height, width = shape
    given = tuple(residual.shape)
    if given[:1] in ((1,), (batch,)):
        if given[1:] == (channels, height, width):
            return residual
        if given[1:] == (height * width, channels):
            return residual.transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f"`{argument}` has shape {given} at {site!r}; give {(batch, channels, height, width)}, or tokens "
        f"{(batch, height * width, channels)}."
    )
