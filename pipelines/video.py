"""Short clips from a video denoiser, for a class or for none; longer ones by windows that overlap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image

from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.clip_files import write_clip
from brickwork.pipelines.sampling import Evaluation, Hook, documented, first_noise
from brickwork.pipelines.schedules import Schedule
from brickwork.pipelines.seeds import checked_generator


@dataclass
class VideoPipelineOutput(BaseOutput):
    """Clips.

    Attributes:
        frames: a list of PIL images for each clip, an array `(B, F, H, W, C)` or a tensor `(B, F, C, H, W)` in [0, 1],
            or the sampler's result `(B, C, F, h, w)`.
        fps: frames a second.
    """

    frames: list | np.ndarray | torch.Tensor
    fps: float = 8

    def save(self, path: str | Path, number: int = 0) -> Path:
        """Write clip `number`, drawn as PIL images, as `.gif`, `.webp` or `.mp4` (see `write_clip`)."""
        return write_clip(self.frames[number], path, self.fps)


class KnownFrames(Hook):
    """The first frames are given: before every evaluation they come as they are, in that evaluation's noise.

    Args:
        known: `(B, C, K, h, w)`, as the network sees them without noise.
        noise: of unit variance, of the same shape; the same all along.
        scheduler: of the call, whose steps are set.
    """

    def __init__(self, known: torch.Tensor, noise: torch.Tensor, scheduler: SchedulerMixin):
        self.known, self.noise, self.scheduler = known, noise, scheduler

    def before(self, latents: torch.Tensor, evaluation: Evaluation) -> tuple[torch.Tensor, dict[str, Any]]:
        timestep, scheduler = evaluation.timestep, self.scheduler
        if hasattr(scheduler, "precondition_noise"):  # the EDM family, whose timestep is ln(σ) / 4
            noisy = self.known + (4 * timestep.double()).exp().to(self.noise) * self.noise
        elif hasattr(scheduler, "scale_noise"):  # flow matching
            share = (timestep / scheduler.config.num_train_timesteps).to(self.noise)
            noisy = (1 - share) * self.known + share * self.noise
        else:
            noisy = scheduler.add_noise(self.known, self.noise, timestep.reshape(1).to(self.known.device))
        return self._with(latents, noisy), {}

    def after_step(self, latents: torch.Tensor, evaluation: Evaluation) -> torch.Tensor:
        last = evaluation.number + 1 == len(self.scheduler.timesteps)
        return self._with(latents, self.known) if last else latents

    def _with(self, latents: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return torch.cat([first.to(latents), latents[:, :, first.shape[2] :]], dim=2)


class FrameWindows(Hook):
    """The network sees a long clip in windows that overlap, whose estimates are blended, nearer to the middle more.

    Args:
        window: frames at once.
        overlap: frames that a window shares with the next, at least.
    """

    def __init__(self, window: int, overlap: int):
        self.window, self.overlap = window, overlap

    def starts(self, frames: int) -> list[int]:
        """First frames of the windows; the last one ends with the clip."""
        last = max(frames - self.window, 0)
        return sorted({*range(0, last, self.window - self.overlap), last})

    def at(self, network: Callable[..., torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor, **arguments):
        frames = sample.shape[2]
        if frames <= self.window:
            return network(sample, timestep, **arguments)
        ramp = torch.arange(1, self.window + 1, device=sample.device)
        weight = torch.minimum(ramp, ramp.flip(0)).to(sample).view(-1, 1, 1)
        parts = [slice(start, start + self.window) for start in self.starts(frames)]
        outputs = [network(sample[:, :, part], timestep, **arguments) * weight for part in parts]
        total, weights = outputs[0].new_zeros(*outputs[0].shape[:2], *sample.shape[2:]), sample.new_zeros(frames, 1, 1)
        for part, output in zip(parts, outputs):
            total[:, :, part] += output
            weights[part] += weight
        return total / weights


class VideoPipeline(ClassToImagePipeline):
    """Class-conditional or unconditional clips from a `VideoDenoiser` (see `inflate`).

    Args:
        transformer: the network.
        scheduler: as of `ClassToImagePipeline`.
        vae: decoder of a latent model, of pictures or of clips; `None` for a model of pixels.
        subnet_schedule: which subnet of the image network runs at which noise level.
        guidance_scale: recommended for calls that name none; `None` for 1.
        num_inference_steps: likewise; `None` for 50.
        num_frames: of a clip unless a call says otherwise; also the frames that the network sees at once.
        fps: frames a second of what it learned from.
    """

    _axes = ("batch", "channels", "frames", "height", "width")

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        subnet_schedule: Schedule | dict | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        num_frames: int = 16,
        fps: float = 8,
    ):
        super().__init__(transformer, scheduler, vae, subnet_schedule, guidance_scale, num_inference_steps)
        self.register_to_config(num_frames=num_frames, fps=fps)

    @classmethod
    def from_objective(
        cls, transformer: ModelMixin, objective: Any, vae: AutoencoderKL | None = None, **config
    ) -> "VideoPipeline":
        """The pipeline of a network that was trained with `objective`, one of `brickwork.gen.parameterization`."""
        return cls(transformer, objective.scheduler(), vae, **config)

    @torch.no_grad()
    @documented(steps=50, unit="evaluation")
    def __call__(
        self,
        class_labels: Any = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        first_frames: Any = None,
        window: int | None = None,
        overlap: int | None = None,
        fps: float | None = None,
        num_images_per_label: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["VideoPipeline", int, torch.Tensor, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        num_images_per_prompt: int | None = None,
        subnet_schedule: Schedule | None = None,
    ) -> VideoPipelineOutput | tuple:
        """Draw clips; images below are clips, and latents have an axis of frames behind the channels.

        Args:
            SHARED
            num_frames: of each clip; by default the pipeline's, or those of `latents`.
            first_frames: a picture that every clip begins with, a list of one picture (or list of pictures) for each
                clip, or a tensor `(B, C, K, H, W)` in [-1, 1].
            window: frames that the network sees at once; a longer clip is drawn in windows that overlap. By default
                the pipeline's `num_frames`.
            overlap: frames that neighbouring windows share; by default half a window.
            fps: noted in the output; by default the pipeline's.
            subnet_schedule: which subnet runs at which noise level; by default the pipeline's own, else the network.

        Raises:
            ValueError: for labels, sizes, frames, windows and other arguments that the network cannot take.
        """
        steps = self._recommended("num_inference_steps", num_inference_steps, 50)
        number = num_images_per_label if num_images_per_prompt is None else num_images_per_prompt
        guidance_scale = self._recommended("guidance_scale", guidance_scale, 1.0)
        saved = self.config.num_frames if latents is None or latents.ndim != 5 else latents.shape[2]
        frames = saved if num_frames is None else num_frames
        self._check_arguments(
            steps, guidance_scale, output_type, callback_on_step_end_tensor_inputs, num_images_per_label=number,
            num_frames=frames,
        )  # fmt: skip
        windows = self._windows(window, overlap)
        self._others = {}
        config, device, labels = self.transformer.config, self._execution_device, self._labels(class_labels, number)
        patch = max([config.get("patch_size") or 1, *(config.get("patch_sizes") or [])])
        size = self._sample_size(height, width, latents, patch)
        shape = (len(labels), config.in_channels, frames, *size)
        known = self._first_frames(first_frames, shape)
        subnets = self._set_steps(steps, subnet_schedule)
        generator = checked_generator(generator, len(labels))
        noise, hooks = first_noise(latents, shape, generator, device), [windows]
        if known is not None:
            known = known.to(device)
            hooks.append(KnownFrames(known, noise[:, :, : known.shape[2]], self.scheduler))
        drawn, _ = self._denoise(
            noise,
            self._class_conditions(labels, device),
            generator,
            subnets,
            hooks,
            callback=callback_on_step_end,
            tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        output = VideoPipelineOutput(self._decode(drawn, output_type), self.config.fps if fps is None else fps)
        return output if return_dict else (output.frames,)

    def _windows(self, window: int | None, overlap: int | None) -> FrameWindows:
        window = self.config.num_frames if window is None else window
        overlap = window // 2 if overlap is None else overlap
        if type(window) is not int or window < 1 or type(overlap) is not int or not 0 <= overlap < window:
            raise ValueError(
                f"`window` is {window!r} and `overlap` {overlap!r}; give whole numbers, a window of at least 1 frame "
                "and an overlap from 0 to below it."
            )
        return FrameWindows(window, overlap)

    def _first_frames(self, given: Any, shape: Sequence[int]) -> torch.Tensor | None:
        """The frames that clips begin with, `(B, C, K, h, w)` as the network sees them."""
        if given is None:
            return None
        batch, _, frames, *size = shape
        if not isinstance(given, torch.Tensor):
            clips = list(given) if isinstance(given, (list, tuple)) else [given] * batch
            clips = [list(clip) if isinstance(clip, (list, tuple)) else [clip] for clip in clips]
            wrong = sorted(
                {type(frame).__name__ for clip in clips for frame in clip if not isinstance(frame, Image.Image)}
            )
            if wrong or len({len(clip) for clip in clips}) != 1:
                raise ValueError(
                    f"`first_frames` has {len(clips)} clips of {sorted({len(clip) for clip in clips})} frames"
                    f"{f' of type {wrong[0]}' if wrong else ''}; give PIL pictures, as many for each clip."
                )
            given = torch.stack([torch.stack([_pixels(frame) for frame in clip], dim=1) for clip in clips])
        factor = self.vae_scale_factor
        wanted = (batch, given.shape[2] if given.ndim == 5 else 1, *(side * factor for side in size))
        found = (given.shape[0], *given.shape[2:]) if given.ndim == 5 else tuple(given.shape)
        if found != wanted or given.shape[2] > frames:
            raise ValueError(
                f"`first_frames` are {found} (clips, frames, height, width), where the call draws {batch} clips of "
                f"{frames} frames of {wanted[2]} × {wanted[3]}; give at most so many frames of that size."
            )
        return self.encode(given.float())


def _pixels(picture: Image.Image) -> torch.Tensor:
    """`(3, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
