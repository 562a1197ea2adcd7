"""What a battle of backbones is: its networks, and the ordinary training run that each of its cells comes down to."""

import dataclasses
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from brickwork.errors import one_of
from brickwork.gen.networks.wrapped import DENOISERS, brick_sizes
from brickwork.training.config.config import Configuration, TrainConfig, load_config
from brickwork.training.config.data import DataConfig
from brickwork.training.config.ema import EMAConfig
from brickwork.training.config.model import ModelConfig
from brickwork.training.config.objective import ObjectiveConfig
from brickwork.training.config.optimizer import OptimizerConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.config.section import Number, Positive, Section, require
from brickwork.training.studies.timed import trained_parameters
from brickwork.training.tasks.backbones import BACKBONES, build_model

CONFIG = Path(__file__).parents[2] / "configs" / "battle.yaml"
_OF_LEGO = ("brick_dropout", "train_bricks", "brick_images")


@dataclass(frozen=True)
class Network:
    """One of the networks.

    Attributes:
        label: in tables and plots.
        colour: in plots, as matplotlib takes it.
        type: one of `BACKBONES`, or of diffusers' `DENOISERS`.
        config: configuration of the network, without what the data say.
    """

    label: str
    colour: str
    type: str
    config: dict[str, Any]


class BattleSettings(Section):
    """Who takes part, and how often."""

    networks: list[str] | None
    parameters: Positive
    tolerance: Number = Field(ge=0, description="a share of 0 or more")
    seeds: list[int]
    learning_rates: list[Number]
    sweep_images: Positive
    timing_rounds: Positive

    @model_validator(mode="after")
    def _different_cells(self):
        seeds, rates = self.seeds, self.learning_rates
        positive = _distinct(seeds) and min(seeds) >= 0
        require(positive, "battle.seeds", seeds, "give different whole numbers from 0")
        require(_distinct(rates) and min(rates) > 0, "battle.learning_rates", rates, "give different positive numbers")
        return self


class ScoreSettings(Section):
    """How the samples of a finished cell are drawn and measured."""

    extractor: str | None
    protocol: str
    samples: int = Field(ge=4, description="at least 4, hundreds to be of use")
    steps: Positive
    guidance_scale: Number
    batch_size: Positive


class BattleConfig(Configuration):
    """A whole battle; the sections from `data` on are those of a training run, and alike for all networks."""

    networks: dict[str, Any]
    battle: BattleSettings
    scores: ScoreSettings
    data: DataConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    ema: EMAConfig
    run: RunConfig

    @model_validator(mode="after")
    def _fair(self):
        require(self.objective.type == "edm", "objective.type", self.objective.type, "a battle is fought with 'edm'")
        accumulated = self.run.gradient_accumulation_steps
        require(accumulated == 1, "run.gradient_accumulation_steps", accumulated, "leave it at 1")
        # What some networks cannot do, or what would not be alike for all.
        for section, names in (("data", ("latents", "crop_share", "bucket_step")), ("objective", _OF_LEGO)):
            for name in names:
                value = getattr(getattr(self, section), name)
                require(not value, f"{section}.{name}", value, "leave it out, as not every network can do so")
        for name in self.battle.networks or []:
            one_of("battle.networks", name, self.networks)
        require(bool(self.fighters), "networks", self.networks, "name at least one")
        return self

    @property
    def fighters(self) -> dict[str, Network]:
        """The networks that take part, in their order."""
        chosen = self.battle.networks or list(self.networks)
        return {name: _network(name, self.networks[name]) for name in chosen}

    @property
    def rates(self) -> list[float]:
        """The learning rates to try, rising."""
        return sorted(float(rate) for rate in self.battle.learning_rates)


def _distinct(values: list) -> bool:
    return bool(values) and len(set(map(str, values))) == len(values)


def _network(name: str, values: Any) -> Network:
    keys = [field.name for field in dataclasses.fields(Network)]
    if not isinstance(values, dict) or set(values) != set(keys):
        raise ValueError(f"`networks.{name}` is {values!r}; give a mapping with {', '.join(keys)}.")
    one_of(f"networks.{name}.type", values["type"], [*BACKBONES, *DENOISERS])
    require(isinstance(values["config"], dict), f"networks.{name}.config", values["config"], "give a mapping")
    return Network(**values)


