"""The configuration of a run that trains a video denoiser on clips."""

from typing import ClassVar, Literal

from pydantic import Field

from brickwork.training.config.config import DEFAULTS, RunConfiguration
from brickwork.training.config.objective import ObjectiveConfig
from brickwork.training.config.samples import SamplesConfig
from brickwork.training.config.section import Count, Number, Positive, Section


class ClipDataConfig(Section):
    """Which clips, and which windows of them."""

    source: str
    clip_column: str
    label_column: str | None
    classes: list[str] | None = Field(description="a list of names, or null")
    held_out: Number = Field(ge=0, lt=1, description="a share from 0 to below 1")
    max_broken_images: Count
    num_workers: Count
    size: Positive
    frames: Positive
    stride: Positive
    fps: Number | None = Field(gt=0, description="frames a second, or null")
    horizontal_flip: bool
    latents: str | None = Field(description="a .safetensors file, or null")


class VideoModelConfig(Section):
    """Which image network becomes one of video, how, and what of it learns."""

    image: str
    pattern: str
    learns: Literal["all", "temporal"]
    first_frame_share: Number = Field(ge=0, le=1, description="a share from 0 to 1")


class VideoTrainConfig(RunConfiguration):
    """A run on clips."""

    defaults: ClassVar = (DEFAULTS, DEFAULTS.parent / "video_defaults.yaml")

    model: VideoModelConfig
    data: ClipDataConfig
    objective: ObjectiveConfig
    samples: SamplesConfig
