"""Images from a network of blocks, for a class or for none, by any of diffusers' usual schedulers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, ImagePipelineOutput, ModelMixin, SchedulerMixin

from brickwork.pipelines.sampling import SamplingPipeline, documented, first_noise
from brickwork.pipelines.schedules import SubnetSchedule
from brickwork.pipelines.seeds import checked_generator


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
        subnet_schedule: which subnet of the network runs at which noise level unless a call says otherwise; as JSON
            when it comes from a file; `None` for the network itself.
        guidance_scale: recommended for calls that name none; `None` for 1.
        num_inference_steps: likewise; `None` for 50.
    """

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        subnet_schedule: SubnetSchedule | dict | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(guidance_scale=guidance_scale, num_inference_steps=num_inference_steps)
        self.schedule = subnet_schedule

    subnet_schedule = SamplingPipeline.schedule

    @classmethod
    def from_objective(
        cls, transformer: ModelMixin, objective: Any, vae: AutoencoderKL | None = None
    ) -> "ClassToImagePipeline":
        """The pipeline of a network that was trained with `objective`, one of `brickwork.gen.parameterization`."""
        return cls(transformer, objective.scheduler(), vae)

    @torch.no_grad()
    @documented(steps=50, unit="evaluation")
    def __call__(
        self,
        class_labels: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_label: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["ClassToImagePipeline", int, torch.Tensor, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        num_images_per_prompt: int | None = None,
        subnet_schedule: SubnetSchedule | None = None,
        networks: Mapping[str, ModelMixin] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            SHARED
            subnet_schedule: which subnet runs at which noise level; by default the pipeline's own, else the network.
            networks: further networks of the same objective by name, which the schedule may name as it does subnets;
                the pipeline's own is then `"full"`. Put them on the pipeline's device.

        Raises:
            ValueError: for labels, sizes, schedules and other arguments that the network cannot take.
        """
        steps = self._recommended("num_inference_steps", num_inference_steps, 50)
        number = num_images_per_label if num_images_per_prompt is None else num_images_per_prompt
        guidance_scale = self._recommended("guidance_scale", guidance_scale, 1.0)
        self._check_arguments(
            steps, guidance_scale, output_type, callback_on_step_end_tensor_inputs, num_images_per_label=number
        )
        self._others = self._check_networks(networks or {})
        config, device, labels = self.transformer.config, self._execution_device, self._labels(class_labels, number)
        patch = max([config.get("patch_size") or 1, *(config.get("patch_sizes") or [])])
        shape = (len(labels), config.in_channels, *self._sample_size(height, width, latents, patch))
        subnets = self._set_steps(steps, subnet_schedule)
        generator = checked_generator(generator, len(labels))
        latents, _ = self._denoise(
            first_noise(latents, shape, generator, device),
            self._class_conditions(labels, device),
            generator,
            subnets,
            callback=callback_on_step_end,
            tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        images = self._decode(latents, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_networks(self, networks: Mapping[str, ModelMixin]) -> Mapping[str, ModelMixin]:
        for name, network in networks.items():
            for key in ("in_channels", "num_classes"):
                if network.config.get(key) != self.transformer.config.get(key):
                    raise ValueError(
                        f"`networks` has {name!r} with {key} {network.config.get(key)}, the pipeline's own network "
                        f"has {self.transformer.config.get(key)}; give networks that were trained for the same."
                    )
        return networks

    def _check_arguments(self, *arguments, **counts) -> None:
        config = self.transformer.config
        if self._learns_variance and config.get("out_channels") != 2 * config.in_channels:
            raise ValueError(
                f"`scheduler` has the variance_type {self.scheduler.config.variance_type!r}, but the network learned "
                "no variance; choose 'fixed_small'."
            )
        if config.get("cross_attention_dim") is not None:
            raise ValueError(
                "`transformer` reads a text (`cross_attention_dim`); use it as `unet` of StableDiffusionPipeline."
            )
        super()._check_arguments(*arguments, **counts)
