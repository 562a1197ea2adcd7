"""`data` and `resolution`: which images, how they are prepared, and in which sizes."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

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


def _growing(stages: list[list[int]]) -> list[list[int]]:
    pairs = all(len(stage) == 2 for stage in stages)
    lists = list(zip(*stages)) if pairs else []
    rising = all(list(values) == sorted(set(values)) for values in lists)
    fine = pairs and rising and (not stages or stages[0][0] == 0 and stages[0][1] >= 1)
    rule = "give pairs of images seen and the size from then on, from 0 images, both rising: [[0, 32], [200000, 64]]"
    require(fine, "data.progressive", stages, rule)
    return stages


Augmentations = Literal["x_flip", "y_flip", "quarter_turn", "pixel_shift", "scale", "rotate", "stretch", "shift"]


class DataConfig(SourceConfig):
    """How images with class labels are prepared."""

    size: int = Field(ge=1, description="the side of the training images in pixels")
    bucket_step: Count
    bucket_max_aspect: Number = Field(ge=1, description="at least 1")
    latents: str | None
    horizontal_flip: bool
    augment: Share
    augmentations: list[Augmentations]
    progressive: Annotated[list[list[int]], AfterValidator(_growing)] = Field(
        description="a list of [images, size], such as [[0, 32], [200000, 64]]"
    )
    crop_share: Share
    crop_scale: Number = Field(ge=1, description="at least 1")
    crop_aspect: Number = Field(ge=1, description="at least 1")

    @model_validator(mode="after")
    def _keys_fit(self):
        require(self.bucket_step <= self.size, "data.bucket_step", self.bucket_step, "give 0 to data.size")
        mirrored = self.latents is not None and self.horizontal_flip
        require(not mirrored, "data.horizontal_flip", True, "latents cannot be mirrored: set it to false")
        for key, value in (("augment", self.augment), ("progressive", self.progressive)):
            rule = "pixels alone, and no crops of canvases, can be changed so; leave it out, or data.latents and "
            plain = self.latents is None and self.crop_share == 0
            require(plain or not value, f"data.{key}", value, rule + "data.crop_share")
        squares, once = self.bucket_step == 0, len(set(self.augmentations)) == len(self.augmentations)
        turns = bool(self.augment) and "quarter_turn" in self.augmentations
        require(once and (self.augmentations or not self.augment), "data.augmentations", self.augmentations,
                "name at least one, each once")  # fmt: skip
        rule = "pictures in buckets cannot be turned by 90 degrees; leave out quarter_turn or data.bucket_step"
        require(squares or not turns, "data.augmentations", self.augmentations, rule)
        rule = f"give squares (data.bucket_step: 0) and end with data.size = {self.size}"
        ends = not self.progressive or squares and self.progressive[-1][1] == self.size
        require(ends, "data.progressive", self.progressive, rule)
        return self

    def require_unset(self, keys: Sequence[str], rule: str) -> None:
        """Raise a `ValueError` for the first of the keys that asks for something, for tasks that do not heed it."""
        for key in keys:
            value: Any = getattr(self, key)
            require(not value, f"data.{key}", value, rule)


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
