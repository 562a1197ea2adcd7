"""What a network is asked to predict, for training, scoring and sampling alike."""

import torch


def _per_image(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.device, torch.float32).view(-1, *(1,) * (like.ndim - 1))


class EDMObjective:
    """EDM's preconditioned denoising (Karras et al., arXiv 2206.00364, table 1).

    The weighted denoising loss `λ(σ)·‖D − y‖²` equals the plain squared error of the raw network output `F` against
    `(y − c_skip·x) / c_out`, since `λ(σ)·c_out(σ)² = 1`; that form is used, it needs no division by small numbers.

    Args:
        p_mean: mean of `ln σ` in training.
        p_std: standard deviation of `ln σ` in training.
        sigma_data: standard deviation of the data, in its range of [-1, 1].
    """

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float = 0.5):
        self.p_mean, self.p_std, self.sigma_data = p_mean, p_std, sigma_data

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Standard normal draws `(B,)` => noise levels σ `(B,)` as in training."""
        return (normal * self.p_std + self.p_mean).exp()

    def network_inputs(
        self, images: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy images, scaled by `c_in`, and the timestep `ln(σ) / 4`.

        Args:
            images: `(B, C, H, W)` in [-1, 1], or latents.
            noise: standard normal, shaped like `images`.
            sigma: `(B,)`.
        """
        level = _per_image(sigma, images)
        noisy = images + noise * level
        return noisy / (level**2 + self.sigma_data**2).sqrt(), sigma.log() / 4

    def target(self, images: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What the raw network output should be: `(y − c_skip·x) / c_out`, shaped like `images`."""
        level = _per_image(sigma, images)
        # c_skip = σd² / (σ² + σd²), c_out = σ σd / √(σ² + σd²), written out to cancel what cancels.
        scale = (level**2 + self.sigma_data**2).sqrt()
        return (images * level / self.sigma_data - noise * self.sigma_data) / scale

    def losses(
        self, output: torch.Tensor, images: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """The weighted denoising loss of each image `(B,)`, in float32, averaged over channels and pixels."""
        return (output.float() - self.target(images, noise, sigma)).square().flatten(1).mean(dim=1)


OBJECTIVES = {"edm": EDMObjective}
