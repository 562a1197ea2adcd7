"""A fair battle of backbones: same pictures, objective, sizes and learning rates to choose from, several seeds.

Every run is a cell: the ordinary trainer in a process of its own (`battle_cell`), which goes on where it was stopped
and is never run again once it is done. After the idea of Battle of the Backbones (arXiv 2310.19909), for denoisers.
"""

import importlib.util
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.metrics.distances import feature_statistics, frechet_distance
from brickwork.eval.metrics.reference import Reference, make_reference
from brickwork.eval.sampling.pipelines import place
from brickwork.training.commands.data_split import write_split
from brickwork.training.data.images import BrokenImage, LabelledImages, images_of
from brickwork.training.engine.guards import StopSignal, write_text
from brickwork.training.studies.battle.cell import FEATURES, RESULT, TRAIN
from brickwork.training.studies.battle.config import (
    BattleConfig,
    Cell,
    build_networks,
    differences,
    seed_cells,
    sweep_cells,
    train_config,
    trained_parameters,
)
from brickwork.training.studies.battle.timing import count_work, last_words, run_in_child

SETTINGS, TIMING, SWEEP, FRECHET = "battle.yaml", "timing.json", "sweep.json", "fd.json"
DATA, REFERENCE, LOG = "data.parquet", "reference.safetensors", "log.txt"


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
    output = Path(output_dir)
    if jobs < 1:
        raise ValueError(f"`--jobs` is {jobs}; give at least 1.")
    check_folder(output, config)
    check_packages(config)
    images = images_of(config)
    print(plan(config, images, build_networks(config, images.class_names, images.channels)))
    if dry_run:
        return False
    config = replace(config, run=replace(config.run, output_dir=str(output)))
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / SETTINGS, config.to_yaml())
    work = Work(config, output, write_pictures(images, config, output / DATA), len(images.class_names), jobs)
    work.reference = write_reference(work)
    time_networks(work)
    rates = sweep(work)
    if rates is None or not work.fight(seed_cells(config, output, rates)):
        print("Stopped; the same command goes on from there, and --report-only shows what is done.")
        return False
    measure_frechet(work)
    from brickwork.training.studies.battle.report import write_report

    write_report(output)
    return True


