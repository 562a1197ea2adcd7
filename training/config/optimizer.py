"""`optimizer` and `ema`: the optimiser, the course of its rate, and averaged weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from brickwork.training.config.section import Count, Number, Section, require


class OptimizerConfig(Section):
    """The optimiser, and its rate: a linear warm-up, a course, a linear cool-down at the end; counted in images."""

    type: Literal["adamw", "adamw_8bit", "muon"]
    learning_rate: Number = Field(gt=0, description="a positive rate")
    schedule: Literal["constant", "cosine", "inverse_sqrt"]
    decay_images: Count
    betas: list[Annotated[Number, Field(ge=0, lt=1)]] = Field(
        min_length=2, max_length=2, description="two numbers below 1"
    )
    weight_decay: Number = Field(ge=0, description="0 or more")
    max_grad_norm: Number = Field(gt=0, description="a positive norm")
    warmup_images: Count
    cooldown_images: Count

    @model_validator(mode="after")
    def _length_of_the_course(self):
        missing = self.schedule == "inverse_sqrt" and self.decay_images == 0
        require(not missing, "optimizer.decay_images", 0, "inverse_sqrt needs the images after which it falls")
        return self


class EMAConfig(Section):
    """Averaged weights: half-life in images, at most a share of the images seen so far."""

    half_life_images: Count
    rampup_ratio: Number = Field(ge=0, description="0 (no ramp) or more")
