"""The report of a battle of backbones: tables, curves, a sheet of samples, from what its cells have found so far."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from brickwork.eval.report.blocks import Code, Panels, Picture, Plot, Report, Table
from brickwork.eval.report.numbers import between, column, in_units
from brickwork.eval.report.pictures import GAP, labelled_sheet
from brickwork.eval.studies.core import StudyFolder, kendall_tau, mean_and_spread, table_of
from brickwork.training.studies.battle.tables import Curve, standings

STUDY, TITLE = "battle", "Battle of backbones"
_SECONDS = {"CPU s": "process CPU seconds", "GPU s": "GPU seconds"}
# What is drawn begins at this share of the common budget; before it all curves fall alike, and far.
FIRST_SHARE = 0.2
# Rows of samples that the sheet shows of each network, and the most that they may be enlarged to, in pixels.
_SHEET_ROWS, _SHEET_WIDTH = 2, 640


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
    def networks(self) -> list[str]:
        """Those that have a finished run, in the battle's order."""
        return list(dict.fromkeys(cell["network"] for cell in self.cells))

    @property
    def unit(self) -> str:
        """Of seconds."""
        return self.timing.get("unit", "s")

    def label(self, network: str) -> str:
        """What tables call a network."""
        return self.config["networks"][network]["label"]

    def curves(self) -> list[Curve]:
        """The curve of every run, with what one image costs its network."""
        found = []
        for cell in self.cells:
            timing = self.timing.get("networks", {}).get(cell["network"], {})
            images, losses = zip(*cell["curve"])
            costs = timing.get("training_operations"), timing.get("seconds_per_image")
            found.append(Curve(cell["network"], cell["seed"], images, losses, *costs))
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
        *_standings_blocks(battle, tables),
        "## Curves",
        _curves(battle, curves, tables),
        *(["## Samples", sheet] if sheet else []),
        *_network_blocks(battle),
        *_sweep_blocks(battle),
        Code(yaml.safe_dump(battle.config, sort_keys=False, allow_unicode=True), "Configuration"),
    ]
    values = {"cells": battle.cells, "timing": battle.timing, "sweep": battle.sweep, "fd": battle.frechet}
    return Report(TITLE, blocks), values | {"tables": tables, "missing": battle.missing}


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
            where = f"its held-out loss is not finite at {broken[0]:,} images" if broken else "its curve has no point"
            missing.append(f"{cell['label']}, seed {cell['seed']}, is left out: {where}.")
        else:
            cells.append(cell)
    if not cells:
        raise ValueError(
            f"battle: {folder.path} holds no finished run with a finite loss (cells/*/cell.json); run `brickwork "
            f"battle` on it first.{' '.join(['', *missing])}"
        )
    networks = list(config["battle"]["networks"] or config["networks"])
    cells.sort(key=lambda cell: (networks.index(cell["network"]), cell["seed"]))
    timing, sweep, frechet = results.get("timing", {}), {}, results.get("frechet", {})
    for network, cost in timing.get("networks", {}).items():
        cost["peak_memory"] = results.get(f"memory/{network}")
    for name in networks:
        tried = [r for path, r in results.items() if path.startswith("sweep/") and r["network"] == name]
        sweep |= {name: {f"{run['learning_rate']:g}": run["final_loss"] for run in tried}} if tried else {}
    known = {"costs": timing.get("networks", {}), "sweep": sweep, "Fréchet distances": frechet}
    missing += _missing(cells, networks, config, known)
    return Battle(folder.path, cells, timing, sweep, frechet, config, missing)


def _missing(
    cells: Sequence[dict], networks: Sequence[str], config: dict, known: Mapping[str, Mapping]
) -> Iterator[str]:
    """What is not there yet, one line each."""
    done = {(cell["network"], cell["seed"]) for cell in cells}
    labels = {network: config["networks"][network]["label"] for network in networks}
    for seed in config["battle"]["seeds"]:
        names = [label for network, label in labels.items() if (network, seed) not in done]
        if names:
            yield f"No result at seed {seed} of {', '.join(names)}."
    unwanted = {"Fréchet distances": config["scores"]["extractor"] is None}
    unwanted["sweep"] = len(config["battle"].get("learning_rates", [0, 0])) < 2
    for what, entries in known.items():
        names = [label for network, label in labels.items() if network not in entries]
        if names and not unwanted.get(what):
            yield f"No {what} of {', '.join(names)}." if entries else f"No {what} yet."


def _lead(battle: Battle) -> list[str]:
    seeds = ", ".join(map(str, sorted({cell["seed"] for cell in battle.cells})))
    sizes = ", ".join(map(str, sorted({cell["batch_size"] for cell in battle.cells})))
    what = (
        f"{len(battle.networks)} networks, one run for each network and seed ({seeds}); batch size {sizes}; timed "
        f"on {battle.timing.get('device', 'no machine yet')}. Losses are the paired held-out loss of the averaged "
        "weights, mean ± standard deviation over seeds. Every table is read off the runs' curves at the largest "
        "budget that all runs reached: between two points of a curve, linear in the logarithm of images, and never "
        "beyond its ends."
    )
    columns = (
        "By seed: the places at each seed. Lead: how far the loss of the next network is above, mean over seeds ± the "
        "standard deviation of this difference. Reversed: at how many seeds the next network is in front."
    )
    return [what, columns, *([f"Not all of it is there: {' '.join(battle.missing)}"] if battle.missing else [])]