@dataclass
class Work:
    """A battle under way.

    Attributes:
        config: of the battle.
        output: its folder.
        source: the pictures, at the battle's size.
        num_classes: of the pictures, 0 for none.
        jobs: cells at a time.
        reference: what samples are measured against, if they are.
        started: when each cell began, on the monotonic clock.
    """

    config: BattleConfig
    output: Path
    source: Path
    num_classes: int
    jobs: int
    reference: Path | None = None
    started: dict[Cell, float] = field(default_factory=dict)

    def fight(self, cells: Sequence[Cell]) -> bool:
        """Run the cells that are not done yet, several at a time; whether all are done, and no stop was asked for.

        Raises:
            ValueError: where one fails, after the others have saved.
        """
        waiting = [cell for cell in cells if not (cell.folder / RESULT).is_file()]
        running: dict[Cell, Popen] = {}
        total, stopping = len(cells), False
        try:
            with StopSignal() as stop:
                while running or (waiting and not stop.requested):
                    while waiting and len(running) < self.jobs and not stop.requested:
                        cell = waiting.pop(0)
                        running[cell] = self.start(cell)
                    if stop.requested and not stopping:
                        stopping = True
                        _ask_to_stop(running.values())
                    time.sleep(0.1)
                    for cell in [cell for cell, child in running.items() if child.poll() is not None]:
                        status = running.pop(cell).returncode
                        if status and not stopping:
                            raise ValueError(
                                f"The cell {cell.folder} ended with status {status}: {last_words(cell.folder / LOG)}"
                            )
                        if not status:
                            print(self.outcome(cell, total - len(waiting) - len(running), total), flush=True)
                return not stopping and not waiting
        finally:
            _ask_to_stop(running.values())
            for child in running.values():
                child.wait()

    def start(self, cell: Cell) -> Popen:
        """A process that runs a cell; what it prints goes to its log."""
        cell.folder.mkdir(parents=True, exist_ok=True)
        run = train_config(self.config, cell, str(self.source), self.num_classes)
        write_text(cell.folder / TRAIN, run.to_yaml())
        task = {
            "network": cell.network,
            "label": self.config.fighters[cell.network].label,
            "seed": cell.seed,
            "folder": str(cell.folder),
            "reference": None if self.reference is None else str(self.reference),
            "scores": asdict(self.config.scores) if cell.scored else None,
        }
        self.started[cell] = time.monotonic()
        with (cell.folder / LOG).open("a") as log:
            # A session of its own: Ctrl-C reaches this process alone, which passes it on.
            return Popen(
                [sys.executable, "-m", "brickwork.training.studies.battle.cell", json.dumps(task)],
                stdout=log, stderr=log, stdin=DEVNULL, start_new_session=True,
                env={"OMP_NUM_THREADS": str(max(1, _cores() // self.jobs))} | os.environ,
            )  # fmt: skip

    def outcome(self, cell: Cell, number: int, total: int) -> str:
        """A line on a cell that is done."""
        result = _read(cell.folder / RESULT)
        loss, kernel = result["final_loss"], result.get("kd")
        ending = "diverged" if loss is None else f"held-out loss {loss:.4f}"
        ending += f", {kernel['name']} {kernel['value']:.4f} ± {kernel['error']:.4f}" if kernel else ""
        return (
            f"[{number}/{total}] {result['label']}, seed {cell.seed}, rate {cell.learning_rate:g}: {ending} "
            f"({(time.monotonic() - self.started[cell]) / 60:.1f} min)"
        )


def check_folder(output: Path, config: BattleConfig) -> None:
    """Refuse a folder of another battle, or of something else.

    Raises:
        ValueError: naming the difference.
    """
    if output.is_dir() and not any(output.iterdir()) or not output.exists():
        return
    if not (output / SETTINGS).is_file():
        raise ValueError(f"`--output` is {str(output)!r}, which is there and holds no battle; name another folder.")
    changed = differences((output / SETTINGS).read_text(encoding="utf-8"), config)
    if changed:
        raise ValueError(
            f"`--output` is {str(output)!r}, which holds another battle: {'; '.join(changed[:4])}. Put the values "
            "back to go on, or name another folder."
        )


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
    rates, seeds = sweep_cells(config, Path()), seed_cells(config, Path(), dict.fromkeys(networks, 0.0))
    size, tried = config.data.size, ", ".join(f"{rate:g}" for rate in config.rates)
    lines = [f"{'network':<34}{'parameters':>12}{'MFLOP forward':>15}{'in training':>14}"]
    operations = 0
    for name, network in networks.items():
        work = count_work(network, config.data.size, len(images.class_names))
        own = sum(cell.images for cell in [*rates, *seeds] if cell.network == name)
        operations += own * work["training_operations"]
        lines.append(
            f"{config.fighters[name].label:<34}{trained_parameters(network):>12,}"
            f"{work['forward_operations'] / 1e6:>15.0f}{work['training_operations'] / 1e6:>14.0f}"
        )
    total = sum(cell.images for cell in [*rates, *seeds])
    lines += [
        f"{len(train):,} pictures of {size}x{size} in {len(images.class_names) or 'no'} classes to train on, "
        f"{len(held_out):,} held out.",
        f"{len(rates)} cells of {config.battle.sweep_images:,} images to choose from the rates {tried}; "
        f"{len(seeds)} cells of {config.run.total_images:,} images; {total:,} in all, {operations / 1e15:.3g} PFLOP "
        "of training.",
    ]
    return "\n".join(lines)


def write_pictures(images: LabelledImages, config: BattleConfig, path: Path) -> Path:
    """The pictures at the battle's size, with labels and groups, in one file; every cell would make them anew."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    if path.is_file():
        return path
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    Dataset.from_dict(columns, features=Features(features)).to_parquet(str(temporary))
    os.replace(temporary, path)
    return path


def write_reference(work: Work) -> Path | None:
    """Features of the pictures that are trained on, once; `None` where nothing is measured."""
    scores, path = work.config.scores, work.output / REFERENCE
    if scores.extractor is None:
        return None
    if not path.is_file():
        cell = seed_cells(work.config, work.output, dict.fromkeys(work.config.fighters, 1.0))[0]
        images = images_of(train_config(work.config, cell, str(work.source), work.num_classes))
        write_split(images, work.config.data.held_out, work.output / "pictures")
        extractor = load_extractor(scores.extractor)
        place(extractor.network)
        make_reference(work.output / "pictures" / "train", extractor, scores.protocol).save(path)
    return path


def time_networks(work: Work) -> None:
    """Operations, seconds and memory of every network, while nothing else of the battle runs."""
    config, path = work.config, work.output / TIMING
    if path.is_file():
        return
    files, folder = {}, work.output / "timing"
    folder.mkdir(exist_ok=True)
    for cell in seed_cells(config, work.output, dict.fromkeys(config.fighters, config.rates[0])):
        run = train_config(config, cell, str(work.source), work.num_classes)
        if cell.network not in files:
            files[cell.network] = str(folder / f"{cell.network}.yaml")
            write_text(Path(files[cell.network]), run.to_yaml())
    print("Timing the networks, in turn ...", flush=True)
    task = {"networks": files, "scores": asdict(config.scores), "rounds": config.battle.timing_rounds}
    task["log"] = str(folder / LOG)
    timing = run_in_child(task)
    write_text(path, json.dumps(timing, indent=1) + "\n")
    costs = {name: cost["seconds_per_image"] for name, cost in timing["networks"].items()}
    for name, seconds in costs.items():
        print(f"{config.fighters[name].label:<34}{1e3 * seconds:9.2f} ms an image ({timing['unit']})")
    cells = [*sweep_cells(config, work.output), *seed_cells(config, work.output, costs)]
    hours = sum(cell.images * costs[cell.network] for cell in cells) / 3600
    print(f"Training alone will take {hours:.2f} hours of {timing['unit'].split()[0]} time.", flush=True)


def sweep(work: Work) -> dict[str, float] | None:
    """Each network's best learning rate by its held-out loss, `None` after a stop."""
    cells = sweep_cells(work.config, work.output)
    if not work.fight(cells):
        return None
    losses: dict[str, dict[str, float]] = {name: {} for name in work.config.fighters}
    for cell in cells:
        losses[cell.network][f"{cell.learning_rate:g}"] = _read(cell.folder / RESULT)["final_loss"]
    write_text(work.output / SWEEP, json.dumps(losses, indent=1) + "\n")
    best = dict.fromkeys(losses, work.config.rates[0])
    for name, tried in losses.items():
        finite = {rate: loss for rate, loss in tried.items() if loss is not None and math.isfinite(loss)}
        if finite:
            best[name] = float(min(finite, key=finite.get))
    return best


def measure_frechet(work: Work) -> None:
    """The Fréchet distance of each network's samples of all seeds together: one seed's are fewer than the features."""
    if work.reference is None:
        return
    reference = Reference.load(work.reference)
    (count, *real), label = reference.statistics["features"], reference.info["extractor"]["label"]
    dimension, found = len(real[0]), {}
    for name in work.config.fighters:
        folders = [work.output / "cells" / f"{name}-seed{seed}" for seed in work.config.battle.seeds]
        files = [folder / FEATURES for folder in folders if _read(folder / RESULT)["kd"] is not None]
        if not files:  # all of its runs diverged
            continue
        drawn = torch.cat([load_file(file)["features"] for file in files])
        if min(count, len(drawn)) <= dimension:
            print(
                f"No Fréchet distance of {work.config.fighters[name].label}: {len(drawn)} samples and {count} "
                f"pictures for {dimension} features; it needs more of both (scores.samples, battle.seeds)."
            )
            continue
        value = frechet_distance(*real, *feature_statistics(drawn)[1:])
        found[name] = {"name": f"FD-{label}", "value": value, "samples": len(drawn)}
    write_text(work.output / FRECHET, json.dumps(found, indent=1) + "\n")


def _ask_to_stop(children) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
