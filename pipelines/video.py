"""Short clips from a video denoiser, for a class, a text or neither; longer ones by windows that overlap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin, StableDiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from brickwork.adapters.pictures import pixels_of
from brickwork.errors import whole_number
from brickwork.gen.networks.video import inflate
from brickwork.gen.parameterization import objective_of
from brickwork.pipelines.arguments import shared_call
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.clip_files import write_clip
from brickwork.pipelines.prompts import checked_prompts, encode_prompts
from brickwork.pipelines.sampling import Conditions, Evaluation, Hook, SamplingPipeline
from brickwork.pipelines.schedules import Schedule


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

    def save(self, path: str | Path, number: int = 0, fps: float | None = None) -> Path:
        """Write clip `number`, drawn as PIL images, as `.gif`, `.webp` or `.mp4` (see `write_clip`)."""
        return write_clip(self.frames[number], path, self.fps if fps is None else fps)


class KnownFrames(Hook):
    """The first frames are given: before every evaluation they come as they are, in that evaluation's noise.

    Args:
        known: `(B or 1, C, K, h, w)`, as the network sees them without noise.
        scheduler: of the call, whose steps are set.
        clean: the network is shown them without noise, as it learned to see them.
    """

    def __init__(self, known: torch.Tensor, scheduler: SchedulerMixin, clean: bool = False):
        self.known, self.scheduler, self.noise = known, scheduler, None
        self.clean = objective_of(scheduler).clean_inputs(known) if clean else None

    def before(self, latents: torch.Tensor, evaluation: Evaluation) -> tuple[torch.Tensor, dict[str, Any]]:
        timestep, scheduler = evaluation.timestep, self.scheduler
        if self.noise is None:  # that of the call, which the latents are so far
            if len(self.known) not in (1, len(latents)):
                raise ValueError(
                    f"`first_frames` has those of {len(self.known)} clips, and {len(latents)} are drawn; give one for "
                    "all, or one each."
                )
            self.known = self.known.to(latents).expand(len(latents), -1, -1, -1, -1)
            self.noise = latents[:, :, : self.known.shape[2]] / getattr(scheduler, "init_noise_sigma", 1.0)
        if hasattr(scheduler, "precondition_noise"):  # the EDM family, whose timestep is ln(σ) / 4
            noisy = self.known + (4 * timestep.double()).exp().to(self.noise) * self.noise
        elif hasattr(scheduler, "scale_noise"):  # flow matching
            share = (timestep / scheduler.config.num_train_timesteps).to(self.noise)
            noisy = (1 - share) * self.known + share * self.noise
        else:
            noisy = scheduler.add_noise(self.known, self.noise, timestep.reshape(1).to(self.known.device))
        return self._with(latents, noisy), {}

    def at(self, network: Callable[..., torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor, **arguments):
        if self.clean is not None:
            clean, level = (one.expand(len(self.known), *one.shape[1:]) for one in self.clean)
            times = len(sample) // len(clean)  # twice with guidance
            sample = self._with(sample, clean.repeat(times, 1, 1, 1, 1))
            timestep = timestep[:, None].repeat(1, sample.shape[2])
            timestep[:, : clean.shape[2]] = level.repeat(times).to(timestep)[:, None]
        return network(sample, timestep, **arguments)

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
        levels = [timestep[:, part] if timestep.ndim == 2 else timestep for part in parts]
        outputs = [network(sample[:, :, part], level, **arguments) * weight for part, level in zip(parts, levels)]
        total, weights = outputs[0].new_zeros(*outputs[0].shape[:2], *sample.shape[2:]), sample.new_zeros(frames, 1, 1)
        for part, output in zip(parts, outputs):
            total[:, :, part] += output
            weights[part] += weight
        return total / weights


class VideoPipeline(ClassToImagePipeline):
    """Clips from a `VideoDenoiser` (see `inflate`), for classes, for texts, or for nothing.

    Args beside those of `ClassToImagePipeline`:
        vae: decoder of a latent model, of pictures or of clips; `None` for a model of pixels.
        num_frames: of a clip unless a call says otherwise; also the frames that the network sees at once.
        fps: frames a second of what it learned from.
        clean_first: the network learned to see given first frames without noise.
        tokenizer: of a network that reads texts, as in Stable Diffusion 1.x and 2.x, or `None`.
        text_encoder: likewise.
    """

    _optional_components = ["vae", "tokenizer", "text_encoder"]
    model_cpu_offload_seq = "text_encoder->transformer->vae"
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
        tokenizer: CLIPTokenizer | None = None,
        text_encoder: CLIPTextModel | None = None,
        clean_first: bool = False,
    ):
        super().__init__(transformer, scheduler, vae, subnet_schedule, guidance_scale, num_inference_steps)
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)
        self.register_to_config(num_frames=num_frames, fps=fps, clean_first=clean_first)

    @classmethod
    def from_stable_diffusion(cls, pipe: StableDiffusionPipeline, pattern: str = "ABC", **settings) -> Self:
        """Clips from Stable Diffusion 1.x or 2.x: its UNet inflated, its other parts as they are.

        Until trained, each frame is what `pipe` draws from that frame's noise.

        Args:
            pipe: the image pipeline, which stays as it is.
            pattern: of `inflate`.
            settings: of the pipeline of clips; `guidance_scale` is 7.5 unless told otherwise.

        Raises:
            ValueError: for another pipeline; SDXL's network is told more than a text.
        """
        if not isinstance(pipe, StableDiffusionPipeline):
            raise ValueError(f"`pipe` is a {type(pipe).__name__}; give a StableDiffusionPipeline.")
        parts = {"vae": pipe.vae, "tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder}
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        return cls(inflate(pipe.unet, pattern), scheduler, **{"guidance_scale": 7.5} | parts | settings)

    @shared_call(SamplingPipeline._draw, ClassToImagePipeline.default_steps)
    def __call__(
        self,
        *shared,
        num_frames: int | None = None,
        first_frames: Any = None,
        window: int | None = None,
        overlap: int | None = None,
        subnet_schedule: Schedule | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        **further,
    ) -> VideoPipelineOutput | tuple:
        """Draw clips; what is said of images here holds for clips, whose latents have frames behind the channels.

        Args:
            SHARED
            num_frames: of each clip; by default the pipeline's, or those of `latents`.
            first_frames: a picture that every clip begins with, a list of one picture (or list of pictures) for each
                clip, or a tensor `(B or 1, C, K, H, W)` in [-1, 1].
            window: frames that the network sees at once; a longer clip is drawn in windows that overlap. By default
                the pipeline's `num_frames`.
            overlap: frames that neighbouring windows share; by default half a window.
            subnet_schedule: which subnet runs at which noise level; by default the pipeline's own, else the network.
            prompt: one text a clip, for a network that reads texts.
            negative_prompt: what guidance leads away from; by default the empty text.

        Raises:
            ValueError: for labels, texts, sizes, frames, windows and other arguments that the network cannot take.
        """
        given = getattr(further.get("latents"), "shape", ())
        frames = given[2] if num_frames is None and len(given) == 5 else num_frames
        frames = self.config.num_frames if frames is None else frames
        whole_number("num_frames", frames)
        windows = self._windows(window, overlap)

        def hooks_at(size: tuple[int, int]) -> list[Hook]:
            if first_frames is None:
                return [windows]
            known = self._known(first_frames, frames, size)
            return [windows, KnownFrames(known, self.scheduler, self.config.clean_first)]

        if prompt is not None or negative_prompt is not None or self.text_encoder is not None:
            shared, further = self._with_texts(prompt, negative_prompt, shared, further)
        return self._draw(*shared, schedule=subnet_schedule, hooks_at=hooks_at, axes=(frames,), **further)

    def _with_texts(self, prompt: Any, negative: Any, shared: tuple, further: dict) -> tuple[tuple, dict]:
        """The arguments of `_draw` with a pair of texts a clip in the place of labels."""
        if self.text_encoder is None:
            raise ValueError("`prompt` was given to a network that reads no text; give `class_labels`, or nothing.")
        if (shared[0] if shared else further.get("class_labels")) is not None:
            raise ValueError("`class_labels` were given to a network that reads texts; give `prompt=`.")
        texts, against = checked_prompts("prompt", prompt), checked_prompts("negative_prompt", negative) or [""]
        if not texts or len(against) not in (1, len(texts)):
            raise ValueError(
                f"`prompt` has {len(texts)} texts and `negative_prompt` {len(against)}; give at least one, and of the "
                "second one for all or one each."
            )
        pairs = list(zip(texts, against if len(against) == len(texts) else against * len(texts)))
        return (pairs, *shared[1:]), {name: value for name, value in further.items() if name != "class_labels"}

    def _labels(self, class_labels: Any, number: int) -> list:
        if self.text_encoder is None:
            return super()._labels(class_labels, number)
        return [pair for pair in class_labels for _ in range(number)]

    def _class_conditions(self, labels: list, device: torch.device) -> Conditions:
        if self.text_encoder is None:
            return super()._class_conditions(labels, device)
        sides = list(zip(*labels)) if self.guidance_scale != 1 else [[text for text, _ in labels]]
        encoded = [encode_prompts(self.tokenizer, self.text_encoder, texts, device) for texts in sides]
        encoded = [states.to(self.transformer.dtype) for states in encoded]
        return {"encoder_hidden_states": (encoded[0], encoded[1] if len(encoded) > 1 else None)}

    @property
    def _guides(self) -> bool:
        return self.text_encoder is not None or super()._guides

    def _check_components(self) -> None:
        reads = self.transformer.config.cross_attention_dim is not None
        if reads != (self.text_encoder is not None) or reads != (self.tokenizer is not None):
            raise ValueError(
                "`transformer` reads a text; give the pipeline the `tokenizer` and the `text_encoder` that it learned "
                "with (`VideoPipeline.from_stable_diffusion`)."
                if reads
                else "`text_encoder` was given with a `transformer` that reads no text; leave it and `tokenizer` out."
            )

    def _output(self, images: Any, subnets: Sequence[str | None]) -> VideoPipelineOutput:
        return VideoPipelineOutput(frames=images, fps=self.config.fps)

    def _windows(self, window: int | None, overlap: int | None) -> FrameWindows:
        window = self.config.num_frames if window is None else window
        overlap = window // 2 if overlap is None else overlap
        if type(window) is not int or window < 1 or type(overlap) is not int or not 0 <= overlap < window:
            raise ValueError(
                f"`window` is {window!r} and `overlap` {overlap!r}; give whole numbers, a window of at least 1 frame "
                "and an overlap from 0 to below it."
            )
        return FrameWindows(window, overlap)

    def _known(self, given: Any, frames: int, size: tuple[int, int]) -> torch.Tensor:
        """The frames that clips begin with, `(B or 1, C, K, h, w)` as the network sees them."""
        if not isinstance(given, torch.Tensor):
            clips = given if isinstance(given, (list, tuple)) else [given]
            clips = [clip if isinstance(clip, (list, tuple)) else [clip] for clip in clips]
            wrong = [frame for clip in clips for frame in clip if not isinstance(frame, Image.Image)]
            lengths = {len(clip) for clip in clips}
            if wrong or len(lengths) != 1 or lengths == {0}:
                what = f"a {type(wrong[0]).__name__}" if wrong else f"clips of {sorted(lengths)} frames"
                raise ValueError(f"`first_frames` has {what}; give PIL pictures, as many for each clip.")
            given = 2 * torch.stack([torch.stack(pixels_of("first_frames", clip), dim=2)[0] for clip in clips]) - 1
        sides = tuple(side * self.vae_scale_factor for side in size)
        if given.ndim != 5 or given.shape[2] > frames or tuple(given.shape[3:]) != sides:
            raise ValueError(
                f"`first_frames` have the shape {tuple(given.shape)}; give (clips, channels, frames, {sides[0]}, "
                f"{sides[1]}), or pictures of that size, with at most the {frames} frames of a clip."
            )
        return self.encode(given.float())