def _axis_titles(battle: Battle) -> dict[str, str]:
    seconds = _SECONDS.get(battle.unit, battle.unit)
    return {"images": "images", "operations": "counted training operations", "seconds": f"{seconds} of training"}


def _amount(axis: str, budget: float) -> str:
    """A budget, in the units of its axis."""
    if axis == "operations":
        return in_units(budget, "FLOP")
    return f"{budget:,.{0 if axis == 'images' or budget >= 100 else 1}f}"


def _standings_blocks(battle: Battle, tables: Mapping[str, dict]) -> list:
    blocks = []
    for axis, table in tables.items():
        amount = _amount(axis, table["budget"])
        distances = _distances(battle, table["budget"]) if axis == "images" else {}
        blocks += [
            f"## At equal {_axis_titles(battle)[axis].removesuffix(' of training')}: {amount}",
            _standings_table(battle, axis, table, distances),
            _firmness(battle, table),
            _distances_text(battle, table, distances),
        ]
    return blocks


def _standings_table(battle: Battle, axis: str, table: dict, distances: Mapping[str, Mapping[str, tuple]]) -> Table:
    rows, counts = table["networks"], {len(row["losses"]) for row in table["networks"]}
    columns = {"": [f"{row['rank']}" for row in rows], "network": [battle.label(row["network"]) for row in rows]}
    if axis != "images":
        columns["images"] = [f"{row['images']:,.0f}" for row in rows]
    columns["held-out loss"] = column([(row["mean"], row["spread"]) for row in rows])
    if len(counts) > 1:
        columns["seeds"] = [f"{len(row['losses'])}" for row in rows]
    if len(rows[0]["ranks"]) > 1:
        columns["by seed"] = [", ".join(map(str, row["ranks"].values())) for row in rows]
    pairs = [pair if pair["seeds"] else None for pair in table["neighbours"]] + [None]
    columns["lead"] = column([(pair["gap"], pair["spread"]) if pair else None for pair in pairs])
    columns["reversed"] = [f"{len(pair['reversed'])} of {len(pair['seeds'])}" if pair else "–" for pair in pairs]
    names = [title.split()[0] for title in distances]
    for name, (title, values) in zip(names, distances.items()):
        columns[name if names.count(name) == 1 else title] = column([values.get(row["network"]) for row in rows])
    return Table(list(columns), list(zip(*columns.values())))


def _firmness(battle: Battle, table: dict) -> str:
    """How much of the order is more than chance, in words."""

    def pairs(separated: bool | None) -> str:
        found = [pair for pair in table["neighbours"] if pair["separated"] is separated]
        return "; ".join(f"{battle.label(pair['better'])} and {battle.label(pair['worse'])}" for pair in found)

    tau, close, firm, unknown = table["kendall_tau"], pairs(False), pairs(True), pairs(None)
    sentences = [
        tau
        and f"Kendall's tau between the orders of two seeds: {tau['mean']:.2f} on average, {tau['least']:.2f} at "
        f"least (pairs of seeds: {len(tau['pairs'])}; 1 is the same order, -1 the reverse).",
        close
        and "Not separated by the spread over seeds (the lead is within its standard deviation, or a seed turns "
        f"it round): {close}.",
        not close
        and firm
        and "Every lead that has a standard deviation over seeds exceeds it, and no seed turns one round.",
        unknown and f"Too few seeds in common to say anything of {unknown}.",
        *(f"{battle.label(network)} is left out: {reason}." for network, reason in table["left_out"].items()),
    ]
    return " ".join(filter(None, sentences))


