"""Images from a LEGO network, of any size and at any compute budget."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput

from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.pipelines.canvas import WindowPlan, check_windows
from brickwork.pipelines.labels import resolve_class_labels
from brickwork.pipelines.sampling import SamplingPipeline
from brickwork.pipelines.schedulers.edm_heun import float_dtype_for
from brickwork.pipelines.schedules import BrickSchedule
from brickwork.pipelines.seeds import generators_per_image


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

    Raises:
        ValueError: for a schedule or windows that the network cannot take.
    """

    def __init__(
        self,
        transformer: LegoTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        brick_schedule: BrickSchedule | dict | None = None,
        windows: str | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.brick_schedule = brick_schedule
        check_windows(windows)
        self.register_to_config(windows=windows)
        self.image_processor = VaeImageProcessor()

    @property
    def brick_schedule(self) -> BrickSchedule | None:
        """The schedule that is saved with the pipeline; assigning one checks it against the network."""
        saved = self.config.brick_schedule
        return None if saved is None else BrickSchedule.from_dict(saved)

    @brick_schedule.setter
    def brick_schedule(self, schedule: BrickSchedule | dict | None) -> None:
        if isinstance(schedule, dict):
            schedule = BrickSchedule.from_dict(schedule)
        if schedule is not None:
            self._check_schedule(schedule)
        self.register_to_config(brick_schedule=None if schedule is None else schedule.to_dict())

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 18,
        guidance_scale: float = 1.0,
        num_images_per_label: int = 1,
        brick_schedule: BrickSchedule | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["LegoPipeline", int, torch.Tensor, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        windows: str | None = None,
    ) -> LegoPipelineOutput | tuple:
        """Draw images.

        Args:
            class_labels: one label an image: a number, a name of the network's `id2label` (case does not matter), or
                `None` for no class; or a list of them.
            height: of the images in pixels, any number from one patch up (for latent models a multiple of the VAE's
                scale factor); by default the training size.
            width: likewise.
            num_inference_steps: steps of the sampler; one of Heun's evaluates the network twice, except the last.
            guidance_scale: classifier-free guidance, `uncond + scale * (cond - uncond)`. 1 switches it off; otherwise
                classes and no-class go through the network as one batch.
            num_images_per_label: images of each label, next to one another in the result.
            brick_schedule: which bricks run at which noise level; by default the pipeline's own, else all bricks.
            generator: one generator, from which a seed is drawn for each image in turn, or a list with one an image.
                Either way the noise of an image does not depend on the others in the batch (the network's rounding,
                about 1e-6, does).
            latents: noise of unit variance `(B, C, h, w)` to start from instead of drawing it.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`, see `LegoPipelineOutput`.
            return_dict: return a `LegoPipelineOutput` rather than `(images, bricks)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": …})` after each step (both
                evaluations of a second-order one); may return a dictionary with other latents.
            callback_on_step_end_tensor_inputs: what the callback gets; `"latents"` is all there is.
            windows: how windows lie on sides above the training size. `"shifted"`: elsewhere in each evaluation, so
                that their borders leave no seams, at the same cost; the picture is one canvas whose opposite ends meet
                in windows. `"fixed"`: at the same places always. `"tiled"`: the same, and each square of the training
                size is told that it is a whole picture, so that several stand side by side. By default what is saved
                with the pipeline, else shifted where the weights were trained on crops (`trained_crops`), else fixed.

        Raises:
            ValueError: for labels, sizes, schedules and other arguments that the network cannot take.
        """
        self._check_arguments(
            num_inference_steps,
            num_images_per_label,
            guidance_scale,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        config = self.transformer.config
        labels = resolve_class_labels(class_labels, config.num_classes, config.id2label)
        labels = [label for label in labels for _ in range(num_images_per_label)]
        schedule = self.brick_schedule if brick_schedule is None else brick_schedule
        schedule = BrickSchedule.full(self.transformer) if schedule is None else schedule
        self._check_schedule(schedule)
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        bricks = schedule.resolve(self.scheduler)
        patch = max(config.patch_sizes[brick] for brick in set().union(*bricks))
        size = self._sample_size(height, width, latents, patch)
        plan = WindowPlan.of(self.config.windows if windows is None else windows, size, config)
        self._guidance_scale, self._interrupt, self._num_timesteps = guidance_scale, False, len(bricks)

        generators = generators_per_image(generator, len(labels))
        shape = (len(labels), config.in_channels, *size)
        latents = self._initial_latents(latents, shape, generators, device, float_dtype_for(device))
        conditions = self._conditions(labels, device)
        order, timesteps = self.scheduler.order, self.scheduler.timesteps
        with self.progress_bar(total=len(bricks)) as progress_bar:
            for step, step_bricks in enumerate(bricks):
                if self.interrupt:
                    bricks = bricks[:step]
                    break
                for evaluation, timestep in enumerate(timesteps[step * order : (step + 1) * order], step * order):
                    inputs, places = plan.enter(latents, evaluation)
                    output = self._predict(inputs, timestep, *conditions, bricks=step_bricks, **places)
                    output = plan.leave(output, evaluation)
                    latents = self.scheduler.step(output, timestep, latents, generator=generators).prev_sample
                latents = self._after_step(
                    callback_on_step_end, callback_on_step_end_tensor_inputs, step, timesteps[step * order], latents
                )
                progress_bar.update()

        images = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, bricks
        return LegoPipelineOutput(images=images, bricks=bricks)

    def _predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None,
        no_class: torch.Tensor | None,
        **options,
    ) -> torch.Tensor:
        """The network's output for one evaluation, guided, in the dtype of `latents`; `options` go to the network."""
        inputs = self.scheduler.scale_model_input(latents, timestep).to(self.transformer.dtype)
        guided = no_class is not None and self.guidance_scale != 1
        if guided:
            inputs, class_labels = torch.cat([inputs, inputs]), torch.cat([class_labels, no_class])
        output = self.transformer(
            inputs, timestep.expand(len(inputs)), class_labels=class_labels, return_dict=False, **options
        )[0].to(latents.dtype)
        if not guided:
            return output
        conditional, unconditional = output.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _conditions(
        self, labels: list[int] | list[None], device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The labels `(B,)` and as many of "no class", `None` where the network or guidance has no use for them."""
        num_classes = self.transformer.config.num_classes
        if num_classes is None:
            return None, None
        class_labels = torch.tensor(labels, device=device)
        # Guidance away from "no class" to "no class" changes nothing.
        has_class = any(label != num_classes for label in labels)
        return class_labels, torch.full_like(class_labels, num_classes) if has_class else None

    def _check_arguments(self, *arguments) -> None:
        if not hasattr(self.scheduler, "precondition_outputs"):
            raise ValueError(
                f"`scheduler` is a {type(self.scheduler).__name__}, which is not of the EDM family; use "
                "EDMHeunScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler."
            )
        super()._check_arguments(*arguments)

    def _check_schedule(self, schedule: BrickSchedule) -> None:
        if not isinstance(schedule, BrickSchedule):
            raise ValueError(
                f"`brick_schedule` is {schedule!r}; give a BrickSchedule, or None for the pipeline's own."
            )
        schedule.validate(self.transformer)
