"""What an autoencoder of pictures learns: to give them back at any size, from latents near a standard normal."""

import numpy as np
import torch
from diffusers import AutoencoderKL

from brickwork.pipelines.latents import moments
from brickwork.training.data.images import LabelledImages
from brickwork.training.engine.loop import Run

STEP = 8  # between the sizes of a step's pictures, in pixels
MEASURED = 256


class Reconstruction:
    """L1 plus squared error of a picture coded and decoded, and the weighted KL divergence of its latents.

    Args:
        kl_weight: of the divergence from a standard normal, in nats a latent number.
        min_size: shortest side of the training pictures in pixels.
    """

    def __init__(self, kl_weight: float = 5e-4, min_size: float = 32):
        if kl_weight < 0 or min_size < STEP:
            raise ValueError(
                f"`objective.options` are kl_weight {kl_weight} and min_size {min_size}; give 0 or more, and at least "
                f"{STEP}."
            )
        self.kl_weight, self.min_size = kl_weight, int(min_size)

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Pictures are coded as they are: the log's parts by noise level are parts of no meaning here."""
        return normal

    def loss(self, run: Run, model: torch.nn.Module, batch: dict, bricks=None) -> torch.Tensor:
        """The loss of each picture `(B,)`, at a size of the step's own."""
        pictures = self.at_random_size(batch["image"])
        error = model(pictures, sample_posterior=True).sample.float() - pictures
        return (error.abs() + error.square()).flatten(1).mean(dim=1)

    def divergence(self, batch: dict, taps: dict) -> dict[str, torch.Tensor]:
        """KL divergence of the coded latents, a further objective of the loop."""
        mean, logvar = taps["quant_conv"].float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        return {"kl": self.kl_weight * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()}

    def at_random_size(self, pictures: torch.Tensor) -> torch.Tensor:
        """The whole pictures, smaller, or as large a part of them; small sizes come up in proportion to their speed.

        torch's own random numbers, which the loop seeds for each step.
        """
        largest = pictures.shape[-1]
        sizes = torch.arange(self.min_size, largest + 1, STEP)
        size = int(sizes[torch.multinomial(1 / sizes.float().square(), 1)])
        if torch.rand(()) < 0.5:
            return torch.nn.functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)
        top, left = torch.randint(largest - size + 1, (2,)).tolist()
        return pictures[:, :, top : top + size, left : left + size]


def latent_scale(vae: AutoencoderKL, images: LabelledImages, rows: np.ndarray) -> float:
    """One over the standard deviation of the latents of pictures at half the largest size."""
    side = images.size // 2
    chosen = rows[:: max(1, len(rows) // MEASURED)]
    pictures = torch.stack([torch.from_numpy(images.sample(int(row))[0]) for row in chosen])
    with torch.no_grad():
        small = torch.nn.functional.interpolate(pictures, size=side, mode="bilinear", antialias=True)
        latents = torch.cat([moments(vae, part)[0] for part in small.split(16)])
    return 1 / latents.double().std().item()
