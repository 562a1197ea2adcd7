"""`adapter` and `parts`: what of a Stable Diffusion pipeline, or on it, is trained."""

from typing import Any, Literal

from pydantic import Field

from brickwork.training.config.section import Number, Positive, Section


class AdapterConfig(Section):
    """What of a ResAdapter is trained, and from where.

    `interpolation` is LoRA on the down- and upsamplers, `extrapolation` the norms of the ResNet blocks.
    """

    kind: Literal["interpolation", "extrapolation", "both"]
    rank: int | None = Field(ge=1, description="at least 1, or null")
    alpha: Number | None = Field(gt=0, description="a positive number, or null")
    init_from: str | None
    norm_mode: Literal["replace", "delta"]
    base_model: str | None


class ModuleAdapterConfig(Section):
    """Which adapter on activations is trained, with which settings, and what its conditions are read from."""

    type: str
    config: dict[str, Any]
    conditions: dict[str, str]
    init_from: str | None


class PartsConfig(Section):
    """What of the pipeline is trained: the UNet, the UNet and the text encoder, or a LoRA over the whole UNet."""

    train: Literal["unet", "unet_and_text", "lora"]
    rank: Positive
    alpha: Number = Field(gt=0, description="a positive number")
