"""The report of a battle of backbones: tables, curves, a sheet of samples, from what its cells have found so far."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from brickwork.eval.report.blocks import Code, Panels, Picture, Report, Table
from brickwork.eval.report.numbers import between, in_units
from brickwork.eval.report.pictures import GAP, labelled_sheet
from brickwork.eval.studies.core import StudyFolder, kendall_tau, mean_and_spread, table_of
from brickwork.eval.studies.core.standings import (
    COLUMNS_EXPLAINED,
    Curve,
    amount,
    curve_panels,
    firmness,
    standings,
    standings_table,
)

STUDY = "battle"
SHEET_ROWS, SHEET_WIDTH = 2, 640  # rows of samples of each network; the most that they are enlarged to, in pixels
_UNITS = {"CPU s": "process CPU seconds", "GPU s": "GPU seconds"}
_DISTANCES = {
    "KD": "kernel distance of each run's own, mean ± standard deviation over seeds",
    "FD": "Fréchet distance of those of all seeds together",
}


@dataclass(frozen=True)
class Battle:
    """What lies in a battle's folder.

    Attributes:
        folder: of the battle.
        cells: the finished runs, in the order of the networks, then of the seeds.
        timing: what the networks cost, `{}` if that is not known yet; likewise `sweep`, losses by network and rate,
            and `frechet`, distances by network.
        config: of the battle.
        missing: what the report has to do without, one line each.
    """

    folder: Path
    cells: list[dict]
    timing: dict
    sweep: dict
    frechet: dict
    config: dict
    missing: list[str]

    @property
    def titles(self) -> dict[str, str]:
        """Of the axes."""
        unit = self.timing.get("unit", "s")
        seconds = f"{_UNITS.get(unit, unit)} of training"
        return {"images": "images", "operations": "counted training operations", "seconds": seconds}

    def label(self, network: str) -> str:
        """What tables call a network."""
        return self.config["networks"][network]["label"]

    def curves(self) -> list[Curve]:
        """The curve of every run, with what one image costs its network."""
        found = []
        for cell in self.cells:
            cost = self.timing.get("networks", {}).get(cell["network"], {})
            prices = cost.get("training_operations"), cost.get("seconds_per_image")
            found.append(Curve(cell["network"], cell["seed"], *zip(*cell["curve"]), *prices))
        return found


def report(folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
    """The report of a battle, finished or not, and its values.

    Raises:
        ValueError: for a folder without a finished run.
    """
    battle = read_battle(folder)
    curves = battle.curves()
    tables = standings(curves)
    sheet = _sheet(battle, tables)
    blocks = [
        *_lead(battle),
        *(block for axis, table in tables.items() for block in _standing(battle, axis, table)),
        "## Curves",
        _curves(battle, curves, tables),
        *(["## Samples", sheet] if sheet else []),
        *_costs(battle),
        *_rates(battle),
        Code(yaml.safe_dump(battle.config, sort_keys=False, allow_unicode=True), "Configuration"),
    ]
    values = {"cells": battle.cells, "timing": battle.timing, "sweep": battle.sweep, "fd": battle.frechet}
    return Report("Battle of backbones", blocks), values | {"tables": tables, "missing": battle.missing}


def read_battle(folder: StudyFolder) -> Battle:
    """Read a battle's folder.

    Raises:
        ValueError: if no run of it is finished.
    """
    config, results = folder.conditions, folder.results()
    cells, missing = [], []
    for cell in [result for name, result in results.items() if name.startswith("cells/")]:
        cell["curve"] = [point for point in cell["curve"] if point[0] > 0]
        broken = [images for images, loss in cell["curve"] if loss is None]
        if broken or not cell["curve"]:
            reason = f"its held-out loss is not finite at {broken[0]:,} images" if broken else "its curve has no point"
            missing.append(f"{cell['label']}, seed {cell['seed']}, is left out: {reason}.")
        else:
            cells.append(cell)
    if not cells:
        raise ValueError(
            f"battle: {folder.path} holds no finished run with a finite loss (cells/*/cell.json); run `brickwork "
            f"battle` on it first.{' '.join(['', *missing])}"
        )
    networks = list(config["battle"]["networks"] or config["networks"])
    cells.sort(key=lambda cell: (networks.index(cell["network"]), cell["seed"]))
    timing, sweep = results.get("timing", {}), {}
    for network, cost in timing.get("networks", {}).items():
        cost["peak_memory"] = results.get(f"memory/{network}")
    for name in networks:
        tried = [r for path, r in results.items() if path.startswith("sweep/") and r["network"] == name]
        sweep |= {name: {f"{run['learning_rate']:g}": run["final_loss"] for run in tried}} if tried else {}
    battle = Battle(folder.path, cells, timing, sweep, results.get("frechet", {}), config, missing)
    missing += _missing(battle, networks)
    return battle


def _missing(battle: Battle, networks: list[str]) -> Iterator[str]:
    """What is not there yet, one line each."""
    done = {(cell["network"], cell["seed"]) for cell in battle.cells}
    config = battle.config
    for seed in config["battle"]["seeds"]:
        names = [battle.label(network) for network in networks if (network, seed) not in done]
        if names:
            yield f"No result at seed {seed} of {', '.join(names)}."
    known = {"costs": battle.timing.get("networks", {})}
    if len(config["battle"].get("learning_rates", [0, 0])) > 1:
        known["sweep"] = battle.sweep
    if config["scores"]["extractor"] is not None:
        known["Fréchet distances"] = battle.frechet
    for what, entries in known.items():
        names = [battle.label(network) for network in networks if network not in entries]
        if names:
            yield f"No {what} of {', '.join(names)}." if entries else f"No {what} yet."


def _lead(battle: Battle) -> list[str]:
    networks = {cell["network"] for cell in battle.cells}
    seeds = ", ".join(map(str, sorted({cell["seed"] for cell in battle.cells})))
    sizes = ", ".join(map(str, sorted({cell["batch_size"] for cell in battle.cells})))
    what = (
        f"{len(networks)} networks, one run for each network and seed ({seeds}); batch size {sizes}; timed "
        f"on {battle.timing.get('device', 'no machine yet')}. Losses are the paired held-out loss of the averaged "
        "weights, mean ± standard deviation over seeds. Every table is read off the runs' curves at the largest "
        "budget that all runs reached: between two points of a curve, linear in the logarithm of images, and never "
        "beyond its ends."
    )
    missing = [f"Not all of it is there: {' '.join(battle.missing)}"] if battle.missing else []
    return [what, COLUMNS_EXPLAINED, *missing]


def _standing(battle: Battle, axis: str, table: dict) -> list:
    distances = _distances(battle, table["budget"]) if axis == "images" else {}
    names = [title.split()[0] for title in distances]
    titles = [name if names.count(name) == 1 else title for name, title in zip(names, distances)]
    return [
        f"## At equal {battle.titles[axis].removesuffix(' of training')}: {amount(axis, table['budget'])}",
        standings_table(axis, table, battle.label, dict(zip(titles, distances.values()))),
        firmness(table, battle.label),
        _distances_text(table, distances),
    ]


def _distances(battle: Battle, budget: float) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Columns of distribution distances of the runs that end at a budget of images: value and spread by network.

    What was measured otherwise, or on another number of samples, has a column of its own.
    """
    ended = [cell for cell in battle.cells if cell["curve"][-1][0] == budget]
    kernel: dict[str, dict[str, list[float]]] = {}
    for cell in [cell for cell in ended if cell["kd"] is not None]:
        title = f"{cell['kd']['name']} ({cell['kd']['samples']:,} samples)"
        kernel.setdefault(title, {}).setdefault(cell["network"], []).append(cell["kd"]["value"])
    columns = {title: {name: mean_and_spread(v) for name, v in of.items()} for title, of in kernel.items()}
    for network in dict.fromkeys(cell["network"] for cell in ended):
        if entry := battle.frechet.get(network):
            columns.setdefault(f"{entry['name']} ({entry['samples']:,} samples)", {})[network] = entry["value"], None
    return columns