def model_config(network: Network, size: int, channels: int, num_classes: int) -> ModelConfig:
    """What a training run says of a network.

    One of diffusers becomes the only brick of a LEGO stack, estimating EDM's F as the others do.

    Args:
        network: of the battle.
        size: side of the pictures.
        channels: of the pictures.
        num_classes: of the data, 0 for none.
    """
    kind, config = network.type, network.config
    if kind in DENOISERS:
        arguments = inspect.signature(DENOISERS[kind].__init__).parameters.items()
        defaults = {name: value.default for name, value in arguments if value.default is not inspect.Parameter.empty}
        classes = {"UNet2DModel": {"num_class_embeds": num_classes + 1}}.get(
            kind, {"num_embeds_ada_norm": num_classes}
        )
        own = {"sample_size": size, "in_channels": channels, "out_channels": channels}
        own |= (classes if num_classes else {}) | config
        described = {"class_name": kind, "prediction_type": "edm", "config": own}
        patch = brick_sizes(kind, defaults | own)[1]
        config = {"pretrained_brick": described, "window_sizes": [size], "patch_sizes": [patch], "num_layers": [0]}
        kind = "LegoTransformer2DModel"
    return load_config().model.replace(type=kind, config=config)


@dataclass(frozen=True)
class Entry:
    """One training run of a battle.

    Attributes:
        network: its name.
        seed: of initialisation, data order and noise; of the samples too.
        learning_rate: after the warm-up.
        images: to train on.
        scored: whether samples are drawn and measured at the end.
    """

    network: str
    seed: int
    learning_rate: float
    images: int
    scored: bool

    @property
    def name(self) -> str:
        """Of its cell."""
        if self.scored:
            return f"cells/{self.network}-seed{self.seed}"
        return f"sweep/{self.network}-{self.learning_rate:g}"


def sweep_entries(config: BattleConfig) -> list[Entry]:
    """The runs that try learning rates, with the first seed; none where there is one rate."""
    rates, seed = config.rates if len(config.rates) > 1 else [], config.battle.seeds[0]
    return [Entry(name, seed, rate, config.battle.sweep_images, False) for name in config.fighters for rate in rates]


def seed_entries(config: BattleConfig, rates: dict[str, float]) -> list[Entry]:
    """The runs of the battle, seed after seed, so that a battle cut short has all networks; `rates` by network."""
    return [
        Entry(name, seed, rates[name], config.run.total_images, True)
        for seed in config.battle.seeds
        for name in config.fighters
    ]


def train_config(config: BattleConfig, entry: Entry, source: str, num_classes: int, channels: int = 3) -> TrainConfig:
    """The ordinary training run of an entry.

    Args:
        config: of the battle.
        entry: to train.
        source: the pictures, of the battle's size and classes.
        num_classes: of the pictures, 0 for none.
        channels: of the pictures.
    """
    rest = load_config(None, ["samples.count=0"])
    network, data, settings = config.fighters[entry.network], config.data, config.run
    # One look at the end is all that a rate is judged by.
    looks = settings.sample_images if entry.scored else entry.images
    return rest.replace(
        model=model_config(network, data.size, channels, num_classes),
        data=data.replace(source=source, split="train", classes=None),
        objective=config.objective,
        optimizer=config.optimizer.replace(learning_rate=entry.learning_rate),
        ema=config.ema,
        run=settings.replace(total_images=entry.images, seed=entry.seed, sample_images=looks),
    )


def build_networks(config: BattleConfig, class_names: list[str], channels: int = 3) -> dict[str, Any]:
    """Every network, freshly initialised, checked against the data and the battle's number of parameters.

    Raises:
        ValueError: naming the network that does not fit, or is not of the battle's size.
    """
    built, wanted, share = {}, config.battle.parameters, config.battle.tolerance
    for name in config.fighters:
        entry = Entry(name, config.battle.seeds[0], config.rates[0], config.run.total_images, True)
        run = train_config(config, entry, config.data.source, len(class_names), channels)
        try:
            built[name] = build_model(run, class_names, config.data.size, channels)
        except ValueError as error:
            raise ValueError(f"`networks.{name}` does not fit: {error}") from None
        count = trained_parameters(built[name])
        if abs(count - wanted) > share * wanted:
            lowest, highest = math.ceil((1 - share) * wanted), math.floor((1 + share) * wanted)
            raise ValueError(
                f"`networks.{name}` has {count:,} parameters, and a fair battle wants `battle.parameters`={wanted:,} "
                f"to within `battle.tolerance`={share:g}, {lowest:,} to {highest:,}; change its width or depth, or "
                "set these two."
            )
    return built
