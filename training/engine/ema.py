"""Exponential moving averages of weights, with a half-life counted in images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule

from brickwork import compat
from brickwork.training.engine.checkpoints import load_tensors, trained_tensors


class EMA:
    """Averaged copies of what training changes in a network, in float32, sharded where the network is.

    diffusers' `EMAModel` counts in steps, cannot ramp its half-life up and leaves buffers out; EDM (arXiv 2206.00364)
    counts in images, so that the average does not depend on the batch size. Statistics such as BatchNorm's are
    averaged like weights; whole-number buffers are taken over as they are.

    Args:
        model: the network to follow, as it is after sharding.
        half_life_images: images after which a weight's share in the average has halved.
        rampup_ratio: the half-life is at most this share of the images seen so far; 0 for none.
        frozen: names of what does not learn, by default what is frozen now.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        half_life_images: int,
        rampup_ratio: float = 0.05,
        frozen: set[str] | None = None,
    ):
        self.half_life_images, self.rampup_ratio = half_life_images, rampup_ratio
        self.model, self.followed = model, trained_tensors(model, frozen)
        self.average = {
            name: tensor.detach().float().clone() if tensor.is_floating_point() else tensor.detach().clone()
            for name, tensor in self.followed.items()
        }

    def decay(self, images: int, batch_size: int) -> float:
        """The share of the old average that stays when `batch_size` images bring the total to `images`."""
        half_life = self.half_life_images
        if self.rampup_ratio:
            half_life = min(half_life, images * self.rampup_ratio)
        return 0.5 ** (batch_size / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Take in the weights as they are after `images` images, `batch_size` of them since the last update."""
        weight = 1 - self.decay(images, batch_size)
        floats = {name: average for name, average in self.average.items() if average.is_floating_point()}
        # Of a sharded network, parameters are DTensors and statistics are not; one call takes one kind.
        for kind in {type(average) for average in floats.values()}:
            names = [name for name, average in floats.items() if type(average) is kind]
            followed = [self.followed[name].detach().float() for name in names]
            compat.lerp_all_([floats[name] for name in names], followed, weight)
        for name in self.average.keys() - floats.keys():
            self.average[name].copy_(self.followed[name])

    @contextmanager
    def applied(self) -> Iterator[torch.nn.Module]:
        """The network with the averages in place of its weights, evaluating, without gradients or compiled graphs.

        Leaving puts back the same bits. Nothing but the weights is held twice, and nothing needs to be built anew, so
        this works for any network, sharded and with adapters too.
        """
        kept = {name: tensor.detach().clone() for name, tensor in self.followed.items()}
        was_training = self.model.training
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                self._write(self.average)
                yield self.model.eval()
        finally:
            self.model.train(was_training)
            self._write(kept)

    def settle(self) -> None:
        """Put the averages in place of the weights for good."""
        self._write(self.average)

    @torch.no_grad()
    def _write(self, tensors: dict[str, torch.Tensor]) -> None:
        # A sharded module may still hold the full weights of its last forward pass, which would be used again.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for name, tensor in self.followed.items():
            tensor.copy_(tensors[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over saved averages, full tensors by name.

        Raises:
            ValueError: for the averages of another network.
        """
        load_tensors(self.average, state)
