"""`ema`: averaged weights."""

from pydantic import Field

from brickwork.training.config.section import Count, Number, Section


class EMAConfig(Section):
    """Averaged weights: half-life in images, at most a share of the images seen so far."""

    half_life_images: Count
    rampup_ratio: Number = Field(ge=0, description="0 (no ramp) or more")
