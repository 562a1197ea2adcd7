"""Images from a LEGO network, of any size and at any compute budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.utils import BaseOutput

from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.subnets import bricks_of
from brickwork.pipelines.arguments import shared_call
from brickwork.pipelines.canvas import WindowPlan, check_windows
from brickwork.pipelines.sampling import SamplingPipeline
from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule


@dataclass
class LegoPipelineOutput(BaseOutput):
    """Output of `LegoPipeline`.

    Attributes:
        images: a list of PIL images; or, by `output_type`, an array `(B, H, W, C)` or a tensor `(B, C, H, W)` in
            [0, 1]; or the sampler's result `(B, C, h, w)`, which for pixel models lies about [-1, 1].
        bricks: the bricks that ran, one tuple a step. A second-order step, which evaluates the network twice, runs
            the same ones both times.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    bricks: list[tuple[int, ...]]


class LegoPipeline(SamplingPipeline):
    """Class-conditional or unconditional images from a stack of LEGO bricks.

    Args:
        transformer: the network, trained with EDM's objective.
        scheduler: `EDMHeunScheduler`, or diffusers' `EDMEulerScheduler` or `EDMDPMSolverMultistepScheduler`.
        vae: decoder of a latent model; `None` for a model of pixels.
        brick_schedule: the schedule to use unless a call names another, saved with the pipeline; `None` for all
            bricks. As JSON (`BrickSchedule.to_dict`) when it comes from a file.
        windows: how windows lie above the training size unless a call says otherwise, saved with the pipeline; `None`
            for shifted where the network was trained on crops, else fixed.
        guidance_scale: recommended for calls that name none; `None` for 1.
        num_inference_steps: likewise; `None` for 18.

    Raises:
        ValueError: for a schedule or windows that the network cannot take.
    """

    schedule_name, default_steps = "brick_schedule", 18
    in_float64 = whole_steps = True
    brick_schedule = SamplingPipeline.schedule

    def __init__(
        self,
        transformer: LegoTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        brick_schedule: BrickSchedule | SubnetSchedule | dict | None = None,
        windows: str | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
    ):
        super().__init__(transformer=transformer, scheduler=scheduler, vae=vae)
        self.schedule = brick_schedule
        check_windows(windows)
        self.register_to_config(
            windows=windows, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps
        )

    @shared_call(SamplingPipeline._draw, default_steps, "step (both evaluations of a second-order one)")
    def __call__(
        self,
        *shared,
        brick_schedule: BrickSchedule | SubnetSchedule | None = None,
        windows: str | None = None,
        **further,
    ) -> LegoPipelineOutput | tuple:
        """Draw images.

        Args:
            SHARED
            brick_schedule: which bricks run at which noise level; by default the pipeline's own, else all bricks.
            windows: how windows lie on sides above the training size. `"shifted"`: elsewhere in each evaluation, so
                that their borders leave no seams, at the same cost; the picture is one canvas whose opposite ends meet
                in windows. `"fixed"`: always at the same positions. `"tiled"`: the same, and each square of the
                training size is told that it is a picture of its own, so that several stand side by side. By default
                what is saved with the pipeline, else shifted where the weights were trained on crops
                (`trained_crops`), else fixed.

        Raises:
            ValueError: for labels, sizes, schedules and other arguments that the network cannot take.
        """
        windows = self.config.windows if windows is None else windows
        return self._draw(
            *shared,
            schedule=brick_schedule,
            hooks_at=lambda size: [WindowPlan.of(windows, size, self.transformer.config)],
            **further,
        )

    def _patch(self, subnets: Sequence[str | None]) -> int:
        patches = self.transformer.config.patch_sizes
        return max(patches[brick] for subnet in set(subnets) for brick in bricks_of(subnet, len(patches)))

    def _output(self, images, subnets: Sequence[str | None]) -> LegoPipelineOutput:
        number = len(self.transformer.config.patch_sizes)
        return LegoPipelineOutput(images=images, bricks=[bricks_of(subnet, number) for subnet in subnets])

    def _check_arguments(self, *arguments, **counts) -> None:
        if not hasattr(self.scheduler, "precondition_outputs"):
            raise ValueError(
                f"`scheduler` is a {type(self.scheduler).__name__}, which is not of the EDM family; use "
                "EDMHeunScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler."
            )
        super()._check_arguments(*arguments, **counts)
