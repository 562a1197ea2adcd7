"""What a network is asked to predict, for training, scoring and sampling alike."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from brickwork.errors import explained, no_unknown, one_of

SIGMA_DATA = 0.5  # standard deviation of pictures in [-1, 1], where an objective does not say
CLEAN = 0.01  # σ of what is shown "without noise", within the levels that are trained


def _per_image(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.device, torch.float32).view(-1, *(1,) * (like.ndim - 1))


def _squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean squared error of each image `(B,)`, in float32."""
    if output.shape != target.shape:
        raise ValueError(
            f"The network's output has shape {tuple(output.shape)} where {tuple(target.shape)} is wanted; build it "
            "with `out_channels` equal to `in_channels` (twice as many, with a learned variance, go with the "
            "objective 'epsilon' alone)."
        )
    return (output.float() - target).square().flatten(1).mean(dim=1)


class Objective(ABC):
    """What is predicted of images `(B, C, H, W)`, in [-1, 1] or latents, with standard normal noise of their shape.

    A noise level is one number an image, `(B,)`; what it means is the objective's own.
    """

    @abstractmethod
    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Standard normal draws `(B,)` => noise levels `(B,)` as in training."""

    @abstractmethod
    def network_inputs(
        self, images: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy images, scaled as the network reads them, and its timesteps `(B,)`."""

    @abstractmethod
    def target(self, images: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """What the raw network output should be, shaped like `images`."""

    @abstractmethod
    def scheduler(self) -> SchedulerMixin:
        """A scheduler of diffusers that samples from a network trained so."""

    def sigma_of(self, level: torch.Tensor) -> torch.Tensor:
        """Noise levels as schedules of subnets count them, and schedulers in their `sigmas`."""
        return level

    def level_of(self, sigma: torch.Tensor) -> torch.Tensor:
        """Undo `sigma_of`, as nearly as there are levels."""
        return sigma

    def clean_inputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images next to without noise, scaled as the network reads them, and its timesteps `(B,)`."""
        level = self.level_of(torch.full((len(images),), CLEAN, device=images.device))
        return self.network_inputs(images, torch.zeros_like(images), level)

    @abstractmethod
    def displacement(self, sigma: torch.Tensor) -> torch.Tensor:
        """How far an error of the output moves the finished sample, for each unit of `sigma` that a step covers.

        Along the exact path of Gaussian data of standard deviation `SIGMA_DATA`: the derivative of the path's slope
        with respect to the output, times how much of a shift is left at the end.
        """

    def losses(
        self, output: torch.Tensor, images: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> torch.Tensor:
        """The loss of each image `(B,)`, in float32, averaged over channels and pixels."""
        return _squared_error(output, self.target(images, noise, level))


class EDMObjective(Objective):
    """EDM's preconditioned denoising (Karras et al., arXiv 2206.00364, table 1).

    The weighted denoising loss `λ(σ)·‖D − y‖²` equals the plain squared error of the raw network output `F` against
    `(y − c_skip·x) / c_out`, since `λ(σ)·c_out(σ)² = 1`; that form is used, it needs no division by small numbers.

    Args:
        p_mean: mean of `ln σ` in training.
        p_std: standard deviation of `ln σ` in training.
        sigma_data: standard deviation of the data, in its range of [-1, 1].
    """

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float = 0.5):
        if not (p_std > 0 and sigma_data > 0):
            raise ValueError(f"`p_std` and `sigma_data` are {p_std} and {sigma_data}; give positive numbers.")
        self.p_mean, self.p_std, self.sigma_data = float(p_mean), p_std, sigma_data

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """σ."""
        return (normal * self.p_std + self.p_mean).exp()

    def network_inputs(
        self, images: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy images times `c_in`, and `ln(σ) / 4`."""
        level = _per_image(sigma, images)
        noisy = images + noise * level
        return noisy / (level**2 + self.sigma_data**2).sqrt(), sigma.log() / 4

    def target(self, images: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`(y − c_skip·x) / c_out`."""
        level = _per_image(sigma, images)
        # c_skip = σd² / (σ² + σd²), c_out = σ σd / √(σ² + σd²), written out to cancel what cancels.
        scale = (level**2 + self.sigma_data**2).sqrt()
        return (images * level / self.sigma_data - noise * self.sigma_data) / scale

    def scheduler(self) -> SchedulerMixin:
        return EDMEulerScheduler(sigma_data=self.sigma_data)

    def displacement(self, sigma: torch.Tensor) -> torch.Tensor:
        """The derivative of `σ_data · arctan(σ / σ_data)`."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)


class EpsilonObjective(Objective):
    """Predict the noise (DDPM, arXiv 2006.11239); with twice the channels, the variance as well (arXiv 2102.09672).

    Noise levels are timesteps, whole numbers from 0 up.

    Args:
        num_train_timesteps: number of timesteps.
        beta_schedule: as in diffusers' `DDPMScheduler`: `"linear"` (DiT), `"scaled_linear"` (Stable Diffusion) ….
        beta_start: first beta.
        beta_end: last beta.
        min_snr_gamma: weight each image by `min(SNR, gamma)` in terms of the clean image's error (arXiv 2303.09556);
            `None` weighs all timesteps alike in terms of what is predicted.
    """

    prediction_type = "epsilon"

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        min_snr_gamma: float | None = None,
    ):
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise ValueError(f"`min_snr_gamma` is {min_snr_gamma}; give a positive number, or None.")
        self.num_train_timesteps = int(num_train_timesteps)
        self.min_snr_gamma = min_snr_gamma
        self.betas = {"beta_schedule": beta_schedule, "beta_start": beta_start, "beta_end": beta_end}
        self.alphas_cumprod = DDPMScheduler(self.num_train_timesteps, **self.betas).alphas_cumprod.double()

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Timesteps, each equally likely."""
        share = torch.special.ndtr(normal.double())
        return (share * self.num_train_timesteps).floor().clamp(0, self.num_train_timesteps - 1).float()

    def _signal_and_noise(self, timestep: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`√ᾱ` and `√(1 − ᾱ)`, `(B, 1, 1, 1)`."""
        cumprod = self.alphas_cumprod[timestep.long().cpu()]
        return _per_image(cumprod.sqrt(), like), _per_image((1 - cumprod).sqrt(), like)

    def network_inputs(
        self, images: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`√ᾱ·x + √(1 − ᾱ)·ε`, and the timestep."""
        signal, scale = self._signal_and_noise(timestep, images)
        return signal * images + scale * noise, timestep

    def target(self, images: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The noise."""
        return noise

    def weights(self, timestep: torch.Tensor) -> torch.Tensor:
        """The weight of each image's squared error `(B,)`, float32."""
        if self.min_snr_gamma is None:
            return torch.ones_like(timestep, dtype=torch.float32)
        cumprod = self.alphas_cumprod[timestep.long().cpu()]
        snr = cumprod / (1 - cumprod)
        return (snr.clamp(max=self.min_snr_gamma) / self._snr_of_target(snr)).float().to(timestep.device)

    def _snr_of_target(self, snr: torch.Tensor) -> torch.Tensor:
        """By how much the error of the target outweighs that of the clean image: `ε` has SNR times the error."""
        return snr

    def losses(
        self, output: torch.Tensor, images: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        target = self.target(images, noise, timestep)
        if output.shape[1] != 2 * images.shape[1] or self.prediction_type != "epsilon":
            return self.weights(timestep) * _squared_error(output, target)
        prediction, variance = output.float().chunk(2, dim=1)
        bound = self.variational_bound(prediction.detach(), variance, images, noise, timestep)
        return self.weights(timestep) * _squared_error(prediction, target) + bound

    def variational_bound(
        self,
        epsilon: torch.Tensor,
        variance: torch.Tensor,
        images: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor,
    ) -> torch.Tensor:
        """The bound's term of each image `(B,)`, in bits per number, for a variance between its two extremes.

        Args:
            epsilon: the predicted noise; its gradient is not wanted here.
            variance: from -1, the posterior's variance, to 1, beta; interpolated on a log scale.
            images: `(B, C, H, W)` in [-1, 1].
            noise: the true noise.
            timestep: `(B,)`.
        """
        index = timestep.long().cpu()
        cumprod = self.alphas_cumprod
        before = torch.cat([torch.ones_like(cumprod[:1]), cumprod[:-1]])
        alphas = cumprod / before
        posterior = (1 - alphas) * (1 - before) / (1 - cumprod)
        posterior[0] = posterior[1]  # zero, which has no logarithm

        def of(values: torch.Tensor) -> torch.Tensor:
            return _per_image(values[index], images)

        low, high = of(posterior.log()), of((1 - alphas).log())
        log_variance = low + (variance + 1) / 2 * (high - low)
        # Both means are affine in the noise, so their difference is that of the noises.
        distance = of((1 - alphas) / ((1 - cumprod) * alphas).sqrt()) * (epsilon - noise)
        divergence = 0.5 * (log_variance - low + (low - log_variance).exp() - 1 + distance**2 * (-log_variance).exp())
        mean_at_zero = images - distance
        first = -_discretised_log_likelihood(images, mean_at_zero, log_variance / 2)
        bound = torch.where(_per_image(index == 0, images) > 0, first, divergence)
        return bound.flatten(1).mean(dim=1) / math.log(2)

    def _ratios(self) -> torch.Tensor:
        """Noise over signal of every timestep, rising."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def sigma_of(self, level: torch.Tensor) -> torch.Tensor:
        return self._ratios()[level.long().cpu()].to(level.device, torch.float64)

    def level_of(self, sigma: torch.Tensor) -> torch.Tensor:
        """The timestep whose noise is nearest."""
        distance = (self._ratios().log() - sigma.double().cpu().clamp(min=1e-12).log()[:, None]).abs()
        return distance.argmin(dim=1).to(sigma.device, torch.float32)

    def displacement(self, sigma: torch.Tensor) -> torch.Tensor:
        """In samples over their signal the slope is the noise itself."""
        return SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()

    def scheduler(self) -> SchedulerMixin:
        return DDIMScheduler(
            self.num_train_timesteps, **self.betas, prediction_type=self.prediction_type, clip_sample=False
        )


class VObjective(EpsilonObjective):
    """Predict `v = √ᾱ·ε − √(1 − ᾱ)·x` (Salimans & Ho, arXiv 2202.00512); arguments as for `EpsilonObjective`."""

    prediction_type = "v_prediction"

    def target(self, images: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The velocity."""
        signal, scale = self._signal_and_noise(timestep, images)
        return signal * noise - scale * images

    def _snr_of_target(self, snr: torch.Tensor) -> torch.Tensor:
        return snr + 1

    def displacement(self, sigma: torch.Tensor) -> torch.Tensor:
        """The noise moves by `√ᾱ` of what the velocity does."""
        return super().displacement(sigma) / (1 + sigma**2).sqrt()


class FlowObjective(Objective):
    """Rectified flow (arXiv 2403.03206): predict `ε − x` between the image (level 0) and the noise (level 1).

    Args:
        mean: mean of the level's logit in training.
        std: standard deviation of the level's logit in training.
        shift: moves levels towards noise, `shift·t / (1 + (shift − 1)·t)`; more than 1 for large images.
        num_train_timesteps: the network's timestep is the level times this.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, shift: float = 1.0, num_train_timesteps: int = 1000):
        if not (std > 0 and shift > 0):
            raise ValueError(f"`std` and `shift` are {std} and {shift}; give positive numbers.")
        self.mean, self.std, self.shift = mean, std, shift
        self.num_train_timesteps = int(num_train_timesteps)

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Between 0 and 1."""
        level = (normal * self.std + self.mean).sigmoid()
        return self.shift * level / (1 + (self.shift - 1) * level)

    def network_inputs(
        self, images: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(1 − t)·x + t·ε`, and the timestep."""
        share = _per_image(level, images)
        return (1 - share) * images + share * noise, level * self.num_train_timesteps

    def target(self, images: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The velocity from the image to the noise."""
        return noise - images

    def displacement(self, sigma: torch.Tensor) -> torch.Tensor:
        return SIGMA_DATA / ((1 - sigma) ** 2 * SIGMA_DATA**2 + sigma**2).sqrt()

    def scheduler(self) -> SchedulerMixin:
        return FlowMatchEulerDiscreteScheduler(self.num_train_timesteps, shift=self.shift)


def _discretised_log_likelihood(images: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """How likely a Gaussian makes the 8-bit value of each number of `images`, in [-1, 1], in nats."""
    centred, inverse = images - mean, (-log_std).exp()
    above = torch.special.ndtr((centred + 1 / 255) * inverse)
    below = torch.special.ndtr((centred - 1 / 255) * inverse)
    share = torch.where(images < -0.999, above, torch.where(images > 0.999, 1 - below, above - below))
    return share.clamp(min=1e-12).log()


def objective_of(scheduler: SchedulerMixin, min_snr_gamma: float | None = None) -> Objective:
    """What a scheduler of diffusers, whose network predicts what it says, was made for.

    Args:
        scheduler: of the EDM family, of flow matching, or any with betas.
        min_snr_gamma: see `EpsilonObjective`.

    Raises:
        ValueError: for other schedulers and predictions.
    """
    config = scheduler.config
    if hasattr(scheduler, "precondition_outputs") and config.get("prediction_type") == "epsilon":
        return EDMObjective(sigma_data=config.sigma_data)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return FlowObjective(shift=config.shift, num_train_timesteps=config.num_train_timesteps)
    kind = {"epsilon": EpsilonObjective, "v_prediction": VObjective}.get(config.get("prediction_type"))
    if kind is None or hasattr(scheduler, "precondition_outputs") or "beta_schedule" not in config:
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__} of prediction_type {config.get('prediction_type')!r}, of "
            "which it is not known what the network predicts; give one of the EDM family with 'epsilon', "
            "FlowMatchEulerDiscreteScheduler, or one with betas and 'epsilon' or 'v_prediction'."
        )
    betas = config.beta_schedule, config.beta_start, config.beta_end
    objective = kind(config.num_train_timesteps, *betas, min_snr_gamma)
    # With betas that are given one by one, or rescaled to end in pure noise.
    objective.alphas_cumprod = DDPMScheduler.from_config(config).alphas_cumprod.double()
    return objective


OBJECTIVES = {"edm": EDMObjective, "epsilon": EpsilonObjective, "v": VObjective, "flow": FlowObjective}


def make_objective(name: str, options: Mapping[str, Any], key: str = "objective") -> Objective:
    """An objective by its name and options; a `ValueError` says what does not fit."""
    kind, path = one_of(key, name, OBJECTIVES), f"{key.removesuffix('.type')}.options"
    no_unknown(path, options, inspect.signature(kind).parameters, name)
    with explained(f"`{path}` is {options}; a value is of the wrong kind", TypeError):
        return kind(**options)
