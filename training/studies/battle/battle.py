"""A fair battle of backbones: same pictures, objective, sizes and learning rates to choose from, several seeds.

After the idea of Battle of the Backbones (arXiv 2310.19909), for denoisers. What it does and how it goes on is the
study core's; here is which cells it has.
"""

import importlib.util
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.metrics.distances import feature_statistics, frechet_distance
from brickwork.eval.metrics.reference import Reference, make_reference
from brickwork.eval.sampling.pipelines import place
from brickwork.eval.studies.core import Cell, Study, StudyFolder, run_study, table_of
from brickwork.files import write_file
from brickwork.training.commands.data_split import write_split
from brickwork.training.data.images import BrokenImage, LabelledImages, images_of
from brickwork.training.studies.battle.config import (
    BattleConfig,
    Entry,
    build_networks,
    seed_entries,
    sweep_entries,
    train_config,
)
from brickwork.training.studies.battle.pages import STUDY, report
from brickwork.training.studies.timed import cost_cells, count_work, trained_parameters
from brickwork.training.studies.trained import FEATURES, FREE, training_cell

PICTURES, REFERENCE = "data.parquet", "reference.safetensors"


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
    conditions = yaml.safe_load(config.to_yaml())
    StudyFolder(output_dir, STUDY, conditions, FREE, write=False)
    check_packages(config)
    images = images_of(config.data)
    print(plan(config, images, build_networks(config, images.class_names, images.channels)))
    if dry_run:
        return False
    cells = Cells(config, Path(output_dir), images)
    stages = [cells.pictures, cells.costs, cells.sweep, cells.seeds, cells.frechet]
    return run_study(Study(STUDY, conditions, stages, report, FREE), output_dir, jobs)


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
    """What is to be done, from the networks and the data.

    Raises:
        ValueError: where the split leaves nothing on one side.
    """
    train, held_out = images.split(config.data.held_out)
    if not len(train) or not len(held_out):
        raise ValueError(
            f"`data.held_out` is {config.data.held_out}, which leaves {len(train)} pictures to train on and "
            f"{len(held_out)} to compare by; give a share between 0 and 1 that leaves some of both."
        )
    rates, seeds = sweep_entries(config), seed_entries(config, dict.fromkeys(networks, 0.0))
    size, tried = config.data.size, ", ".join(f"{rate:g}" for rate in config.rates)
    entries, work = [*rates, *seeds], {}
    for name, network in networks.items():
        work[name] = count_work(network, size, len(images.class_names)) | {"parameters": trained_parameters(network)}
    columns = {
        "network": lambda name: config.fighters[name].label,
        "parameters": lambda name: f"{work[name]['parameters']:,}",
        "MFLOP forward": lambda name: f"{work[name]['forward_operations'] / 1e6:.0f}",
        "in training": lambda name: f"{work[name]['training_operations'] / 1e6:.0f}",
    }
    total = sum(entry.images for entry in entries)
    operations = sum(entry.images * work[entry.network]["training_operations"] for entry in entries)
    return (
        f"{table_of(list(networks), columns).text()}\n"
        f"{len(train):,} pictures of {size}x{size} in {len(images.class_names) or 'no'} classes to train on, "
        f"{len(held_out):,} held out.\n"
        f"{len(rates)} cells of {config.battle.sweep_images:,} images to choose from the rates {tried}; "
        f"{len(seeds)} cells of {config.run.total_images:,} images; {total:,} in all, "
        f"{operations / 1e15:.3g} PFLOP of training."
    )


