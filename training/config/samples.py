"""`samples` and `metrics`: what the averaged weights draw as the run goes, and how far that is from a reference."""

from typing import Annotated

from pydantic import Field

from brickwork.training.config.section import Count, Number, Positive, Section

_Pair = Annotated[list[int], Field(min_length=2, max_length=2)]


class SamplesConfig(Section):
    """The grid of pictures that the averaged weights draw as the run goes, from the same noise every time."""

    count: int = Field(ge=0, description="a number of pictures, 0 for none")
    steps: Positive
    guidance_scale: Number


class PromptSamplesConfig(SamplesConfig):
    """The grids that the averaged weights draw as the run goes: `count` pictures of each size."""

    prompts: list[str] = Field(description="texts")
    sizes: list[_Pair] = Field(description="pairs of height and width, such as [[512, 768]]")
    held_out: Count


class MetricsConfig(Section):
    """Distances to a reference (see `brickwork evaluate ref`) of what the averaged weights draw, at intervals."""

    every_images: int = Field(ge=0, description="0 (never) or more")
    reference: str | None
    weights: str | None
    count: int = Field(ge=2, description="at least 2 samples, thousands to be of use")
    batch_size: Positive
    steps: Positive
    guidance_scale: Number
