"""What sampling pipelines share: their checks, sizes, first latents, and the way from latents to pictures."""

import math
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils.torch_utils import randn_tensor

from brickwork.gen.blocks.windowed import check_maps
from brickwork.pipelines.latents import decode, encode, pixels_per_latent
from brickwork.pipelines.saving import BrickworkPipeline

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class SamplingPipeline(BrickworkPipeline):
    """A pipeline of a `transformer`, a `scheduler` and an optional `vae`, with an `image_processor`."""

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image along one pixel of the network's sample."""
        return pixels_per_latent(self.vae)

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

    def _initial_latents(
        self,
        latents: torch.Tensor | None,
        shape: tuple[int, ...],
        generators: list[torch.Generator],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Noise of unit variance, given or drawn, scaled to where the scheduler starts."""
        if latents is None:
            latents = randn_tensor(shape, generators, device, torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}; this call needs {shape}.")
        return latents.to(device, dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _after_step(self, callback: Any, tensor_inputs: Any, step: int, timestep: Any, latents: Any) -> torch.Tensor:
        """Call the user's callback, if any; the latents to go on with."""
        if callback is None:
            return latents
        changed = callback(self, step, timestep, dict.fromkeys(tensor_inputs or (), latents)) or {}
        return changed.get("latents", latents).to(latents)

    def _decode(self, latents: torch.Tensor, output_type: str) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Sampler's result => pixels, [-1, 1] => the type asked for."""
        latents = latents.float()
        if output_type == "latent":
            return latents
        images = decode(self.vae, latents)
        return self.image_processor.postprocess(images.float(), output_type=output_type)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels `(B, 3, H, W)` in [-1, 1] => what the network sees: themselves, or the mean of the VAE's latents."""
        return encode(self.vae, images)

    def _sample_size(
        self, height: int | None, width: int | None, latents: torch.Tensor | None, patch: int
    ) -> tuple[int, int]:
        """Height and width of what the network sees, from those of the image; `patch` is the smallest it can see."""
        config, factor = self.transformer.config, self.vae_scale_factor
        if latents is not None and not isinstance(latents, torch.Tensor):
            raise ValueError(
                f"`latents` is a {type(latents).__name__}; give a tensor (batch, channels, height, width)."
            )
        if latents is not None and latents.ndim != 4:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}; give (batch, channels, height, width).")
        defaults = (config.sample_size,) * 2 if latents is None else latents.shape[-2:]
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
        # Networks of blocks say what their windows need.
        check_maps(*size, getattr(self.transformer, "maps", {}), "the network's sample has")
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
        if self.vae is not None and self.vae.config.latent_channels != config.in_channels:
            raise ValueError(
                f"`vae` has {self.vae.config.latent_channels} latent channels and `transformer` {config.in_channels}; "
                "they must be the same."
            )
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("num_images_per_label", num_images_per_label),
        ):
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` is {value!r}; give a whole number from 1 up.")
        number = isinstance(guidance_scale, (int, float)) and not isinstance(guidance_scale, bool)
        if not number or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` is {guidance_scale!r}; give a finite number, 1 for no guidance.")
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
        unknown = sorted(set(callback_inputs or ()) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}; allowed are {self._callback_tensor_inputs}."
            )
