"""`model`: which network, or which pipeline to go on from."""

from typing import Any

from brickwork.training.config.section import Section


class ModelConfig(Section):
    """Which network: a class, a preset if wanted, and configuration values over it."""

    type: str
    preset: str | None
    config: dict[str, Any]
    init_from: str | None
    wrap: str | None
    attention_backend: str | None


class PretrainedConfig(Section):
    """Which pipeline: its folder or its name on the hub."""

    base: str
    revision: str | None
    variant: str | None
    attention_backend: str | None
