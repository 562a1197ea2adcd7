"""The non-saturating loss with R1 (Mescheder et al., arXiv 1801.04406): the discriminator's side of a GAN.

Generator and discriminator take their steps at the same time: each part of the loss reaches one of them alone, and the
discriminator is an optimiser group of its own. The generator's loss is the task's (`brickwork.training.tasks.gan`).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step


@register_objective("adversarial")
class AdversarialObjective(Objective):
    """What a discriminator is trained for.

    Args:
        r1_gamma: weight of the squared gradient of the discriminator at real images.
        max_shift: the discriminator sees images moved by up to this share of their side, which keeps it from learning
            a small data set by heart (DiffAugment, Zhao et al., arXiv 2006.10738).
        weight: of both losses.
        rate: of the discriminator's optimiser group, over the run's learning rate.
    """

    part = "discriminator."

    def __init__(self, r1_gamma: float = 1.0, max_shift: float = 0.125, weight: float = 1.0, rate: float = 1.0):
        super().__init__(weight, rate)
        if r1_gamma < 0 or not 0 <= max_shift < 1:
            raise ValueError(
                f"`r1_gamma` and `max_shift` are {r1_gamma} and {max_shift}; give 0 or more, and a share below 1."
            )
        self.r1_gamma, self.max_shift = r1_gamma, max_shift

    def augment(self, images: torch.Tensor) -> torch.Tensor:
        """What the discriminator gets to see of images `(B, C, H, W)`."""
        return shift_images(images, self.max_shift)

    def forward(self, step: Step, taps: Mapping[str, torch.Tensor], teacher: Step | None) -> dict[str, torch.Tensor]:
        """`discriminator` and `r1`, of a step of `GanTask`."""
        _, drawn, real, gradients = step.outputs
        return {
            "discriminator": F.softplus(drawn.float()).mean() + F.softplus(-real.float()).mean(),
            "r1": self.r1_gamma / 2 * gradients.mean(),
        }


def shift_images(
    images: torch.Tensor, max_shift: float, mode: str = "replicate", generator: torch.Generator | None = None
) -> torch.Tensor:
    """Each of `images (B, C, H, W)` moved by its own whole number of pixels; the edge is continued.

    Args:
        images: to be moved.
        max_shift: share of a side.
        mode: how the edge is continued.
        generator: by default torch's own random numbers, which the loop seeds for each step.
    """
    batch, _, height, width = images.shape
    down, across = int(height * max_shift), int(width * max_shift)
    padded = F.pad(images, (across, across, down, down), mode=mode).permute(0, 2, 3, 1)
    rows = torch.randint(2 * down + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * across + 1, (batch, 1), generator=generator) + torch.arange(width)
    index = (torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :])
    return padded[tuple(part.to(images.device) for part in index)].permute(0, 3, 1, 2)
