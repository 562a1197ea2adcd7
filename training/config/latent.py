"""The configuration of runs that train on a Stable Diffusion pipeline's latents and captions."""

import dataclasses
from dataclasses import dataclass

import yaml

from brickwork.training.config.config import (
    DEFAULTS,
    EMAConfig,
    OptimizerConfig,
    RunConfig,
    SamplesConfig,
    SourceConfig,
    fits,
    require,
)

LATENT_DEFAULTS = DEFAULTS.parent / "stable_diffusion_defaults.yaml"
KINDS = ("interpolation", "extrapolation", "both")


@dataclass(frozen=True)
class PretrainedConfig:
    """Which pipeline: its folder or its name on the hub."""

    base: str
    revision: str | None
    variant: str | None
    attention_backend: str | None


@dataclass(frozen=True)
class CaptionedDataConfig(SourceConfig):
    """How images with captions are prepared; `label_column` and `classes` choose rows, and nothing else."""

    caption_column: str
    cache: str | None
    max_upscale: float

    def __post_init__(self):
        super().__post_init__()
        require(self.max_upscale >= 1, "data.max_upscale", self.max_upscale, "give 1 (never) or more")


@dataclass(frozen=True)
class ResolutionConfig:
    """The sizes that steps are drawn from; a size is the root of the area in pixels."""

    min_size: int
    max_size: int
    max_aspect: float
    step: int
    ratios: str

    def __post_init__(self):
        require(self.min_size >= 1, "resolution.min_size", self.min_size, "give a size in pixels")
        rule = f"give resolution.min_size = {self.min_size} or more"
        require(self.max_size >= self.min_size, "resolution.max_size", self.max_size, rule)
        require(self.max_aspect >= 1, "resolution.max_aspect", self.max_aspect, "give 1 (squares) or more")
        require(self.step >= 0, "resolution.step", self.step, "give pixels, or 0 for what the UNet needs")
        require(self.ratios in ("any", "data"), "resolution.ratios", self.ratios, "choose any or data")


@dataclass(frozen=True)
class LatentObjectiveConfig:
    """The denoising loss; what is predicted, and on which noise schedule, is the pipeline's."""

    min_snr_gamma: float | None
    noise_offset: float
    caption_dropout: float
    size_conditions: str

    def __post_init__(self):
        gamma = self.min_snr_gamma
        require(gamma is None or gamma > 0, "objective.min_snr_gamma", gamma, "give a positive number, or null")
        require(0 <= self.noise_offset <= 1, "objective.noise_offset", self.noise_offset, "give a share, 0 to 1")
        dropout = self.caption_dropout
        require(0 <= dropout <= 1, "objective.caption_dropout", dropout, "give a share, 0 to 1")
        conditions = self.size_conditions
        allowed = ("size", "picture")
        require(conditions in allowed, "objective.size_conditions", conditions, f"choose one of {allowed}")


@dataclass(frozen=True)
class PromptSamplesConfig(SamplesConfig):
    """The grids that the averaged weights draw as the run goes: `count` pictures of each size."""

    prompts: list[str]
    sizes: list[list[int]]
    held_out: int

    def __post_init__(self):
        super().__post_init__()
        require(self.held_out >= 0, "samples.held_out", self.held_out, "give a number of pictures, 0 for none")
        require(all(fits(p, str) for p in self.prompts), "samples.prompts", self.prompts, "give texts")
        pairs = all(isinstance(s, list) and len(s) == 2 and all(fits(side, int) for side in s) for s in self.sizes)
        require(pairs, "samples.sizes", self.sizes, "give pairs of height and width, such as [[512, 768]]")


@dataclass(frozen=True)
class LatentConfig:
    """What every task on latents and captions has. No field has a default here: see the files in `defaults`."""

    model: PretrainedConfig
    data: CaptionedDataConfig
    resolution: ResolutionConfig
    objective: LatentObjectiveConfig
    optimizer: OptimizerConfig
    ema: EMAConfig
    samples: PromptSamplesConfig
    run: RunConfig

    defaults = (DEFAULTS, LATENT_DEFAULTS)

    def to_yaml(self) -> str:
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


@dataclass(frozen=True)
class AdapterConfig:
    """What of a ResAdapter is trained, and from where.

    `interpolation` is LoRA on the down- and upsamplers, `extrapolation` the norms of the ResNet blocks.
    """

    kind: str
    rank: int | None
    alpha: float | None
    init_from: str | None
    norm_mode: str
    base_model: str | None

    def __post_init__(self):
        require(self.kind in KINDS, "adapter.kind", self.kind, f"choose one of {KINDS}")
        require(self.rank is None or self.rank >= 1, "adapter.rank", self.rank, "give at least 1, or null")
        require(self.alpha is None or self.alpha > 0, "adapter.alpha", self.alpha, "give a positive number, or null")
        require(self.norm_mode in ("replace", "delta"), "adapter.norm_mode", self.norm_mode, "choose replace or delta")


@dataclass(frozen=True)
class ResAdapterConfig(LatentConfig):
    """A ResAdapter's whole run."""

    adapter: AdapterConfig