class Cells:
    """The cells of a battle, stage by stage; each method takes the results so far.

    Args:
        config: of the battle.
        output: its folder.
        images: to train on.
    """

    def __init__(self, config: BattleConfig, output: Path, images: LabelledImages):
        self.config, self.output, self.images = config, output, images
        self.scores = yaml.safe_load(config.to_yaml())["scores"]
        self.source = output / "pictures" / PICTURES
        self.reference = None if config.scores.extractor is None else output / "reference" / REFERENCE

    def pictures(self, results: Mapping[str, Any]) -> list[Cell]:
        """The pictures at the battle's size, and what samples are measured against."""
        cells = [Cell("pictures", partial(write_pictures, images=self.images, config=self.config))]
        if self.reference is not None:
            cells.append(Cell("reference", lambda folder: self._write_reference()))
        return cells

    def costs(self, results: Mapping[str, Any]) -> list[Cell]:
        """Operations, seconds and memory of every network, while nothing else of the battle runs."""
        entries = {entry.network: entry for entry in self._entries(self.config.rates[0])}
        runs = {name: self._run(entries[name]) for name in self.config.fighters}
        return cost_cells(runs, self.scores, self.config.battle.timing_rounds)

    def sweep(self, results: Mapping[str, Any]) -> list[Cell]:
        """Each network at each learning rate."""
        return [self._trained(entry) for entry in sweep_entries(self.config)]

    def seeds(self, results: Mapping[str, Any]) -> list[Cell]:
        """Each network at its best rate, at each seed."""
        best = dict.fromkeys(self.config.fighters, self.config.rates[0])
        for name in best:
            tried = {entry.learning_rate: results[entry.name]["final_loss"] for entry in self._swept(name)}
            finite = {rate: loss for rate, loss in tried.items() if loss is not None}
            best[name] = min(finite, key=finite.get, default=best[name])
        return [self._trained(entry) for entry in seed_entries(self.config, best)]

    def frechet(self, results: Mapping[str, Any]) -> list[Cell]:
        """The Fréchet distance of each network's samples of all seeds together: one seed's are fewer than features."""
        if self.reference is None:
            return []
        measured = [name for name, result in results.items() if name.startswith("cells/") and result["kd"]]
        run = partial(measure_frechet, config=self.config, output=self.output, reference=self.reference)
        return [Cell("frechet", run, {"cells": measured})]

    def _swept(self, network: str) -> list[Entry]:
        return [entry for entry in sweep_entries(self.config) if entry.network == network]

    def _entries(self, rate: float) -> list[Entry]:
        return seed_entries(self.config, dict.fromkeys(self.config.fighters, rate))

    def _run(self, entry: Entry):
        return train_config(self.config, entry, str(self.source), len(self.images.class_names))

    def _trained(self, entry: Entry) -> Cell:
        label = self.config.fighters[entry.network].label
        return training_cell(
            entry.name,
            self._run(entry),
            about={"network": entry.network, "label": label},
            scores=self.scores if entry.scored else None,
            reference=self.reference if entry.scored else None,
        )

    def _write_reference(self) -> int:
        """Features of the pictures that are trained on; how many."""
        scores, folder = self.config.scores, self.reference.parent
        images = images_of(self._run(self._entries(1.0)[0]).data)
        write_split(images, self.config.data.held_out, folder / "pictures")
        extractor = load_extractor(scores.extractor)
        place(extractor.network)
        reference = make_reference(folder / "pictures" / "train", extractor, scores.protocol)
        reference.save(self.reference)
        return reference.statistics["features"][0]


def write_pictures(folder: Path, *, images: LabelledImages, config: BattleConfig) -> int:
    """The pictures at the battle's size, with labels and groups, in one file; every cell would make them anew."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    label, group = config.data.label_column, config.data.group_column
    groups = images.table[group] if group else []
    columns: dict[str, list] = {config.data.image_column: []} | {name: [] for name in (label, group) if name}
    for row in range(len(images)):
        try:
            picture = images.picture(row, (images.size, images.size))
        except BrokenImage:
            continue
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        columns[config.data.image_column].append({"bytes": file.getvalue(), "path": None})
        if label:
            columns[label].append(int(images.labels[row]))
        if group:
            columns[group].append(str(groups[row]))
    features = {config.data.image_column: ImageFeature()}
    features |= {label: ClassLabel(names=images.class_names)} if label else {}
    features |= {group: Value("string")} if group else {}
    table = Dataset.from_dict(columns, features=Features(features))
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
