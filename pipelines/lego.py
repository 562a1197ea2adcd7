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
from diffusers.utils.torch_utils import randn_tensor

from brickwork.gen.lego import LegoTransformer2DModel
from brickwork.pipelines.edm_heun import float_dtype_for
from brickwork.pipelines.labels import resolve_class_labels
from brickwork.pipelines.saving import BrickworkPipeline
from brickwork.pipelines.schedules import BrickSchedule
from brickwork.pipelines.seeds import generators_per_image

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


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


class LegoPipeline(BrickworkPipeline):
    """Class-conditional or unconditional images from a stack of LEGO bricks.

    Args:
        transformer: the network, trained with EDM's objective.
        scheduler: `EDMHeunScheduler`, or diffusers' `EDMEulerScheduler` or `EDMDPMSolverMultistepScheduler`.
        vae: decoder of a latent model; `None` for a model of pixels.
        brick_schedule: the schedule to use unless a call names another, saved with the pipeline; `None` for all
            bricks. As JSON (`BrickSchedule.to_dict`) when it comes from a file.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: LegoTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        brick_schedule: BrickSchedule | dict | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.brick_schedule = brick_schedule
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

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image along one pixel of the network's sample."""
        if self.vae is None:
            return 1
        config = self.vae.config
        return 2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1)

    @property
    def guidance_scale(self) -> float:
        """Guidance of the running call; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the running call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call stops before its next step; a callback may set `_interrupt`."""
        return self._interrupt

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
        size = self._sample_size(height, width, latents, bricks)
        self._guidance_scale, self._interrupt, self._num_timesteps = guidance_scale, False, len(bricks)

        generators = generators_per_image(generator, len(labels))
        latents = self._initial_latents(latents, (len(labels), config.in_channels, *size), generators, device)
        conditions = self._conditions(labels, device)
        order, timesteps = self.scheduler.order, self.scheduler.timesteps
        with self.progress_bar(total=len(bricks)) as progress_bar:
            for step, step_bricks in enumerate(bricks):
                if self.interrupt:
                    bricks = bricks[:step]
                    break
                for timestep in timesteps[step * order : (step + 1) * order]:
                    output = self._predict(latents, timestep, *conditions, step_bricks)
                    latents = self.scheduler.step(output, timestep, latents, generator=generators).prev_sample
                if callback_on_step_end is not None:
                    inputs = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                    changed = callback_on_step_end(self, step, timesteps[step * order], inputs) or {}
                    latents = changed.get("latents", latents).to(latents)
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
        bricks: tuple[int, ...],
    ) -> torch.Tensor:
        """The network's output for one evaluation, guided, in the dtype of `latents`."""
        inputs = self.scheduler.scale_model_input(latents, timestep).to(self.transformer.dtype)
        guided = no_class is not None and self.guidance_scale != 1
        if guided:
            inputs, class_labels = torch.cat([inputs, inputs]), torch.cat([class_labels, no_class])
        output = self.transformer(
            inputs, timestep.expand(len(inputs)), class_labels=class_labels, bricks=bricks, return_dict=False
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

    def _initial_latents(
        self,
        latents: torch.Tensor | None,
        shape: tuple[int, ...],
        generators: list[torch.Generator],
        device: torch.device,
    ) -> torch.Tensor:
        if latents is None:
            latents = randn_tensor(shape, generators, device, torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}; this call needs {shape}.")
        return latents.to(device, float_dtype_for(device)) * self.scheduler.init_noise_sigma

    def _decode(self, latents: torch.Tensor, output_type: str) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Sampler's result => pixels, [-1, 1] => the type asked for."""
        latents = latents.float()
        if output_type == "latent":
            return latents
        images = latents if self.vae is None else self._decode_vae(latents)
        return self.image_processor.postprocess(images.float(), output_type=output_type)

    def _decode_vae(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        latents = latents / config.scaling_factor
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            latents = latents * latents.new_tensor(std).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)
        latents = latents + (config.get("shift_factor") or 0.0)
        dtype = self.vae.dtype
        upcast = dtype == torch.float16 and config.get("force_upcast", False)
        if upcast:
            self.vae.to(torch.float32)
        images = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        if upcast:
            self.vae.to(dtype)
        return images

    def _sample_size(
        self, height: int | None, width: int | None, latents: torch.Tensor | None, bricks: list[tuple[int, ...]]
    ) -> tuple[int, int]:
        """Height and width of what the network sees, from those of the image."""
        config, factor = self.transformer.config, self.vae_scale_factor
        if latents is not None and latents.ndim != 4:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}; give (batch, channels, height, width).")
        defaults = (config.sample_size,) * 2 if latents is None else latents.shape[-2:]
        patch = max(config.patch_sizes[brick] for brick in set().union(*bricks))
        size = []
        for name, value, default in zip(("height", "width"), (height, width), defaults):
            value = default * factor if value is None else value
            if not isinstance(value, int) or value < patch * factor or value % factor:
                multiple = f", a multiple of the VAE's {factor}" if factor > 1 else ""
                raise ValueError(
                    f"`{name}` is {value!r}; give a whole number of pixels from {patch * factor} up (one patch)"
                    f"{multiple}."
                )
            size.append(value // factor)
        return size[0], size[1]

    def _check_arguments(
        self,
        num_inference_steps: int,
        num_images_per_label: int,
        guidance_scale: float,
        output_type: str,
        callback_inputs: list[str] | tuple[str, ...],
    ) -> None:
        config = self.transformer.config
        if not hasattr(self.scheduler, "precondition_outputs"):
            raise ValueError(
                f"`scheduler` is a {type(self.scheduler).__name__}, which is not of the EDM family; use "
                "EDMHeunScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler."
            )
        if self.vae is not None and self.vae.config.latent_channels != config.in_channels:
            raise ValueError(
                f"`vae` has {self.vae.config.latent_channels} latent channels and `transformer` {config.in_channels}; "
                "they must be the same."
            )
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("num_images_per_label", num_images_per_label),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; give a whole number from 1 up.")
        if guidance_scale != 1 and config.num_classes is None:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, but this network is unconditional; leave it at 1."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}.")
        if output_type == "pil" and self.vae is None and config.in_channels not in (1, 3, 4):
            raise ValueError(
                f"`output_type` is 'pil', but images of {config.in_channels} channels are no pictures; choose 'np', "
                "'pt' or 'latent'."
            )
        unknown = sorted(set(callback_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}; allowed are {self._callback_tensor_inputs}."
            )

    def _check_schedule(self, schedule: BrickSchedule) -> None:
        if not isinstance(schedule, BrickSchedule):
            raise ValueError(
                f"`brick_schedule` is {schedule!r}; give a BrickSchedule, or None for the pipeline's own."
            )
        schedule.validate(self.transformer)
