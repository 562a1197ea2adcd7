"""A fair battle of backbones: same pictures, objective, sizes and learning rates to choose from, several seeds.

After the idea of Battle of the Backbones (arXiv 2310.19909), for denoisers. Each cell is an ordinary training run.
"""

import importlib.util
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from pydantic import Field, model_validator
from safetensors.torch import load_file

from brickwork.errors import explained, one_of
from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.metrics.distances import feature_statistics, frechet_distance
from brickwork.eval.metrics.reference import Reference
from brickwork.eval.studies.core import Cell, run_study, table_of
from brickwork.files import write_file
from brickwork.gen.networks.wrapped import DENOISERS, brick_sizes, denoiser_class
from brickwork.training.config.config import Configuration, TrainConfig, load_config
from brickwork.training.config.data import DataConfig
from brickwork.training.config.model import ModelConfig
from brickwork.training.config.objective import ObjectiveConfig
from brickwork.training.config.optimizer import EMAConfig, OptimizerConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.config.section import Number, Positive, Section, require
from brickwork.training.data.images import BrokenImage, LabelledImages, images_of
from brickwork.training.studies.battle_report import STUDY, report
from brickwork.training.studies.timed import cost_cells, count_work
from brickwork.training.studies.trained import FEATURES, configured, reference_cell, training_cell
from brickwork.training.tasks.backbones import BACKBONES, TrainedOn, build_model

CONFIG = Path(__file__).parents[1] / "configs" / "battle.yaml"
PICTURES, REFERENCE = "data.parquet", "reference.safetensors"
UNFAIR = {  # what some networks cannot do, or what would not be alike for all
    "data": ("latents", "augment", "crop_share", "bucket_step"),
    "objective": ("brick_dropout", "train_bricks", "brick_images"),
}


@dataclass(frozen=True)
class Network:
    """One of the networks: how tables call it, its colour in plots, one of `BACKBONES` or `DENOISERS`, and its
    configuration without what the data say."""

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
        for name, least in (("seeds", 0), ("learning_rates", 5e-324)):
            values = getattr(self, name)
            kind = "whole numbers from 0" if name == "seeds" else "positive numbers"
            different = bool(values) and len(set(map(str, values))) == len(values) and min(values) >= least
            require(different, f"battle.{name}", values, f"give different {kind}")
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
    """A battle; the sections from `data` on are those of a training run, and alike for all networks."""

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
        for section, names in UNFAIR.items():
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
        return {name: _network(name, self.networks[name]) for name in self.battle.networks or list(self.networks)}

    @property
    def rates(self) -> list[float]:
        """The learning rates to try, rising."""
        return sorted(float(rate) for rate in self.battle.learning_rates)

    def sweep(self) -> "list[Entry]":
        """The runs that try learning rates, with the first seed; none where there is one rate."""
        rates, seed = self.rates if len(self.rates) > 1 else [], self.battle.seeds[0]
        return [Entry(name, seed, rate, self.battle.sweep_images, False) for name in self.fighters for rate in rates]

    def runs(self, rates: Mapping[str, float]) -> "list[Entry]":
        """The runs at each network's rate, seed after seed, so that a battle cut short has all networks."""
        images = self.run.total_images
        return [Entry(name, seed, rates[name], images, True) for seed in self.battle.seeds for name in self.fighters]


def _network(name: str, values: Any) -> Network:
    keys = [field.name for field in fields(Network)]
    if not isinstance(values, dict) or set(values) != set(keys):
        raise ValueError(f"`networks.{name}` is {values!r}; give a mapping with {', '.join(keys)}.")
    one_of(f"networks.{name}.type", values["type"], [*BACKBONES, *DENOISERS])
    require(isinstance(values["config"], dict), f"networks.{name}.config", values["config"], "give a mapping")
    return Network(**values)


@dataclass(frozen=True)
class Entry:
    """One training run: network, seed (of weights, data order, noise and samples), learning rate after the warm-up,
    images to train on, and whether samples are drawn and measured at the end."""

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


def model_config(network: Network, size: int, channels: int, num_classes: int) -> ModelConfig:
    """What a training run says of a network on pictures of a size, with `num_classes` classes (0 for none).

    One of diffusers becomes the only brick of a LEGO stack, estimating EDM's F as the others do.
    """
    kind, config = network.type, network.config
    if kind in DENOISERS:
        arguments = inspect.signature(denoiser_class(kind).__init__).parameters.items()
        defaults = {name: value.default for name, value in arguments if value.default is not inspect.Parameter.empty}
        classes = {"num_embeds_ada_norm": num_classes}
        if kind == "UNet2DModel":
            classes = {"num_class_embeds": num_classes + 1}
        own = {"sample_size": size, "in_channels": channels, "out_channels": channels}
        own |= (classes if num_classes else {}) | config
        described = {"class_name": kind, "prediction_type": "edm", "config": own}
        patch = brick_sizes(kind, defaults | own)[1]
        config = {"pretrained_brick": described, "window_sizes": [size], "patch_sizes": [patch], "num_layers": [0]}
        kind = "LegoTransformer2DModel"
    return load_config().model.replace(type=kind, config=config)


