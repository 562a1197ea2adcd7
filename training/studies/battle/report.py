"""The report of a battle of backbones: tables, plot, sheet of samples and page, from what its cells left behind.

Reads `cells/*/cell.json`, `timing.json`, `sweep.json`, `fd.json` and `battle.yaml` of a battle's folder, as far as
they are there; writes `battle.json`, `battle.md`, `samples.png`, `battle.png` and `index.html` beside them.
"""

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import yaml

from brickwork.eval.commands.report import html_figure, html_page, html_table
from brickwork.eval.sets.pictures import write_atomically
from brickwork.files import write_json
from brickwork.training.studies.battle.plot import FIRST_SHARE, draw_curves, draw_samples
from brickwork.training.studies.battle.tables import Curve, kendall_tau, standings

FORMAT = "brickwork-battle/1"
TITLE = "Battle of backbones"
RESULT, TABLES, PLOT, SHEET, PAGE = "battle.json", "battle.md", "battle.png", "samples.png", "index.html"
_CELL_KEYS = ("network", "label", "seed", "learning_rate", "batch_size", "curve", "kd", "samples_png")
_SECTIONS = ("networks", "battle", "scores", "data")
_SECONDS = {"CPU s": "process CPU seconds", "GPU s": "GPU seconds"}
_GIB = 2**30


class Heading(NamedTuple):
    text: str


class Table(NamedTuple):
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    path: Path
    caption: str
    pixels: bool


@dataclass(frozen=True)
class Battle:
    """What lies in a battle's folder.

    Attributes:
        folder: of the battle.
        cells: the finished runs, in the order of the networks, then of the seeds.
        timing: of `timing.json`, `{}` if there is none yet; likewise `sweep` and `fd`.
        config: of `battle.yaml`.
        missing: what the report has to do without, one line each.
    """

    folder: Path
    cells: list[dict]
    timing: dict
    sweep: dict
    fd: dict
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


def write_report(folder: Path) -> None:
    """Write the report of a battle, finished or not, into its folder; an earlier report of it is replaced.

    Raises:
        ValueError: for a folder without a finished run, a file of it that cannot be read, or without matplotlib (the
            tables are written all the same).
    """
    folder = Path(folder)
    battle = read_battle(folder)
    curves = battle.curves()
    tables = standings(curves)
    result = {"format": FORMAT, "config": battle.config, "timing": battle.timing, "sweep": battle.sweep}
    result |= {"fd": battle.fd, "cells": battle.cells, "tables": tables, "missing": battle.missing}
    write_json(folder / RESULT, result)
    strips = _strips(battle, tables)
    if strips:
        draw_samples(strips, battle.config["data"]["size"], folder / SHEET)
    blocks = [
        *_lead(battle),
        *_standings_blocks(battle, tables),
        *_picture_blocks(battle, strips),
        *_network_blocks(battle),
        *_sweep_blocks(battle),
    ]
    _write_text(folder / TABLES, _markdown(blocks))
    draw_curves(curves, _looks(battle), tables, _axis_titles(battle), folder / PLOT)
    _write_text(folder / PAGE, html_page(TITLE, [f"<h1>{TITLE}</h1>", *map(_html, blocks), _configuration(battle)]))
    print(f"The report is in {folder}: {PAGE}, {TABLES}, {PLOT}, {RESULT}.")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_battle(folder: Path) -> Battle:
    """Read a battle's folder.

    Raises:
        ValueError: if no run of it is finished, or for a file that cannot be read or lacks something.
    """
    read = {file.stem: _read_json(file) for file in (folder / f"{name}.json" for name in ("timing", "sweep", "fd"))}
    config = _read_config(folder / "battle.yaml")
    cells, missing = [], []
    for file in sorted(folder.glob("cells/*/cell.json")):
        cell = _read_json(file, _CELL_KEYS)
        cell["curve"] = [point for point in cell["curve"] if point[0] > 0]
        broken = [images for images, loss in cell["curve"] if loss is None or not math.isfinite(loss)]
        if broken or not cell["curve"]:
            where = f"its held-out loss is not finite at {broken[0]:,} images" if broken else "its curve has no point"
            missing.append(f"{cell['label']}, seed {cell['seed']}, is left out: {where}.")
        else:
            cells.append(cell)
    if not cells:
        raise ValueError(
            f"battle: {folder} holds no finished run with a finite loss (cells/*/cell.json); run `brickwork battle` "
            f"on it first.{' '.join(['', *missing])}"
        )
    networks = list(config["battle"]["networks"] or config["networks"])
    cells.sort(key=lambda cell: (networks.index(cell["network"]), cell["seed"]))
    missing += _missing(cells, networks, config, **read)
    return Battle(folder, cells, read["timing"], read["sweep"], read["fd"], config, missing)


