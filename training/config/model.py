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

    @property
    def comes_trained(self) -> bool:
        """Whether weights come from elsewhere, of all or of the lowest brick."""
        return bool(self.init_from or self.wrap)


class PretrainedConfig(Section):
    """Which pipeline: its folder or its name on the hub."""

    base: str
    revision: str | None
    variant: str | None
    attention_backend: str | None
