"""`metrics`: distances to a reference that the averaged weights are measured by."""

from pydantic import Field

from brickwork.training.config.section import Number, Positive, Section


class MetricsConfig(Section):
    """Distances to a reference (see `brickwork evaluate ref`) of what the averaged weights draw, at intervals."""

    every_images: int = Field(ge=0, description="0 (never) or more")
    reference: str | None
    weights: str | None
    count: int = Field(ge=2, description="at least 2 samples, thousands to be of use")
    batch_size: Positive
    steps: Positive
    guidance_scale: Number
