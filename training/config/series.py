"""The configuration of a run on series."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from brickwork.training.config.config import DEFAULTS, RunConfiguration
from brickwork.training.config.library import CONFIGS
from brickwork.training.config.section import Count, Positive, Section, Share, require


class SeriesModelConfig(Section):
    """A `SeriesDenoiser`: its network for pictures, and how series are folded."""

    type: str
    network: str
    config: dict[str, Any]
    periods: list[int] | None = Field(description="a list of whole numbers, or null to take them from the data")
    top_k: Positive
    delay: list[int] | None = Field(description="a list of two whole numbers, or null")


class SeriesDataConfig(Section):
    """Which series, and the windows that are cut from them."""

    source: str
    time_column: str | None
    columns: list[str] | None = Field(description="a list of names, or null")
    length: Positive
    held_out: Share
    max_broken_images: Count  # the engine asks every task for it; no window of a table breaks
    num_workers: Count


class SeriesObjectiveConfig(Section):
    """What is predicted, and how often what is known of a window: its beginning, all but some stretches, nothing."""

    type: str
    options: dict[str, Any]
    forecasts: Share
    gaps: Share

    @model_validator(mode="after")
    def _shares(self):
        rule = f"together with objective.forecasts = {self.forecasts} it may be at most 1"
        require(self.forecasts + self.gaps <= 1, "objective.gaps", self.gaps, rule)
        return self


class SeriesSamplesConfig(Section):
    """What the averaged weights draw as the run goes."""

    count: Count
    steps: Positive


class SeriesMetricsConfig(Section):
    """Series have no distances to references of pictures."""

    every_images: Count


class SeriesConfig(RunConfiguration):
    """A run on series; an "image" is a window of a series."""

    defaults: ClassVar[tuple[Path, ...]] = (DEFAULTS, CONFIGS / "series_defaults.yaml")
    model: SeriesModelConfig
    data: SeriesDataConfig
    objective: SeriesObjectiveConfig
    samples: SeriesSamplesConfig
    metrics: SeriesMetricsConfig
