"""`run`: how long, how large, where to, and what to show on the way."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from brickwork.training.config.section import Count, Positive, Section, require

# YAML 1.1 reads `run.mixed_precision=no` as false.
Precision = Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(lambda v: "no" if v is False else v)]


class RunConfig(Section):
    """How long, how large, where to, and what to show on the way."""

    output_dir: str
    total_images: Positive
    batch_size: Positive
    gradient_accumulation_steps: Positive
    mixed_precision: Precision
    gradient_checkpointing: bool
    compile: bool
    seed: Count
    log_images: Positive
    sample_images: Count
    checkpoint_images: Positive
    keep_checkpoints: int = Field(ge=1, description="at least 1 to keep")
    max_nonfinite_steps: Count
    wandb_project: str | None

    @model_validator(mode="after")
    def _whole_micro_batches(self):
        parts = self.gradient_accumulation_steps
        rule = f"make it a multiple of run.gradient_accumulation_steps = {parts}"
        require(self.batch_size % parts == 0, "run.batch_size", self.batch_size, rule)
        return self
