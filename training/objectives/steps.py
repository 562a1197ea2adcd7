"""Step distillation: a copy of a trained network learns to go in one step where its teacher goes in several.

The target is that of progressive distillation (Salimans & Ho, arXiv 2202.00512, algorithm 2): from a noisy image on
the student's grid of noise levels the teacher is followed, without further noise, to the grid's next level, and the
student is to say that clean image from which one deterministic step lands there too. Instead of halving the steps
again and again, with each student the next one's teacher, the original teacher takes all its sub-steps at once, by
DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2), so that errors do not add up and the run has one phase.

Nothing here depends on the parameterization but the grid: what a network was shown, `A·x + B·ε`, and what it is to
say, `p·x + q·ε`, are linear in the clean image `x` and the noise `ε`, and numbers for both follow from the
parameterization itself. A deterministic (DDIM) step to another level is the network's input there for the same `x` and
`ε`, whether the noise is added to the image (EDM), mixed with it (epsilon, v) or a path to it (flow).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from brickwork.gen.parameterization import EDMObjective, FlowObjective, VObjective
from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step, Task

CLEAN = -1.0  # the level of the image itself
SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0  # of EDM's sampler (arXiv 2206.00364, table 1), diffusers' defaults
MOST_STEPS = 64


def grid(parameterization: Any, count: int) -> torch.Tensor:
    """Falling noise levels `(count + 1,)` at which a sampler of so many steps calls the network, `CLEAN` the last.

    EDM's levels are spaced as its sampler does, timesteps evenly from the last one down ("trailing"), flow's levels
    evenly from 1. A grid of `n · m` steps has that of `n` steps in it.
    """
    share = torch.arange(count, dtype=torch.float64) / count
    if isinstance(parameterization, EDMObjective):
        high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
        levels = (high + share * (low - high)) ** RHO
    elif isinstance(parameterization, FlowObjective):
        levels = 1 - share
    else:
        levels = ((1 - share) * parameterization.num_train_timesteps).round() - 1
    return torch.cat([levels, torch.tensor([CLEAN], dtype=torch.float64)]).float()


def chosen_grid(steps: int, substeps: int, sigma_min: float, rho: float) -> torch.Tensor:
    """EDM's falling levels `(steps · substeps + 1,)` with the student's last call at `sigma_min`, `CLEAN` the last.

    Every `substeps`-th level is the student's; they lie evenly in σ^(1/ρ), as those of diffusers' schedulers do, where
    a negative ρ brings them nearer to `sigma_min`. Below `sigma_min` the teacher's are spaced as EDM's own.
    """
    between = torch.arange((steps - 1) * substeps, dtype=torch.float64) / max((steps - 1) * substeps, 1)
    last = torch.arange(substeps, dtype=torch.float64) / substeps
    below = sigma_min if steps > 1 else SIGMA_MAX
    parts = ((between, SIGMA_MAX, sigma_min, rho), (last, below, SIGMA_MIN, RHO))
    levels = [(high ** (1 / r) + share * (low ** (1 / r) - high ** (1 / r))) ** r for share, high, low, r in parts]
    return torch.cat([*levels, torch.tensor([CLEAN], dtype=torch.float64)]).float()


def sampler_changes(
    parameterization: Any, steps: int, sigma_min: float | None = None, rho: float = RHO
) -> dict[str, Any]:
    """What a deterministic first-order scheduler of diffusers needs to step over the same grid."""
    if sigma_min is not None:
        return {"sigma_max": SIGMA_MAX, "sigma_min": sigma_min, "rho": rho}
    if isinstance(parameterization, EDMObjective):
        return {"sigma_max": SIGMA_MAX, "sigma_min": grid(parameterization, steps)[-2].item()}
    if isinstance(parameterization, FlowObjective):
        return {"shift": 1.0, "shift_terminal": 1 / steps if steps > 1 else None}
    return {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}


class Paths:
    """Deterministic paths between noise levels, for any parameterization.

    Args:
        parameterization: what the networks predict.
    """

    def __init__(self, parameterization: Any):
        self.parameterization = parameterization

    def inputs(
        self, images: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's input `(B, …)` and timestep `(B,)`; at `CLEAN` the images themselves."""
        sample, timestep = self.parameterization.network_inputs(images, noise, level.clamp(min=0))
        return torch.where(_as(level, images) == CLEAN, images, sample), timestep

    def coefficients(self, level: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`A` and `B` of `A·x + B·ε`, the network's input, each `(B, 1, …)`."""
        one, zero = torch.ones_like(_as(level, like)), torch.zeros_like(_as(level, like))
        return self.inputs(one, zero, level)[0], self.inputs(zero, one, level)[0]

    def snr(self, level: torch.Tensor) -> torch.Tensor:
        """The ratio of signal to noise, `A² / B²`, `(B,)`."""
        signal, noise = self.coefficients(level, level)
        return (signal / noise).square()

    def solve(
        self, output: torch.Tensor, sample: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean image and the noise that a network's output for an input means."""
        one, zero = torch.ones_like(_as(level, sample)), torch.zeros_like(_as(level, sample))
        signal, noise = self.coefficients(level, sample)
        of_image, of_noise = (self.parameterization.target(*pair, level) for pair in ((one, zero), (zero, one)))
        scale = noise * of_image - signal * of_noise
        return (noise * output - of_noise * sample) / scale, (of_image * sample - signal * output) / scale

    def follow(self, ask, sample: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Where a network's path leads: the input at the last level `(B, …)`, from that at the first.

        Args:
            ask: `(sample, level (B,), timestep (B,)) -> output`.
            sample: at `levels[0]`.
            levels: `(n + 1, B)`, falling.
        """
        former: tuple[torch.Tensor, torch.Tensor] | None = None  # the last clean image, and its log-SNR over 2
        timestep = self.inputs(sample, sample, levels[0])[1]
        for level, following in zip(levels, levels[1:]):
            images, noise = self.solve(ask(sample, level, timestep), sample, level)
            here, there = (0.5 * _as(self.snr(one), sample).log() for one in (level, following))
            corrected = images
            if former is not None:
                # Second order where there is a former step and a next level; at `CLEAN` the step is infinite.
                ratio = torch.where(there.isfinite(), (there - here) / (2 * (here - former[1])), 0.0)
                corrected = images + torch.nan_to_num(ratio, posinf=0.0, neginf=0.0) * (images - former[0])
            signal, scale = self.coefficients(level, sample)
            sample, timestep = self.inputs(corrected, (sample - signal * corrected) / scale, following)
            former = images, here
        return sample

    def meeting(
        self, sample: torch.Tensor, level: torch.Tensor, landed: torch.Tensor, following: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and noise `(B, …)` whose input is `sample` at one level and `landed` at another."""
        signal, noise = self.coefficients(level, sample)
        next_signal, next_noise = self.coefficients(following, sample)
        images = (noise * landed - next_noise * sample) / (noise * next_signal - next_noise * signal)
        return images, (sample - signal * images) / noise


@register_objective("steps")
class StepsObjective(Objective):
    """The task's own loss, at the noise levels of a sampler of few steps, with a target that its teacher's path makes.

    Args:
        teacher: a pipeline, by folder or name, that was trained for the same objective.
        steps: calls of the network that the student is to draw with, usually 1 to 4.
        substeps: of the teacher in the place of each.
        guidance: scale of classifier-free guidance that the student learns to do without; 1 for none.
        weight: of the task's loss.
        sigma_min: of EDM, the noise level of the student's last call, such as 0.4; `None` for that of a sampler
            down to 0.002, which spends a call near it.
        rho: with `sigma_min`, how the levels from 80 down to it are spaced; not 0.
    """

    asks = True

    def __init__(
        self,
        teacher: str,
        steps: int = 4,
        substeps: int = 8,
        guidance: float = 1.0,
        weight: float = 1.0,
        sigma_min: float | None = None,
        rho: float = RHO,
    ):
        super().__init__(weight)
        for name, value in (("steps", steps), ("substeps", substeps)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_STEPS:
                raise ValueError(f"`{name}` is {value!r}; give a whole number of 1 to {MOST_STEPS}.")
        if not isinstance(guidance, (int, float)) or guidance < 0:
            raise ValueError(f"`guidance` is {guidance!r}; give 1 for none, or more.")
        if sigma_min is not None and not SIGMA_MIN < sigma_min < SIGMA_MAX:
            raise ValueError(f"`sigma_min` is {sigma_min!r}; give a noise level between {SIGMA_MIN} and {SIGMA_MAX}.")
        if rho == 0 or (sigma_min is None and rho != RHO):
            raise ValueError(f"`rho` is {rho!r}; give another number than 0, and `sigma_min` with it.")
        self.teacher, self.steps, self.substeps, self.guidance = teacher, steps, substeps, float(guidance)
        self.sigma_min, self.rho = sigma_min, float(rho)

    def join(self, task: Task, networks: Mapping[str, torch.nn.Module]) -> None:
        if not hasattr(task, "parameterization"):
            raise ValueError(f"`steps` is for networks that denoise, and a {type(task).__name__} has none.")
        self.paths, self.task, self.network = Paths(task.parameterization), task, (networks[self.teacher],)
        self.grid = grid(task.parameterization, self.steps * self.substeps)
        if self.sigma_min is not None:
            if not isinstance(task.parameterization, EDMObjective):
                raise ValueError("`sigma_min` of `steps` is for networks trained with EDM's objective; leave it out.")
            self.grid = chosen_grid(self.steps, self.substeps, self.sigma_min, self.rho)
        task.sample_with(sampler_changes(task.parameterization, self.steps, self.sigma_min, self.rho))

    def levels(self, normal: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return self.grid.to(normal.device)[self._first(normal)]

    def _first(self, normal: torch.Tensor) -> torch.Tensor:
        """Where in the teacher's grid the step of a standard normal number begins; all are equally likely."""
        number = (torch.special.ndtr(normal.double()) * self.steps).long().clamp(0, self.steps - 1)
        return number * self.substeps

    @torch.no_grad()
    def rewrite(self, step: Step, normal: torch.Tensor) -> Step:
        """The step at a level of the grid, with the image and the noise that the network should answer."""
        indices = self._first(normal) + torch.arange(self.substeps + 1, device=normal.device)[:, None]
        levels = self.grid.to(normal.device)[indices]
        sample, timestep = self.paths.inputs(step.images, step.noise, levels[0])
        landed = self.paths.follow(lambda *inputs: self._ask(step, *inputs), sample.float(), levels)
        images, noise = self.paths.meeting(sample, levels[0], landed, levels[-1])
        return replace(
            step,
            images=images,
            noise=noise,
            level=levels[0],
            sample=sample,
            timestep=timestep,
            weight=self._weight(levels[0]),
        )

    def _ask(self, step: Step, sample: torch.Tensor, level: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The teacher's output, guided; of a learned variance the mean alone."""
        step = replace(step, sample=sample, level=level, timestep=timestep, subnet=None)
        output = self.task.call(self.network[0], step)[-1].float()
        if self.guidance != 1:
            free = self.task.call(self.network[0], self.task.without_conditions(step))[-1].float()
            output = free + self.guidance * (output - free)
        return output[:, : sample.shape[1]]

    def _weight(self, level: torch.Tensor) -> torch.Tensor:
        """What the task's loss is multiplied by.

        The error of the clean image should weigh at least 1 (arXiv 2202.00512, "truncated SNR"), as it does for EDM
        and v by themselves; that of epsilon weighs it by the SNR alone, next to nothing where sampling begins.
        """
        parameterization = self.paths.parameterization
        if isinstance(parameterization, (EDMObjective, FlowObjective)):
            return torch.full_like(level, self.weight)
        wanted = 1.0 if isinstance(parameterization, VObjective) else (1 / self.paths.snr(level)).clamp(min=1)
        return self.weight * wanted / parameterization.weights(level)

    def forward(self, step: Step, taps: Mapping[str, torch.Tensor], teacher: Step | None) -> dict[str, torch.Tensor]:
        """None: `rewrite` has set the target of the task's own loss."""
        return {}


def _as(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`(B,)` => `(B, 1, …)`."""
    return values.to(like.device).view(-1, *(1,) * (like.ndim - 1))
