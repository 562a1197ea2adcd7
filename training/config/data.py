"""`data` and `resolution`: which images, how they are prepared, and in which sizes."""

from typing import Literal

from pydantic import Field, model_validator

from brickwork.training.config.section import Count, Number, Section, Share, require


class SourceConfig(Section):
    """Which images: a folder, a Parquet file or a data set of the hub, and which of its rows."""

    source: str
    split: str
    image_column: str
    label_column: str | None
    group_column: str | None
    classes: list[str] | None = Field(description="a list of names, or null")
    held_out: Number = Field(ge=0, lt=1, description="a share from 0 to below 1")
    max_broken_images: Count
    num_workers: Count


class DataConfig(SourceConfig):
    """How images with class labels are prepared."""

    size: int = Field(ge=1, description="the side of the training images in pixels")
    bucket_step: Count
    bucket_max_aspect: Number = Field(ge=1, description="at least 1")
    latents: str | None
    horizontal_flip: bool
    crop_share: Share
    crop_scale: Number = Field(ge=1, description="at least 1")
    crop_aspect: Number = Field(ge=1, description="at least 1")

    @model_validator(mode="after")
    def _keys_fit(self):
        require(self.bucket_step <= self.size, "data.bucket_step", self.bucket_step, "give 0 to data.size")
        mirrored = self.latents is not None and self.horizontal_flip
        require(not mirrored, "data.horizontal_flip", True, "latents cannot be mirrored: set it to false")
        return self


class CaptionedDataConfig(SourceConfig):
    """How images with captions are prepared; `label_column` and `classes` choose rows, and nothing else."""

    caption_column: str
    cache: str | None
    max_upscale: Number = Field(ge=1, description="1 (never) or more")


class ResolutionConfig(Section):
    """The sizes that steps are drawn from; a size is the root of the area in pixels."""

    min_size: int = Field(ge=1, description="a size in pixels")
    max_size: int
    max_aspect: Number = Field(ge=1, description="1 (squares) or more")
    step: int = Field(ge=0, description="pixels, or 0 for what the UNet needs")
    ratios: Literal["any", "data"]

    @model_validator(mode="after")
    def _rising(self):
        rule = f"give resolution.min_size = {self.min_size} or more"
        require(self.max_size >= self.min_size, "resolution.max_size", self.max_size, rule)
        return self
