"""The paired held-out denoising loss: one frozen list of (image, noise level, noise), the same for every network.

At small scale this is the number to judge by: since every network sees the same noise, differences of 1 to 2% can be
read, where a Fréchet distance of a few thousand samples is noise.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class PairedSet:
    """Held-out images with the noise levels and the noise that every network is scored on.

    Attributes:
        images: `(N, C, H, W)` in [-1, 1].
        labels: `(N,)` class numbers, `None` for unconditional networks.
        levels: standard normal quantiles; the objective turns each into a noise level. Every image meets every level.
        seed: seed of the noise; the noise of image i at level j follows from the seed, i and j.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    levels: tuple[float, ...]
    seed: int = 0

    @classmethod
    def from_images(
        cls, images: torch.Tensor, labels: torch.Tensor | None, num_levels: int = 8, seed: int = 0
    ) -> "PairedSet":
        """Stratified levels: the middles of `num_levels` equally likely parts of the training distribution."""
        quantiles = (torch.arange(num_levels, dtype=torch.float64) + 0.5) / num_levels
        levels = torch.distributions.Normal(0.0, 1.0).icdf(quantiles)
        return cls(images, labels, tuple(levels.tolist()), seed)

    def noise(self, level: int, start: int, stop: int) -> torch.Tensor:
        shape = tuple(self.images.shape[1:])
        draws = [
            np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, image, level])).standard_normal(
                shape, dtype=np.float32
            )
            for image in range(start, stop)
        ]
        return torch.from_numpy(np.stack(draws))


def estimates(model, sample, timestep, class_labels=None, subnet=None, **further) -> list[torch.Tensor]:
    """What a subnet says: the estimate of every brick that ran, of every copy of a composite, or the one of another.

    Args:
        model: a network, wrapped or not.
        sample, timestep, class_labels: what it reads.
        subnet: the name of the one to run; `None` for the network itself.
        further: arguments such as `coordinates`, for networks that take them.
    """
    network = getattr(model, "module", model)
    further |= {} if subnet is None else {"subnet": subnet}
    if getattr(network, "returns_intermediates", False):
        further["return_intermediates"] = True
        return model(sample, timestep, class_labels=class_labels, **further).intermediates
    return [model(sample, timestep, class_labels=class_labels, **further).sample]


@torch.no_grad()
def paired_loss(model, pairs: PairedSet, objective, subnet=None, batch_size: int = 32) -> dict:
    """Score a network on the frozen list.

    Args:
        model: a denoiser, in the mode (train or eval) that is to be scored.
        pairs: the frozen list.
        objective: what the network was trained for (see `brickwork.gen.parameterization`).
        subnet: the name of the one to run; `None` for the network itself.
        batch_size: images at once.

    Returns:
        `loss`: mean of the last estimate's loss; `per_estimate`: mean loss of each of `estimates`; `per_level`:
        `{sigma: loss}` of the last one.
    """
    parameter = next(model.parameters())
    sums = None
    for level, quantile in enumerate(pairs.levels):
        for start in range(0, len(pairs.images), batch_size):
            images = pairs.images[start : start + batch_size].to(parameter.device)
            noise = pairs.noise(level, start, start + len(images)).to(parameter.device)
            labels = None if pairs.labels is None else pairs.labels[start : start + batch_size].to(parameter.device)
            sigma = objective.noise_levels(torch.full((len(images),), quantile)).to(parameter.device)
            sample, timestep = objective.network_inputs(images, noise, sigma)
            losses = [
                objective.losses(estimate, images, noise, sigma).double().sum().item()
                for estimate in estimates(model, sample, timestep, labels, subnet)
            ]
            if sums is None:
                sums = np.zeros((len(pairs.levels), len(losses)))
            sums[level] += losses
    means = sums / len(pairs.images)
    sigmas = objective.noise_levels(torch.tensor(pairs.levels)).tolist()
    return {
        "loss": float(means[:, -1].mean()),
        "per_estimate": means.mean(axis=0).tolist(),
        "per_level": {f"{sigma:.4g}": float(value) for sigma, value in zip(sigmas, means[:, -1])},
    }
