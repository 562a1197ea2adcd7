"""What may stand round the network's calls in the sampling loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the network in a call of a pipeline.

    Attributes:
        number: counted from 0.
        timestep: as the scheduler says it.
        subnet: that runs; `None` for the network itself.
    """

    number: int
    timestep: torch.Tensor
    subnet: str | None = None


class Hook:
    """What a pipeline or an extension does round the network's calls; each method may be left as it is.

    Hooks of a call come from its pipeline; those in `pipeline.hooks` are called besides, in every call.
    """

    def before(self, latents: torch.Tensor, evaluation: Evaluation) -> tuple[torch.Tensor, dict[str, Any]]:
        """The latents `(B, C, …)` as the network is to see them, and further arguments of the network."""
        return latents, {}

    def at(self, network: Callable[..., torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor, **arguments):
        """Instead of the network's call, whose result is a tensor; with guidance the batch is twice as long."""
        return network(sample, timestep, **arguments)

    def after(self, output: torch.Tensor, evaluation: Evaluation) -> torch.Tensor:
        """The guided output `(B, C, …)` as the scheduler is to see it; called in the reverse order of `before`."""
        return output

    def after_step(self, latents: torch.Tensor, evaluation: Evaluation) -> torch.Tensor:
        """The latents to go on with, once the scheduler has used an evaluation."""
        return latents
