"""Exponential moving averages of weights, with a half-life counted in images."""

from collections.abc import Iterable

import torch


class EMA:
    """Averaged copies of parameters, in float32.

    diffusers' `EMAModel` counts in steps and cannot ramp its half-life up; EDM (arXiv 2206.00364) counts in images, so
    that the average does not depend on the batch size.

    Args:
        parameters: named parameters to follow.
        half_life_images: images after which a weight's share in the average has halved.
        rampup_ratio: the half-life is at most this share of the images seen so far; 0 for none.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        half_life_images: int,
        rampup_ratio: float = 0.05,
    ):
        self.half_life_images, self.rampup_ratio = half_life_images, rampup_ratio
        self.followed = dict(parameters)
        self.average = {name: p.detach().float().clone() for name, p in self.followed.items()}

    def decay(self, images: int, batch_size: int) -> float:
        """The share of the old average that stays when `batch_size` images bring the total to `images`."""
        half_life = self.half_life_images
        if self.rampup_ratio:
            half_life = min(half_life, images * self.rampup_ratio)
        return 0.5 ** (batch_size / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Take in the parameters as they are after `images` images, `batch_size` of them since the last update."""
        new = [parameter.detach().float() for parameter in self.followed.values()]
        torch._foreach_lerp_(list(self.average.values()), new, 1 - self.decay(images, batch_size))

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        """Write the averages into a module with the same parameter names."""
        parameters = dict(module.named_parameters())
        for name, average in self.average.items():
            parameters[name].copy_(average)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        if set(state) != set(self.average):
            different = sorted(set(state) ^ set(self.average))[:5]
            raise ValueError(f"The saved averages belong to another network; they differ in {different}.")
        for name, average in self.average.items():
            average.copy_(state[name])
