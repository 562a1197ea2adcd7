"""The non-saturating loss with R1 (Mescheder et al., arXiv 1801.04406), as objectives of the one trainer.

Generator and discriminator take their steps at the same time, from one optimiser: each part of the loss reaches one of
them alone. The generator's loss is the run's; the discriminator's and the penalty are further objectives.
"""

from functools import partial

import torch
import torch.nn.functional as F

PENALISED_SHARE = 4  # R1 is measured on every fourth image: a quarter of its cost, the same expectation


class NonSaturatingObjective:
    """What a generator and its discriminator are trained for.

    Args:
        r1_gamma: weight of the squared gradient of the discriminator at real images.
        max_shift: the discriminator sees images moved by up to this share of their side, which keeps it from learning
            a small data set by heart (DiffAugment, Zhao et al., arXiv 2006.10738).
    """

    def __init__(self, r1_gamma: float = 1.0, max_shift: float = 0.125):
        if r1_gamma < 0 or not 0 <= max_shift < 1:
            raise ValueError(
                f"`r1_gamma` and `max_shift` are {r1_gamma} and {max_shift}; give 0 or more, and a share below 1."
            )
        self.r1_gamma, self.max_shift = r1_gamma, max_shift

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Images are drawn in one step: the log's parts by noise level are parts of no meaning here."""
        return normal

    def loss(self, run, model: torch.nn.Module, batch: dict, bricks: None = None) -> torch.Tensor:
        """The generator's loss of each image `(B,)`; leaves the rest in `batch` for `discriminator_losses`."""
        latents = batch["noise"].flatten(1)[:, : run.model.generator.config.latent_dim]
        augment = partial(shift_images, max_shift=self.max_shift)
        persuaded, drawn, real, gradients = model(
            batch["image"], latents, augment, max(1, len(latents) // PENALISED_SHARE)
        )
        batch["discriminator"] = F.softplus(drawn.float()).mean() + F.softplus(-real.float()).mean()
        batch["r1"] = self.r1_gamma / 2 * gradients.mean()
        return F.softplus(-persuaded.float())


def discriminator_losses(batch: dict, taps: dict) -> dict[str, torch.Tensor]:
    """The discriminator's part of the loss, and the penalty on its gradient: further objectives of the loop."""
    return {name: batch[name] for name in ("discriminator", "r1")}


def shift_images(images: torch.Tensor, max_shift: float) -> torch.Tensor:
    """Each of `images (B, C, H, W)` moved by its own whole number of pixels; the edge is continued.

    torch's own random numbers, which the loop seeds for each step.
    """
    batch, _, height, width = images.shape
    down, across = int(height * max_shift), int(width * max_shift)
    padded = F.pad(images, (across, across, down, down), mode="replicate").permute(0, 2, 3, 1)
    rows = torch.randint(2 * down + 1, (batch, 1)) + torch.arange(height)
    columns = torch.randint(2 * across + 1, (batch, 1)) + torch.arange(width)
    index = (torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :])
    return padded[tuple(part.to(images.device) for part in index)].permute(0, 3, 1, 2)
