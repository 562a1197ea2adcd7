"""Images from a LEGO network, of any size and at any compute budget."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.utils import BaseOutput

from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.subnets import bricks_of
from brickwork.pipelines.canvas import WindowPlan, check_windows
from brickwork.pipelines.sampling import SamplingPipeline, documented, first_noise
from brickwork.pipelines.schedulers.edm_heun import float_dtype_for
from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule
from brickwork.pipelines.seeds import checked_generator


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

    schedule_name = "brick_schedule"

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
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.schedule = brick_schedule
        check_windows(windows)
        self.register_to_config(
            windows=windows, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps
        )

    brick_schedule = SamplingPipeline.schedule

    @torch.no_grad()
    @documented(steps=18, unit="step (both evaluations of a second-order one)")
    def __call__(
        self,
        class_labels: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_label: int = 1,
        brick_schedule: BrickSchedule | SubnetSchedule | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["LegoPipeline", int, torch.Tensor, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        windows: str | None = None,
        num_images_per_prompt: int | None = None,
    ) -> LegoPipelineOutput | tuple:
        """Draw images.

        Args:
            SHARED
            brick_schedule: which bricks run at which noise level; by default the pipeline's own, else all bricks.
            windows: how windows lie on sides above the training size. `"shifted"`: elsewhere in each evaluation, so
                that their borders leave no seams, at the same cost; the picture is one canvas whose opposite ends meet
                in windows. `"fixed"`: at the same places always. `"tiled"`: the same, and each square of the training
                size is told that it is a whole picture, so that several stand side by side. By default what is saved
                with the pipeline, else shifted where the weights were trained on crops (`trained_crops`), else fixed.

        Returns:
            A `LegoPipelineOutput`, or `(images, bricks)`.

        Raises:
            ValueError: for labels, sizes, schedules and other arguments that the network cannot take.
        """
        steps = self._recommended("num_inference_steps", num_inference_steps, 18)
        number = num_images_per_label if num_images_per_prompt is None else num_images_per_prompt
        guidance_scale = self._recommended("guidance_scale", guidance_scale, 1.0)
        self._check_arguments(
            steps, guidance_scale, output_type, callback_on_step_end_tensor_inputs, num_images_per_label=number
        )
        config, device, labels = self.transformer.config, self._execution_device, self._labels(class_labels, number)
        subnets = self._set_steps(steps, brick_schedule)
        bricks = [bricks_of(subnet, len(config.patch_sizes)) for subnet in subnets]
        patch = max(config.patch_sizes[brick] for brick in set().union(*bricks))
        size = self._sample_size(height, width, latents, patch)
        plan = WindowPlan.of(self.config.windows if windows is None else windows, size, config)
        generator = checked_generator(generator, len(labels))
        shape = (len(labels), config.in_channels, *size)
        latents, ran = self._denoise(
            first_noise(latents, shape, generator, device, float_dtype_for(device)),
            self._class_conditions(labels, device),
            generator,
            subnets,
            hooks=[plan],
            callback=callback_on_step_end,
            tensor_inputs=callback_on_step_end_tensor_inputs,
            evaluations=self.scheduler.order,
        )
        images = self._decode(latents, output_type)
        return LegoPipelineOutput(images=images, bricks=bricks[:ran]) if return_dict else (images, bricks[:ran])

    def _check_arguments(self, *arguments, **counts) -> None:
        if not hasattr(self.scheduler, "precondition_outputs"):
            raise ValueError(
                f"`scheduler` is a {type(self.scheduler).__name__}, which is not of the EDM family; use "
                "EDMHeunScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler."
            )
        super()._check_arguments(*arguments, **counts)
