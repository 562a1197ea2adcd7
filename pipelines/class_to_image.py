"""Images from a network of blocks, for a class or for none, by any of diffusers' usual schedulers."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from brickwork.pipelines.labels import resolve_class_labels
from brickwork.pipelines.saving import BrickworkPipeline
from brickwork.pipelines.seeds import generators_per_image

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class ClassToImagePipeline(BrickworkPipeline):
    """Class-conditional or unconditional images.

    The scheduler must speak of what the network was trained to predict: `EpsilonObjective` and `VObjective` go with
    DDPM, DDIM, DPM-Solver++ and their like under the same betas and `prediction_type`, `EDMObjective` with the EDM
    family, `FlowObjective` with the flow-matching ones. `from_objective` builds a fitting pair.

    Args:
        transformer: the network: `BlockTransformer2DModel`, `BlockUNet2DModel`, or `LegoTransformer2DModel` with all
            its bricks (`LegoPipeline` has schedules of bricks).
        scheduler: a scheduler of diffusers, or `EDMHeunScheduler`.
        vae: decoder of a latent model; `None` for a model of pixels.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(self, transformer: ModelMixin, scheduler: SchedulerMixin, vae: AutoencoderKL | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.image_processor = VaeImageProcessor()

    @classmethod
    def from_objective(
        cls, transformer: ModelMixin, objective: Any, vae: AutoencoderKL | None = None
    ) -> "ClassToImagePipeline":
        """The pipeline of a network that was trained with `objective`, one of `brickwork.gen.objectives`."""
        return cls(transformer, objective.scheduler(), vae)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image along one pixel of the network's sample."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def guidance_scale(self) -> float:
        """Guidance of the running call; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the running call."""
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
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        num_images_per_label: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["ClassToImagePipeline", int, torch.Tensor, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            class_labels: one label an image: a number, a name of the network's `id2label` (case does not matter), or
                `None` for no class; or a list of them.
            height: of the images in pixels, any number (for latent models a multiple of the VAE's scale factor); by
                default the training size.
            width: likewise.
            num_inference_steps: steps of the scheduler.
            guidance_scale: classifier-free guidance, `uncond + scale * (cond - uncond)`. 1 switches it off; otherwise
                classes and no-class go through the network as one batch. A learned variance is not guided.
            num_images_per_label: images of each label, next to one another in the result.
            generator: one generator, from which a seed is drawn for each image in turn, or a list with one an image.
                Either way the noise of an image does not depend on the others in the batch.
            latents: noise of unit variance `(B, C, h, w)` to start from instead of drawing it.
            output_type: `"pil"`, `"np"` for `(B, H, W, C)` and `"pt"` for `(B, C, H, W)` in [0, 1], or `"latent"` for
                the sampler's result.
            return_dict: return an `ImagePipelineOutput` rather than `(images,)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": …})` after each evaluation;
                may return a dictionary with other latents.
            callback_on_step_end_tensor_inputs: what the callback gets; `"latents"` is all there is.

        Raises:
            ValueError: for labels, sizes and other arguments that the network cannot take.
        """
        self._check_arguments(
            num_inference_steps, num_images_per_label, guidance_scale, output_type, callback_on_step_end_tensor_inputs
        )
        config = self.transformer.config
        labels = resolve_class_labels(class_labels, config.num_classes, config.id2label)
        labels = [label for label in labels for _ in range(num_images_per_label)]
        shape = (len(labels), config.in_channels, *self._sample_size(height, width, latents))
        device = self._execution_device
        generators = generators_per_image(generator, len(labels))
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = self._initial_latents(latents, shape, generators, device)
        class_labels = None if config.num_classes is None else torch.tensor(labels, device=device)
        timesteps = self.scheduler.timesteps
        self._guidance_scale, self._interrupt, self._num_timesteps = guidance_scale, False, len(timesteps)
        extra = {"generator": generators} if _takes(self.scheduler.step, "generator") else {}

        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                output = self._predict(latents, timestep, class_labels)
                latents = self.scheduler.step(output, timestep, latents, return_dict=False, **extra)[0]
                if callback_on_step_end is not None:
                    inputs = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                    changed = callback_on_step_end(self, step, timestep, inputs) or {}
                    latents = changed.get("latents", latents).to(latents)
                progress_bar.update()

        images = self._decode(latents.float(), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """What the scheduler's step takes: the guided estimate, and behind it a learned variance if it wants one."""
        inputs = latents
        if hasattr(self.scheduler, "scale_model_input"):  # flow-matching schedulers have none
            inputs = self.scheduler.scale_model_input(latents, timestep)
        guided = class_labels is not None and self.guidance_scale != 1
        if guided:
            no_class = torch.full_like(class_labels, self.transformer.config.num_classes)
            inputs, class_labels = torch.cat([inputs, inputs]), torch.cat([class_labels, no_class])
        output = self.transformer(
            inputs.to(self.transformer.dtype),
            timestep.to(inputs.device).expand(len(inputs)),
            class_labels=class_labels,
            return_dict=False,
        )[0].to(latents.dtype)
        estimate, variance = output[:, : latents.shape[1]], output[:, latents.shape[1] :]
        if guided:
            conditional, unconditional = estimate.chunk(2)
            estimate = unconditional + self.guidance_scale * (conditional - unconditional)
            variance = variance.chunk(2)[0]
        if self.scheduler.config.get("variance_type") in ("learned", "learned_range"):
            estimate = torch.cat([estimate, variance], dim=1)
        return estimate

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
        return latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _decode(self, latents: torch.Tensor, output_type: str) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Sampler's result => pixels, [-1, 1] => the type asked for."""
        if output_type == "latent":
            return latents
        if self.vae is not None:
            latents = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
            latents = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()
        return self.image_processor.postprocess(latents, output_type=output_type)

    def _sample_size(self, height: int | None, width: int | None, latents: torch.Tensor | None) -> tuple[int, int]:
        """Height and width of what the network sees, from those of the image."""
        config, factor = self.transformer.config, self.vae_scale_factor
        if latents is not None and latents.ndim != 4:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}; give (batch, channels, height, width).")
        smallest = factor * max([config.get("patch_size") or 1, *(config.get("patch_sizes") or [])])
        defaults = (config.sample_size,) * 2 if latents is None else latents.shape[-2:]
        size = []
        for name, value, default in zip(("height", "width"), (height, width), defaults):
            value = default * factor if value is None else value
            if not isinstance(value, int) or value < smallest or value % factor:
                multiple = f", a multiple of the VAE's {factor}" if factor > 1 else ""
                raise ValueError(f"`{name}` is {value!r}; give a whole number of pixels from {smallest} up{multiple}.")
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
        learned = self.scheduler.config.get("variance_type") in ("learned", "learned_range")
        if learned and config.get("out_channels") != 2 * config.in_channels:
            raise ValueError(
                f"`scheduler` has the variance_type {self.scheduler.config.variance_type!r}, but the network learned "
                "no variance; choose 'fixed_small'."
            )
        if config.get("cross_attention_dim") is not None:
            raise ValueError(
                "`transformer` reads a text (`cross_attention_dim`); use it as `unet` of StableDiffusionPipeline."
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


def _takes(function: Callable, argument: str) -> bool:
    return argument in inspect.signature(function).parameters
