"""`resolution`: the sizes that steps on latents are drawn from."""

from typing import Literal

from pydantic import Field, model_validator

from brickwork.training.config.section import Number, Section, require


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
