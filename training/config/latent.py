"""The configurations of runs that train on a Stable Diffusion pipeline's latents and captions."""

from typing import ClassVar

from brickwork.training.config.adapter import AdapterConfig, ModuleAdapterConfig, PartsConfig
from brickwork.training.config.config import DEFAULTS, Configuration
from brickwork.training.config.data import CaptionedDataConfig, ResolutionConfig
from brickwork.training.config.model import PretrainedConfig
from brickwork.training.config.objective import FurtherObjectives, LatentObjectiveConfig
from brickwork.training.config.optimizer import EMAConfig, OptimizerConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.config.samples import PromptSamplesConfig

LATENT_DEFAULTS = DEFAULTS.parent / "stable_diffusion_defaults.yaml"


class LatentConfig(Configuration):
    """What every task on latents and captions has."""

    defaults: ClassVar = (DEFAULTS, LATENT_DEFAULTS)

    model: PretrainedConfig
    data: CaptionedDataConfig
    resolution: ResolutionConfig
    objective: LatentObjectiveConfig
    objectives: FurtherObjectives
    optimizer: OptimizerConfig
    ema: EMAConfig
    samples: PromptSamplesConfig
    run: RunConfig


class ResAdapterConfig(LatentConfig):
    """A ResAdapter's run."""

    adapter: AdapterConfig


class AdapterRunConfig(LatentConfig):
    """The run of an adapter on activations."""

    adapter: ModuleAdapterConfig


class TextToImageConfig(LatentConfig):
    """A text-to-image run."""

    parts: PartsConfig