def _read_json(file: Path, needed: Sequence[str] = ()) -> dict:
    """A JSON object, `{}` where there is no file."""
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        lacking = [key for key in needed if key not in value]
    except (TypeError, ValueError) as error:
        raise ValueError(f"battle: {file} cannot be read: {error}; remove it and run the battle again.") from error
    if lacking:
        raise ValueError(f"battle: {file} lacks {', '.join(lacking)}; remove it and run the battle again.")
    return value


def _read_config(file: Path) -> dict:
    if not file.is_file():
        raise ValueError(f"battle: {str(file.parent)!r} holds no battle (no {file.name}); name the folder of one.")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        lacking = [section for section in _SECTIONS if section not in config]
    except (OSError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"battle: {file} cannot be read: {error}; name the folder of a battle.") from error
    if lacking:
        raise ValueError(f"battle: {file} lacks {', '.join(lacking)}; it is not what `brickwork battle` wrote.")
    return config


def _missing(
    cells: Sequence[dict], networks: Sequence[str], config: dict, timing: dict, sweep: dict, fd: dict
) -> Iterator[str]:
    """What is not there yet, one line each."""
    done = {(cell["network"], cell["seed"]) for cell in cells}
    labels = {network: config["networks"][network]["label"] for network in networks}
    for seed in config["battle"]["seeds"]:
        names = [label for network, label in labels.items() if (network, seed) not in done]
        if names:
            yield f"No result at seed {seed} of {', '.join(names)}."
    measured = config["scores"]["extractor"] is not None
    files = {"timing": timing.get("networks", {}), "sweep": sweep} | ({"fd": fd} if measured else {})
    for file, entries in files.items():
        names = [label for network, label in labels.items() if network not in entries]
        if names:
            yield f"{file}.json has nothing on {', '.join(names)}." if entries else f"{file}.json has no values."


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


