"""The configurations of runs that train on a Stable Diffusion pipeline's latents and captions."""

from typing import ClassVar

from brickwork.training.config.adapter import AdapterConfig, ModuleAdapterConfig, PartsConfig
from brickwork.training.config.config import DEFAULTS, RunConfiguration
from brickwork.training.config.data import CaptionedDataConfig, ResolutionConfig
from brickwork.training.config.model import PretrainedConfig
from brickwork.training.config.objective import LatentObjectiveConfig
from brickwork.training.config.samples import PromptSamplesConfig

LATENT_DEFAULTS = DEFAULTS.parent / "stable_diffusion_defaults.yaml"


class LatentConfig(RunConfiguration):
    """What every task on latents and captions has."""

    defaults: ClassVar = (DEFAULTS, LATENT_DEFAULTS)

    model: PretrainedConfig
    data: CaptionedDataConfig
    resolution: ResolutionConfig
    objective: LatentObjectiveConfig
    samples: PromptSamplesConfig


class ResAdapterConfig(LatentConfig):
    """A ResAdapter's run."""

    adapter: AdapterConfig


class AdapterRunConfig(LatentConfig):
    """The run of an adapter on activations."""

    adapter: ModuleAdapterConfig


class TextToImageConfig(LatentConfig):
    """A text-to-image run."""

    parts: PartsConfig