def _distances(battle: Battle, budget: float) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Columns of distribution distances of the runs that end at a budget of images: value and spread by network.

    What was measured otherwise, or on another number of samples, has a column of its own.
    """
    whole = [cell for cell in battle.cells if cell["curve"][-1][0] == budget]
    kernel: dict[str, dict[str, list[float]]] = {}
    for cell in whole:
        if cell["kd"] is not None:
            title = f"{cell['kd']['name']} ({cell['kd']['samples']:,} samples)"
            kernel.setdefault(title, {}).setdefault(cell["network"], []).append(cell["kd"]["value"])
    columns = {
        title: {name: mean_and_spread(values) for name, values in networks.items()}
        for title, networks in kernel.items()
    }
    for network in dict.fromkeys(cell["network"] for cell in whole):
        if battle.frechet.get(network):
            entry = battle.frechet[network]
            columns.setdefault(f"{entry['name']} ({entry['samples']:,} samples)", {})[network] = entry["value"], None
    return columns


def _distances_text(battle: Battle, table: dict, distances: Mapping[str, Mapping[str, tuple]]) -> str:
    """What the columns of distances are, and whether they order the networks as the losses do."""
    kinds = {
        "KD": "kernel distance of each run's own, mean ± standard deviation over seeds",
        "FD": "Fréchet distance of those of all seeds together",
    }
    sentences = []
    for title, values in distances.items():
        ranked = [row for row in table["networks"] if row["network"] in values]
        tau = kendall_tau([row["mean"] for row in ranked], [values[row["network"]][0] for row in ranked])
        agreement = "" if tau is None else f"; Kendall's tau between its order and that of the losses: {tau:.2f}"
        sentences.append(f"{title}: {kinds.get(title[:2], 'distance')}{agreement}.")
    return " ".join(sentences)


def _network_blocks(battle: Battle) -> list:
    timed, unit = battle.timing.get("networks", {}), battle.unit
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


def _sweep_blocks(battle: Battle) -> list:
    rates = sorted({float(rate) for losses in battle.sweep.values() for rate in losses})
    rows, edge = [], []
    if not rates:
        return []
    for network, by_rate in battle.sweep.items():
        losses = {float(rate): loss for rate, loss in by_rate.items()}
        finite = {rate: loss for rate, loss in losses.items() if loss is not None}
        best = min(finite, key=finite.get) if finite else None
        if best is not None and len(rates) > 2 and best in (rates[0], rates[-1]):
            edge.append(battle.label(network))
        shown = [f"{finite[rate]:.4g}" if rate in finite else "diverged" if rate in losses else "–" for rate in rates]
        rows.append([battle.label(network), *shown, "–" if best is None else f"{best:g}"])
    text = "Held-out loss of short runs at each learning rate; each network goes on with its best."
    if edge:
        text += f" The best lies at an end of the sweep, so a better one may lie beyond, for: {', '.join(edge)}."
    head = ["network", *(f"{rate:g}" for rate in rates), "best"]
    return ["## Sweep of learning rates", text, Table(head, rows)]


def _curves(battle: Battle, curves: Sequence[Curve], tables: Mapping[str, dict]) -> Panels:
    """A panel for each table: mean over seeds, a band of one standard deviation to either side."""
    titles = _axis_titles(battle)
    plots = [_panel(battle, curves, axis, table["budget"], titles[axis]) for axis, table in tables.items()]
    caption = (
        "Held-out loss over what training has cost: mean over seeds, in a band of one standard deviation to either "
        f"side. Dotted: the budget of the table. The panels begin at {FIRST_SHARE:.0%} of it; both axes are "
        "logarithmic."
    )
    return Panels(plots, caption=caption, name=STUDY)


def _panel(battle: Battle, curves: Sequence[Curve], axis: str, budget: float, title: str) -> Plot:
    series, bands, heights = {}, {}, []
    for network in battle.networks:
        course = _course([curve for curve in curves if curve.network == network], axis)
        if not course:
            continue
        spent, means, spreads = zip(*course)
        lows, highs = ([mean + sign * s for mean, s in zip(means, spreads)] for sign in (-1, 1))
        series[battle.label(network)], bands[battle.label(network)] = (spent, means), (lows, highs)
        shown = [i for i, cost in enumerate(spent) if cost >= FIRST_SHARE * budget] or [-1]
        heights += [line[i] for i in shown for line in (lows, highs)]
    return Plot(
        series, title, "paired held-out loss", log_x=True, log_y=True, bands=bands, marks={"": budget},
        colours={battle.label(name): battle.config["networks"][name]["colour"] for name in battle.networks},
        x_limits=(FIRST_SHARE * budget, None), y_limits=(0.99 * min(heights), 1.01 * max(heights)),
    )  # fmt: skip


def _course(curves: Sequence[Curve], axis: str) -> list[tuple[float, float, float]]:
    """What was spent, mean loss and spread at every point that lies within all of a network's curves."""
    if not curves or curves[0].price(axis) is None:
        return []
    first, last = max(c.images[0] for c in curves), min(c.images[-1] for c in curves)
    course = []
    for images in sorted({n for curve in curves for n in curve.images if first <= n <= last}):
        mean, spread = mean_and_spread([curve.loss_at(images) for curve in curves])
        course.append((images * curves[0].price(axis), mean, spread or 0.0))
    return course


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
                height = min(picture.height, _SHEET_ROWS * (size + GAP) - GAP)
                strip = picture.convert("RGB").crop((0, 0, picture.width, height))
            rows[f"{cell['label']}\nloss {cell['curve'][-1][1]:.4g}"] = [strip]
    caption = (
        f"Samples of the finished runs of seed {seed} in {battle.config['scores']['steps']} "
        "DPM-Solver++ steps, the first of each, none left out, the network of least loss on top. Pictures at the "
        "same place have the same class and began with the same noise."
    )
    sheet = labelled_sheet(list(rows.values()), list(rows), [""], side=_SHEET_WIDTH) if rows else None
    return sheet and Picture(sheet, caption, name="samples")
