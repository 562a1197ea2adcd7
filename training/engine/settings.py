"""What the engine reads of a run's configuration, taken from it in one place."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Self

from brickwork.training.config.config import RunConfiguration, changed_keys
from brickwork.training.config.optimizer import EMAConfig, OptimizerConfig
from brickwork.training.config.run import RunConfig


@dataclass(frozen=True)
class EngineSettings:
    """Sections, single values, and the record by which a run that goes on is judged.

    Attributes:
        run, optimizer, ema: those sections.
        source: of the data, for errors.
        num_workers: that read them.
        max_broken_images: that may be skipped.
        measured_every: images between measurements of samples, 0 for never.
        record: all of the configuration as YAML, as checkpoints hold it.
        changed: `(record, keys)` => what in this configuration, `keys` included, would change a training that began
            with another one (see `changed_keys`).
    """

    run: RunConfig
    optimizer: OptimizerConfig
    ema: EMAConfig
    source: str
    num_workers: int
    max_broken_images: int
    measured_every: int
    record: str
    changed: Callable[[str, Collection[str]], dict[str, tuple[Any, Any]]]

    @classmethod
    def of(cls, config: RunConfiguration) -> Self:
        """Of a run's configuration, whatever its task."""
        data, metrics = config.data, getattr(config, "metrics", None)
        return cls(
            config.run, config.optimizer, config.ema, data.source, data.num_workers, data.max_broken_images,
            metrics.every_images if metrics else 0, config.to_yaml(),
            lambda saved, bound=(): changed_keys(saved, config, bound),
        )  # fmt: skip
