"""Heun's second-order sampler with churn, Algorithm 2 of Karras et al., "Elucidating the Design Space of
Diffusion-Based Generative Models" (arXiv 2206.00364), which diffusers lacks."""

import math
from collections.abc import Sequence

import torch
from diffusers import EDMEulerScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from brickwork.errors import one_of

SIGMA_SCHEDULES = ("karras", "exponential")
PREDICTION_TYPES = ("epsilon", "v_prediction")
FINAL_SIGMAS_TYPES = ("zero", "sigma_min")
EDMHeunSchedulerOutput = EDMEulerSchedulerOutput
_DEVICES_WITHOUT_FLOAT64 = ("mps", "npu", "neuron")


class EDMHeunScheduler(EDMEulerScheduler):
    """EDM's stochastic Heun sampler, with the preconditioning of diffusers' `EDMEulerScheduler`.

    A step from one noise level to the next takes two evaluations of the network, except the last one, so N steps have
    2N - 1 `timesteps`: even positions begin a step, odd ones correct it (`order` is 2, as in diffusers'
    `HeunDiscreteScheduler`). Arithmetic is done in float64, as in the authors' sampler, and handed back in the dtype
    of the sample: keep the sample in float64 between calls to reproduce theirs.

    Churn raises the noise level before a step. `timesteps` hold the raised level, which the network is told, and the
    noise is added where the step before ends; before the first step two Gaussians would be added to one another, so
    `init_noise_sigma` stands for both.

    Args:
        sigma_min: lowest noise level above zero.
        sigma_max: highest noise level.
        sigma_data: standard deviation of the data.
        sigma_schedule: spacing of the noise levels, `"karras"` or `"exponential"`.
        num_train_timesteps: number of noise levels before `set_timesteps` is called.
        prediction_type: `"epsilon"` (EDM's F) or `"v_prediction"` (its negative).
        rho: exponent of the Karras spacing.
        final_sigmas_type: where the last step lands, `"zero"` or `"sigma_min"`.
        s_churn: amount of churn, shared out over the steps; 0 for the deterministic sampler.
        s_tmin: lowest noise level that is churned.
        s_tmax: highest noise level that is churned, `None` for no limit.
        s_noise: factor on the noise added by churn.
    """

    _compatibles = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]
    order = 2

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float | None = None,
        s_noise: float = 1.0,
    ):
        one_of("sigma_schedule", sigma_schedule, SIGMA_SCHEDULES)
        one_of("prediction_type", prediction_type, PREDICTION_TYPES)
        one_of("final_sigmas_type", final_sigmas_type, FINAL_SIGMAS_TYPES)
        if not 0 < sigma_min < sigma_max or sigma_data <= 0 or rho <= 0:
            raise ValueError(
                f"`sigma_min`, `sigma_max`, `sigma_data` and `rho` are {sigma_min}, {sigma_max}, {sigma_data} and "
                f"{rho}; all must be above 0, and `sigma_min` below `sigma_max`."
            )
        if s_churn < 0 or s_noise < 0:
            raise ValueError(f"`s_churn` and `s_noise` are {s_churn} and {s_noise}; neither may be below 0.")
        self.set_timesteps(num_train_timesteps)
        self.num_inference_steps: int | None = None

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the sample that the first evaluation of the network expects."""
        return math.hypot(self._first_sigma, self._churn_stds[0])

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next evaluation begins a step rather than correcting one."""
        return self._begun is None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin in the middle, as image-to-image does: `begin_index` is an even position of `timesteps`."""
        if begin_index % 2 or not 0 <= begin_index < len(self.timesteps):
            raise ValueError(
                f"`begin_index` is {begin_index}; a step begins at every even position from 0 to "
                f"{len(self.timesteps) - 1} of `timesteps`."
            )
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        """Lay out the noise levels.

        Args:
            num_inference_steps: number of steps, at least 1; may be left out with `sigmas`.
            device: device of `timesteps`.
            sigmas: falling noise levels above zero to begin the steps at, instead of the configured spacing.
        """
        if sigmas is None:
            levels = self._spaced_levels(num_inference_steps)
        else:
            levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
        if levels.ndim != 1 or len(levels) == 0 or not (levels > 0).all() or not (levels.diff() < 0).all():
            raise ValueError(f"`sigmas` is {sigmas}; give at least one noise level above zero, each below the last.")
        if num_inference_steps is not None and num_inference_steps != len(levels):
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps}, but `sigmas` has {len(levels)} levels; leave it out."
            )
        limit = math.inf if self.config.s_tmax is None else self.config.s_tmax
        churned = (self.config.s_tmin <= levels) & (levels <= limit)
        gamma = churned * min(self.config.s_churn / len(levels), math.sqrt(2) - 1)
        raised = levels * (1 + gamma)
        last = levels[-1:] if self.config.final_sigmas_type == "sigma_min" else levels.new_zeros(1)

        self.num_inference_steps = len(levels)
        # Step i evaluates the network at `raised[i]` and, to correct itself, where it lands.
        self.sigmas = torch.stack([raised, torch.cat([levels[1:], last])], dim=1).flatten()
        self.timesteps = self.precondition_noise(self.sigmas[:-1]).to(device=device, dtype=torch.float32)
        self._first_sigma = levels[0].item()
        self._churn_stds = (self.config.s_noise * (raised**2 - levels**2).sqrt()).tolist()
        self._step_index = None
        self._begin_index = None
        # Between the two evaluations of a step: the sample that it began with, and dx/dsigma there.
        self._begun: tuple[torch.Tensor, torch.Tensor] | None = None

    def _spaced_levels(self, num_inference_steps: int | None) -> torch.Tensor:
        if num_inference_steps is None or num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` is {num_inference_steps}; at least 1 step is needed.")
        ramp = torch.linspace(0, 1, num_inference_steps, dtype=torch.float64)
        high, low = self.config.sigma_max, self.config.sigma_min
        if self.config.sigma_schedule == "exponential":
            return torch.exp(math.log(high) + ramp * (math.log(low) - math.log(high)))
        rho = self.config.rho
        return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """The sample as the network reads it at this evaluation, in the dtype of `sample`."""
        if self._step_index is None:
            self._init_step_index(timestep)
        return self.precondition_inputs(sample, self.sigmas[self._step_index].item())

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """Position of `timestep`; where it occurs twice, the one that begins a step."""
        timesteps = self.timesteps if schedule_timesteps is None else schedule_timesteps
        positions = (timesteps == timestep).nonzero().flatten().tolist()
        if not positions:
            raise ValueError(f"`timestep` is {timestep}, which is not among the scheduler's `timesteps`; take one.")
        return next((position for position in positions if position % 2 == 0), positions[0])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> EDMHeunSchedulerOutput | tuple:
        """Use one evaluation of the network: begin a step, or correct the one begun.

        Args:
            model_output: `(B, C, H, W)`, the network's raw output for `scale_model_input(sample, timestep)`.
            timestep: the entry of `timesteps` that it was evaluated at.
            sample: `(B, C, H, W)`, the current sample, not scaled.
            generator: source of the churn noise, one for the batch or a list with one an image.
            return_dict: return an `EDMHeunSchedulerOutput` rather than `(prev_sample, pred_original_sample)`: the
                sample for the next evaluation and the denoised estimate of this one, in the dtype of `sample`.
        """
        if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
            raise ValueError(f"`timestep` is {timestep}, an integer; pass an entry of the scheduler's `timesteps`.")
        if self._step_index is None:
            self._init_step_index(timestep)
        index = self._step_index
        if index % 2 and self._begun is None:
            raise ValueError(
                f"Position {index} of `timesteps` corrects a step that was never begun; begin at an even one."
            )

        state, sigma = sample.to(float_dtype_for(sample.device)), self.sigmas[index].item()
        denoised = self.precondition_outputs(state, model_output.to(state.dtype), sigma)
        slope = (state - denoised) / sigma
        if index % 2 == 0:
            self._begun = state, slope
            prev_sample = state + (self.sigmas[index + 1].item() - sigma) * slope
        else:
            (start, first_slope), length = self._begun, sigma - self.sigmas[index - 1].item()
            prev_sample = start + length * 0.5 * (first_slope + slope)
            prev_sample = self._churn(prev_sample, (index + 1) // 2, generator)
        if index % 2 or index == len(self.timesteps) - 1:  # the step is over
            self._begun = None
        self._step_index += 1

        prev_sample, denoised = prev_sample.to(sample.dtype), denoised.to(sample.dtype)
        if not return_dict:
            return prev_sample, denoised
        return EDMHeunSchedulerOutput(prev_sample=prev_sample, pred_original_sample=denoised)

    def _churn(
        self, state: torch.Tensor, step: int, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor:
        """Raise the noise level of `state` to that of the coming step."""
        std = self._churn_stds[step]
        if std == 0:
            return state
        if isinstance(generator, list) and len(generator) != len(state):
            raise ValueError(f"`generator` has {len(generator)} entries for {len(state)} images; give one an image.")
        return state + std * randn_tensor(state.shape, generator, state.device, state.dtype)


def float_dtype_for(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that lacks it."""
    return torch.float32 if device.type in _DEVICES_WITHOUT_FLOAT64 else torch.float64


def require_edm(scheduler: SchedulerMixin) -> None:
    """Raise a `ValueError` for a scheduler that is not of the EDM family."""
    if not hasattr(scheduler, "precondition_outputs"):
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__}, which is not of the EDM family; use EDMHeunScheduler, "
            "EDMEulerScheduler or EDMDPMSolverMultistepScheduler."
        )
