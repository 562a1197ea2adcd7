"""Images from a network of blocks, for a class or for none, by any of diffusers' usual schedulers."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor

from brickwork.pipelines.labels import resolve_class_labels
from brickwork.pipelines.sampling import SamplingPipeline
from brickwork.pipelines.seeds import generators_per_image


class ClassToImagePipeline(SamplingPipeline):
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

    def __init__(self, transformer: ModelMixin, scheduler: SchedulerMixin, vae: AutoencoderKL | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.image_processor = VaeImageProcessor()

    @classmethod
    def from_objective(
        cls, transformer: ModelMixin, objective: Any, vae: AutoencoderKL | None = None
    ) -> "ClassToImagePipeline":
        """The pipeline of a network that was trained with `objective`, one of `brickwork.gen.parameterization`."""
        return cls(transformer, objective.scheduler(), vae)

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
        patch = max([config.get("patch_size") or 1, *(config.get("patch_sizes") or [])])
        shape = (len(labels), config.in_channels, *self._sample_size(height, width, latents, patch))
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
                latents = self._after_step(
                    callback_on_step_end, callback_on_step_end_tensor_inputs, step, timestep, latents
                )
                progress_bar.update()

        images = self._decode(latents, output_type)
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

    def _check_arguments(self, *arguments) -> None:
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
        super()._check_arguments(*arguments)


def _takes(function: Callable, argument: str) -> bool:
    return argument in inspect.signature(function).parameters
