"""An autoencoder whose latents are those of another one, so that networks trained on these go on with it."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from brickwork.pipelines import latents
from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step, Task


@register_objective("same_latents")
class SameLatentsObjective(Objective):
    """The mean squared error of the latents' means to those of a trained autoencoder, whose variance counts as one.

    Args:
        teacher: an `AutoencoderKL` of as many latent channels and pixels a latent, of any width: a folder, or the name
            of weights that ship.
        weight: of the loss.
    """

    taps = ("quant_conv",)
    asks = True  # for the latents alone, not for its picture

    def __init__(self, teacher: str, weight: float = 1.0):
        super().__init__(weight)
        self.teacher = teacher

    def join(self, task: Task, networks: Mapping[str, torch.nn.Module]) -> None:
        other = networks[self.teacher]
        shapes = [(vae.config.latent_channels, latents.pixels_per_latent(vae)) for vae in (task.network, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"`teacher` is {self.teacher!r}, whose latents have {shapes[1][0]} channels and {shapes[1][1]} pixels "
                f"each way; this network's {shapes[0][0]} and {shapes[0][1]}. Take them equal "
                f"(`model.config.latent_channels`, the length of `block_out_channels`)."
            )
        self.other = (other,)  # in a tuple, so that it is no part of what is trained and saved

    def forward(self, step: Step, taps: Mapping[str, torch.Tensor], teacher: None) -> dict[str, torch.Tensor]:
        mean = taps["quant_conv"].float().chunk(2, dim=1)[0]
        wanted, _ = latents.moments(self.other[0], step.images)
        return {"same_latents": F.mse_loss(latents.scale(self.other[0], mean), latents.scale(self.other[0], wanted))}