def in_units(value: float, unit: str) -> str:
    """`1234567, "FLOP"` => `1.23 MFLOP`."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            scaled = value / factor
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _standings_blocks(battle: Battle, tables: Mapping[str, dict]) -> list:
    blocks = []
    for axis, table in tables.items():
        amount = _amount(axis, table["budget"])
        distances = _distances(battle, table["budget"]) if axis == "images" else {}
        blocks += [
            Heading(f"At equal {_axis_titles(battle)[axis].removesuffix(' of training')}: {amount}"),
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
    columns["held-out loss"] = _alike([(row["mean"], row["spread"]) for row in rows])
    if len(counts) > 1:
        columns["seeds"] = [f"{len(row['losses'])}" for row in rows]
    if len(rows[0]["ranks"]) > 1:
        columns["by seed"] = [", ".join(map(str, row["ranks"].values())) for row in rows]
    pairs = [pair if pair["seeds"] else None for pair in table["neighbours"]] + [None]
    columns["lead"] = _alike([(pair["gap"], pair["spread"]) if pair else None for pair in pairs])
    columns["reversed"] = [f"{len(pair['reversed'])} of {len(pair['seeds'])}" if pair else "–" for pair in pairs]
    names = [title.split()[0] for title in distances]
    for name, (title, values) in zip(names, distances.items()):
        columns[name if names.count(name) == 1 else title] = _alike([values.get(row["network"]) for row in rows])
    return Table(list(columns), list(zip(*columns.values())))


def _alike(values: Sequence[tuple[float, float | None] | None]) -> list[str]:
    """Values with their spreads, all to one place: of the second digit of the largest spread, or else of the fourth
    digit of the largest value. `None` is a dash."""
    known = [value for value in values if value]
    spread = max((value[1] or 0.0 for value in known), default=0.0)
    size, digits = (spread, 2) if spread else (max((abs(value[0]) for value in known), default=0.0), 4)
    places = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0

    def text(value: float, spread: float | None) -> str:
        return f"{value:.{places}f}" if spread is None else f"{value:.{places}f} ± {spread:.{places}f}"

    return ["–" if value is None else text(*value) for value in values]


def _firmness(battle: Battle, table: dict) -> str:
    """How much of the order is more than chance, in words."""
    sentences = []
    tau = table["kendall_tau"]
    if tau:
        sentences.append(
            f"Kendall's tau between the orders of two seeds: {tau['mean']:.2f} on average, {tau['least']:.2f} at "
            f"least (pairs of seeds: {len(tau['pairs'])}; 1 is the same order, -1 the reverse)."
        )
    known = [pair for pair in table["neighbours"] if pair["separated"] is not None]
    close = [f"{battle.label(p['better'])} and {battle.label(p['worse'])}" for p in known if not p["separated"]]
    if close:
        sentences.append(
            "Not separated by the spread over seeds (the lead is within its standard deviation, or a seed turns it "
            f"round): {'; '.join(close)}."
        )
    if known and not close:
        sentences.append(
            "Every lead that has a standard deviation over seeds exceeds it, and no seed turns one round."
        )
    unknown = [pair for pair in table["neighbours"] if pair["separated"] is None]
    if unknown:
        names = [f"{battle.label(p['better'])} and {battle.label(p['worse'])}" for p in unknown]
        sentences.append(f"Too few seeds in common to say anything of {'; '.join(names)}.")
    for network, reason in table["left_out"].items():
        sentences.append(f"{battle.label(network)} is left out: {reason}.")
    return " ".join(sentences)


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
        title: {name: (fmean(values), stdev(values) if len(values) > 1 else None) for name, values in networks.items()}
        for title, networks in kernel.items()
    }
    for network in dict.fromkeys(cell["network"] for cell in whole):
        if battle.fd.get(network):
            entry = battle.fd[network]
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
    head = ["network", "parameters", "operations", "in training", "trained/s", "sampled/s"]
    head += [unit.replace(" s", " ms"), "memory, GiB", "rate"]
    rows = []
    for network, entry in timed.items():
        median, low, high = (1e3 * value for value in (entry["seconds_per_image"], *entry["seconds_spread"]))
        rates = sorted({cell["learning_rate"] for cell in battle.cells if cell["network"] == network})
        rows.append(
            [
                battle.label(network),
                f"{entry['parameters'] / 1e6:.2f} M",
                in_units(entry["forward_operations"], "FLOP"),
                in_units(entry["training_operations"], "FLOP"),
                f"{entry['training_images_per_second']:.3g}",
                f"{entry['sampling_images_per_second']:.3g}",
                f"{median:.3g} ({low:.3g}–{high:.3g})",
                f"{entry['peak_memory'] / _GIB:.2f}",
                ", ".join(f"{rate:g}" for rate in rates) or "–",
            ]
        )
    steps = battle.config["scores"]["steps"]
    text = (
        "Operations are those of the network on one image, and of training on it; images trained and sampled "
        f"({steps} DPM-Solver++ steps each) per {unit}; {head[6]} of training on one image, median and quartiles; "
        "peak memory of training; the learning rate chosen."
    )
    return [Heading("What the networks cost"), text, Table(head, rows)]


def _sweep_blocks(battle: Battle) -> list:
    rates = sorted({float(rate) for losses in battle.sweep.values() for rate in losses})
    rows, edge = [], []
    if not rates:
        return []
    for network, by_rate in battle.sweep.items():
        losses = {float(rate): loss for rate, loss in by_rate.items()}
        finite = {rate: loss for rate, loss in losses.items() if loss is not None and math.isfinite(loss)}
        best = min(finite, key=finite.get) if finite else None
        if best is not None and len(rates) > 2 and best in (rates[0], rates[-1]):
            edge.append(battle.label(network))
        shown = [f"{finite[rate]:.4g}" if rate in finite else "diverged" if rate in losses else "–" for rate in rates]
        rows.append([battle.label(network), *shown, "–" if best is None else f"{best:g}"])
    text = "Held-out loss of short runs at each learning rate; each network goes on with its best."
    if edge:
        text += f" The best lies at an end of the sweep, so a better one may lie beyond, for: {', '.join(edge)}."
    head = ["network", *(f"{rate:g}" for rate in rates), "best"]
    return [Heading("Sweep of learning rates"), text, Table(head, rows)]


def _looks(battle: Battle) -> dict[str, tuple[str, str]]:
    """Label and colour of each network that has a finished run."""
    described = battle.config["networks"]
    return {network: (battle.label(network), described[network]["colour"]) for network in battle.networks}


def _picture_blocks(battle: Battle, strips: Mapping) -> list:
    caption = (
        "Held-out loss over what training has cost: mean over seeds, in a band of one standard deviation to either "
        f"side. Dotted: the budget of the table. The panels begin at {FIRST_SHARE:.0%} of it; both axes are "
        "logarithmic."
    )
    blocks = [Heading("Curves"), Picture(battle.folder / PLOT, caption, pixels=False)]
    if strips:
        caption = (
            f"Samples of the finished runs of seed {_shown_seed(battle)} in {battle.config['scores']['steps']} "
            "DPM-Solver++ steps, the first of each, none left out, the network of least loss on top. Pictures at the "
            "same place have the same class and began with the same noise."
        )
        blocks += [Heading("Samples"), Picture(battle.folder / SHEET, caption, pixels=True)]
    return blocks


def _strips(battle: Battle, tables: Mapping[str, dict]) -> dict[str, Path]:
    """Each network's grid of samples by label and loss, best first; all of one seed, as that gives the noise."""
    seed, strips = _shown_seed(battle), {}
    cells = {cell["network"]: cell for cell in battle.cells if cell["seed"] == seed}
    for row in tables["images"]["networks"]:
        cell = cells.get(row["network"])
        if cell is None or not cell["samples_png"]:
            continue
        file = battle.folder / "cells" / f"{cell['network']}-seed{seed}" / cell["samples_png"]
        if file.is_file():
            strips[f"{cell['label']}\nloss {cell['curve'][-1][1]:.4g}"] = file
    return strips


def _shown_seed(battle: Battle) -> int:
    return min(cell["seed"] for cell in battle.cells)


def _markdown(blocks: Sequence) -> str:
    return "\n\n".join(_markdown_block(block) for block in blocks if block) + "\n"


def _markdown_block(block: str | Heading | Table | Picture) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Picture):
        return f"![{block.caption}]({block.path.name})"
    if isinstance(block, Table):
        lines = [block.head, ["---"] * len(block.head), *block.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return block


def _html(block: str | Heading | Table | Picture) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Picture):
        return html_figure(block.path, block.caption, block.pixels)
    if isinstance(block, Table):
        return html_table([*map(html.escape, block.head)], [[html.escape(cell) for cell in row] for row in block.rows])
    return f"<p>{html.escape(block)}</p>" if block else ""


def _configuration(battle: Battle) -> str:
    text = yaml.safe_dump(battle.config, sort_keys=False, allow_unicode=True)
    return f"<details><summary>Configuration</summary><pre>{html.escape(text)}</pre></details>"
