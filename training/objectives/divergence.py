"""The divergence of an autoencoder's latents from a standard normal."""

from collections.abc import Mapping

import torch

from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step


@register_objective("kl")
class DivergenceObjective(Objective):
    """KL divergence of what an `AutoencoderKL` codes from a standard normal, in nats a latent number."""

    taps = ("quant_conv",)

    def forward(self, step: Step, taps: Mapping[str, torch.Tensor], teacher: Step | None) -> dict[str, torch.Tensor]:
        mean, logvar = taps["quant_conv"].float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        return {"kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()}