def _distances_text(table: dict, distances: Mapping[str, Mapping[str, tuple]]) -> str:
    """What the columns of distances are, and whether they order the networks as the losses do."""
    sentences = []
    for title, values in distances.items():
        ranked = [row for row in table["networks"] if row["network"] in values]
        tau = kendall_tau([row["mean"] for row in ranked], [values[row["network"]][0] for row in ranked])
        agreement = "" if tau is None else f"; Kendall's tau between its order and that of the losses: {tau:.2f}"
        sentences.append(f"{title}: {_DISTANCES.get(title[:2], 'distance')}{agreement}.")
    return " ".join(sentences)


def _costs(battle: Battle) -> list:
    timed, unit = battle.timing.get("networks", {}), battle.timing.get("unit", "s")
    if not timed:
        return []
    rates = {cell["network"]: cell["learning_rate"] for cell in battle.cells}
    seconds = unit.replace(" s", " ms")
    columns = {
        "network": lambda row: battle.label(row[0]),
        "parameters": lambda row: f"{row[1]['parameters'] / 1e6:.2f} M",
        "operations": lambda row: in_units(row[1]["forward_operations"], "FLOP"),
        "in training": lambda row: in_units(row[1]["training_operations"], "FLOP"),
        "trained/s": lambda row: f"{row[1]['training_images_per_second']:.3g}",
        "sampled/s": lambda row: f"{row[1]['sampling_images_per_second']:.3g}",
        seconds: lambda row: between(
            *(1e3 * value for value in (row[1]["seconds_per_image"], *row[1]["seconds_spread"])), ".3g"
        ),
        "memory, GiB": lambda row: row[1]["peak_memory"] and f"{row[1]['peak_memory'] / 2**30:.2f}",
        "rate": lambda row: f"{rates[row[0]]:g}" if row[0] in rates else None,
    }
    steps = battle.config["scores"]["steps"]
    text = (
        "Operations are those of the network on one image, and of training on it; images trained and sampled "
        f"({steps} DPM-Solver++ steps each) per {unit}; {seconds} of training on one image, median and quartiles; "
        "peak memory of training; the learning rate chosen."
    )
    return ["## What the networks cost", text, table_of(list(timed.items()), columns)]