def train_config(config: BattleConfig, entry: Entry, source: str, num_classes: int, channels: int = 3) -> TrainConfig:
    """The ordinary training run of an entry, on pictures of the battle's size in a file `source`."""
    network, data, settings = config.fighters[entry.network], config.data, config.run
    # One look at the end is all that a rate is judged by.
    looks = settings.sample_images if entry.scored else entry.images
    return load_config(None, ["samples.count=0"]).replace(
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
        with explained(f"`networks.{name}` does not fit", ValueError):
            data = TrainedOn(class_names, config.data.size, channels)
            built[name] = build_model(run.model, run.objective, data, run.run.seed)
        count = built[name].num_parameters(only_trainable=True)
        if abs(count - wanted) > share * wanted:
            lowest, highest = math.ceil((1 - share) * wanted), math.floor((1 + share) * wanted)
            raise ValueError(
                f"`networks.{name}` has {count:,} parameters, and a fair battle wants `battle.parameters`={wanted:,} "
                f"to within `battle.tolerance`={share:g}, {lowest:,} to {highest:,}; change its width or depth, or "
                "set these two."
            )
    return built


def battle(config: BattleConfig, output_dir: str | Path, jobs: int = 1, dry_run: bool = False) -> bool:
    """Fight, or go on with, a battle, and write its report.

    Args:
        config: of the battle.
        output_dir: its folder; everything that is there already is kept and not done again.
        jobs: cells at a time.
        dry_run: check everything and print the plan, and no more.

    Returns:
        Whether it is over; not after SIGTERM or SIGINT, after which the same call goes on.

    Raises:
        ValueError: for networks that do not fit the data or are not of one size, missing packages, a folder of
            another battle or of something else, and cells that fail.
    """
    configured(STUDY, config, [], None).open(output_dir, write=False)
    check_packages(config)
    images = images_of(config.data)
    print(plan(config, images, build_networks(config, images.class_names, images.channels)))
    if dry_run:
        return False
    cells = Cells(config, Path(output_dir), images)
    stages = [cells.pictures, cells.costs, cells.sweep, cells.seeds, cells.frechet]
    return run_study(configured(STUDY, config, stages, report), output_dir, jobs)


def check_packages(config: BattleConfig) -> None:
    """Refuse a battle whose samples or report could not be made in the end, by `ValueError`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("The report of a battle needs matplotlib: pip install 'brickwork[report]'.")
    from matplotlib.colors import is_color_like

    for name, network in config.fighters.items():
        if not is_color_like(network.colour):
            raise ValueError(
                f"`networks.{name}.colour` is {network.colour!r}; give a colour as matplotlib takes it, such as "
                "'#1f77b4' or 'C0'."
            )
    if config.scores.extractor is not None:
        get_protocol(config.scores.protocol)
        try:
            load_extractor(config.scores.extractor)
        except ValueError as error:
            raise ValueError(f"`scores.extractor`: {error}; or set it to null, for no distances.") from None


def plan(config: BattleConfig, images: LabelledImages, networks: dict[str, Any]) -> str:
    """What is to be done, in words; a `ValueError` where the split leaves nothing on one side."""
    train, held_out = images.split(config.data.held_out)
    if not len(train) or not len(held_out):
        raise ValueError(
            f"`data.held_out` is {config.data.held_out}, which leaves {len(train)} pictures to train on and "
            f"{len(held_out)} to compare by; give a share between 0 and 1 that leaves some of both."
        )
    rates, seeds, size = config.sweep(), config.runs(dict.fromkeys(networks, 0.0)), config.data.size
    work = {name: count_work(network, size, len(images.class_names)) for name, network in networks.items()}
    columns = {
        "network": lambda name: config.fighters[name].label,
        "parameters": lambda name: f"{work[name]['parameters']:,}",
        "MFLOP forward": lambda name: f"{work[name]['forward_operations'] / 1e6:.0f}",
        "in training": lambda name: f"{work[name]['training_operations'] / 1e6:.0f}",
    }
    total = sum(entry.images for entry in rates + seeds)
    operations = sum(entry.images * work[entry.network]["training_operations"] for entry in rates + seeds)
    return (
        f"{table_of(list(networks), columns).text()}\n"
        f"{len(train):,} pictures of {size}x{size} in {len(images.class_names) or 'no'} classes to train on, "
        f"{len(held_out):,} held out.\n"
        f"{len(rates)} cells of {config.battle.sweep_images:,} images to choose from the rates "
        f"{', '.join(f'{rate:g}' for rate in config.rates)}; "
        f"{len(seeds)} cells of {config.run.total_images:,} images; {total:,} in all, "
        f"{operations / 1e15:.3g} PFLOP of training."
    )


class Cells:
    """The cells of a battle in a folder, stage by stage; each method takes the results so far."""

    def __init__(self, config: BattleConfig, output: Path, images: LabelledImages):
        self.config, self.output, self.images = config, output, images
        self.scores = yaml.safe_load(config.to_yaml())["scores"]
        self.source = output / "pictures" / PICTURES
        self.reference = None if config.scores.extractor is None else output / "reference" / REFERENCE

    def pictures(self, results: Mapping[str, Any]) -> list[Cell]:
        """The pictures at the battle's size, and what samples are measured against."""
        cells = [Cell("pictures", partial(write_pictures, images=self.images, config=self.config))]
        if self.reference is not None:
            data = self._training(self._runs(1.0)[0]).data
            cells.append(reference_cell(data, self.config.scores, self.reference))
        return cells

    def costs(self, results: Mapping[str, Any]) -> list[Cell]:
        """Operations, seconds and memory of every network, while nothing else of the battle runs."""
        entries = {entry.network: entry for entry in self._runs(self.config.rates[0])}
        runs = {name: self._training(entries[name]) for name in self.config.fighters}
        return cost_cells(runs, self.scores, self.config.battle.timing_rounds)

    def sweep(self, results: Mapping[str, Any]) -> list[Cell]:
        """Each network at each learning rate."""
        return [self._cell(entry) for entry in self.config.sweep()]

    def seeds(self, results: Mapping[str, Any]) -> list[Cell]:
        """Each network at its best rate, at each seed."""
        best = dict.fromkeys(self.config.fighters, self.config.rates[0])
        for name in best:
            tried = [entry for entry in self.config.sweep() if entry.network == name]
            losses = {entry.learning_rate: results[entry.name]["final_loss"] for entry in tried}
            finite = {rate: loss for rate, loss in losses.items() if loss is not None}
            best[name] = min(finite, key=finite.get, default=best[name])
        return [self._cell(entry) for entry in self.config.runs(best)]

    def frechet(self, results: Mapping[str, Any]) -> list[Cell]:
        """The Fréchet distance of each network's samples of all seeds together: one seed's are fewer than features."""
        if self.reference is None:
            return []
        measured = [name for name, result in results.items() if name.startswith("cells/") and result["kd"]]
        compute = partial(measure_frechet, config=self.config, output=self.output, reference=self.reference)
        return [Cell("frechet", compute, {"cells": measured})]

    def _runs(self, rate: float) -> list[Entry]:
        return self.config.runs(dict.fromkeys(self.config.fighters, rate))

    def _training(self, entry: Entry) -> TrainConfig:
        return train_config(self.config, entry, str(self.source), len(self.images.class_names))

    def _cell(self, entry: Entry) -> Cell:
        about = {"network": entry.network, "label": self.config.fighters[entry.network].label}
        scoring = {"scores": self.scores, "reference": self.reference} if entry.scored else {}
        return training_cell(entry.name, self._training(entry), about=about, **scoring)


def write_pictures(folder: Path, *, images: LabelledImages, config: BattleConfig) -> int:
    """The pictures at the battle's size, with labels and groups, in one file; every cell would make them anew."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    label, group = config.data.label_column, config.data.group_column
    groups, rows = images.table[group] if group else [], []
    features = {config.data.image_column: ImageFeature()}
    features |= {label: ClassLabel(names=images.class_names)} if label else {}
    features |= {group: Value("string")} if group else {}
    for row in range(len(images)):
        try:
            picture = Image.fromarray(images.picture(row, (images.size, images.size)))
        except BrokenImage:
            continue
        rows.append({config.data.image_column: ImageFeature().encode_example(picture)})
        rows[-1] |= {label: int(images.labels[row])} if label else {}
        rows[-1] |= {group: str(groups[row])} if group else {}
    table = Dataset.from_list(rows, features=Features(features))
    write_file(folder / PICTURES, lambda path: table.to_parquet(str(path)))
    return len(table)


def measure_frechet(
    folder: Path, *, cells: list[str], config: BattleConfig, output: Path, reference: Path
) -> dict[str, dict]:
    """The distances by network, of those that have samples enough."""
    real = Reference.load(reference)
    (count, *statistics), label = real.statistics["features"], real.info["extractor"]["label"]
    dimension, found = len(statistics[0]), {}
    for name in config.fighters:
        own = [f"cells/{name}-seed{seed}" for seed in config.battle.seeds]
        files = [output / cell / FEATURES for cell in own if cell in cells]
        if not files:  # all of its runs diverged
            continue
        drawn = torch.cat([load_file(file)["features"] for file in files])
        if min(count, len(drawn)) <= dimension:
            print(
                f"No Fréchet distance of {config.fighters[name].label}: {len(drawn)} samples and {count} "
                f"pictures for {dimension} features; it needs more of both (scores.samples, battle.seeds)."
            )
            continue
        value = frechet_distance(*statistics, *feature_statistics(drawn)[1:])
        found[name] = {"name": f"FD-{label}", "value": value, "samples": len(drawn)}
    return found