def _rates(battle: Battle) -> list:
    rates = sorted({float(rate) for losses in battle.sweep.values() for rate in losses})
    if not rates:
        return []
    rows, edge = [], []
    for network, by_rate in battle.sweep.items():
        losses = {float(rate): loss for rate, loss in by_rate.items()}
        finite = {rate: loss for rate, loss in losses.items() if loss is not None}
        best = min(finite, key=finite.get, default=None)
        if best is not None and len(rates) > 2 and best in (rates[0], rates[-1]):
            edge.append(battle.label(network))
        shown = [f"{finite[rate]:.4g}" if rate in finite else "diverged" if rate in losses else "–" for rate in rates]
        rows.append([battle.label(network), *shown, "–" if best is None else f"{best:g}"])
    text = "Held-out loss of short runs at each learning rate; each network goes on with its best."
    if edge:
        text += f" The best lies at an end of the sweep, so a better one may lie beyond, for: {', '.join(edge)}."
    return ["## Sweep of learning rates", text, Table(["network", *(f"{rate:g}" for rate in rates), "best"], rows)]


def _curves(battle: Battle, curves: list[Curve], tables: Mapping[str, dict]) -> Panels:
    colours = {network["label"]: network["colour"] for network in battle.config["networks"].values()}
    return curve_panels(curves, tables, battle.titles, battle.label, colours, STUDY)


def _sheet(battle: Battle, tables: Mapping[str, dict]) -> Picture | None:
    """The first rows of each network's samples, best network first; all of one seed, as that gives the noise."""
    seed, size = min(cell["seed"] for cell in battle.cells), battle.config["data"]["size"]
    cells = {cell["network"]: cell for cell in battle.cells if cell["seed"] == seed}
    rows = {}
    for network in [row["network"] for row in tables["images"]["networks"]]:
        cell = cells.get(network) or {"samples_png": None}
        file = battle.folder / "cells" / f"{network}-seed{seed}" / str(cell["samples_png"])
        if cell["samples_png"] and file.is_file():
            with Image.open(file) as picture:
                height = min(picture.height, SHEET_ROWS * (size + GAP) - GAP)
                strip = picture.convert("RGB").crop((0, 0, picture.width, height))
            rows[f"{cell['label']}\nloss {cell['curve'][-1][1]:.4g}"] = [strip]
    if not rows:
        return None
    caption = (
        f"Samples of the finished runs of seed {seed} in {battle.config['scores']['steps']} "
        "DPM-Solver++ steps, the first of each, none left out, the network of least loss on top. Pictures in the "
        "same column and row have the same class and began with the same noise."
    )
    return Picture(labelled_sheet(list(rows.values()), list(rows), [""], side=SHEET_WIDTH), caption, name="samples")
