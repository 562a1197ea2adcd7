"""The report of `brickwork convbn`: tables and figures of what its cells have found so far."""

from collections.abc import Callable, Sequence

import torch

from brickwork.eval.benchmark.timing import describe_machine
from brickwork.eval.report.blocks import Panels, Plot, Report, Table
from brickwork.eval.report.numbers import between
from brickwork.eval.report.versions import library_versions
from brickwork.eval.studies.core import StudyFolder, table_of
from brickwork.gen.convbn import CONVBN_MODES

BASE = "eval"  # the mode that the others are compared with
STUDY = "convbn"
MIB = 2**20
COLOURS = {"train": "#8a6d1b", "eval": "#2b6a8f", "tune": "#5b7f2b", "deploy": "#b3431f", "untouched": "#888888"}
HIGHEST = 6  # times the loss before fine-tuning, where curves leave the figure
SMOOTH = 9  # steps that a point of a curve is the mean of
TAIL = 4  # the end of a run is its last quarter


def report_of(settings: dict, folder: StudyFolder) -> tuple[Report, dict]:
    """Tables and figures of what the cells have found so far, and that by network, optimiser, rate (rising), mode."""
    results = folder.results()
    cost: dict[str, dict] = {}
    curves: dict[str, dict] = {}
    for path in sorted(results, key=lambda path: path.count("/") == 4 and float(path.split("/")[3])):
        part, name, *rest = path.split("/")
        if rest == ["time"]:
            memory = {mode: results[f"{part}/{name}/memory-{mode}"] for mode in CONVBN_MODES}
            cost[name] = {mode: memory[mode] | times for mode, times in results[path].items()}
        elif rest == ["about"]:
            curves[name] = {"about": results[path], "runs": {}}
        elif rest[-1] == BASE:
            optimizer, rate, _ = rest
            runs = {mode: results.get(f"{part}/{name}/{optimizer}/{rate}/{mode}") for mode in CONVBN_MODES}
            if None not in runs.values():
                curves[name]["runs"].setdefault(optimizer, {})[rate] = runs
    values = {"settings": settings, "cost": cost, "curves": curves}
    made = {"machine": describe_machine(torch.device(settings["device"])), "versions": library_versions()}
    return report(values), made | values


def ending(losses: Sequence[float | None]) -> float | None:
    """The mean loss of the last quarter, `None` where a step had none."""
    last = losses[-max(1, len(losses) // TAIL) :]
    return None if None in last else sum(last) / len(last)


def apart(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """The largest difference of two curves over the first's value, where both are numbers."""
    both = [(a, b) for a, b in zip(first, second) if a is not None and b is not None]
    return max((abs(a - b) / abs(a) for a, b in both), default=float("nan"))


def report(values: dict) -> Report:
    """What a step costs, then how fine-tuning went.

    Args:
        values: `cost`, `{network: {mode: {fixed, derived, measured, seconds, ratio, …}}}`, and `curves`,
            `{network: {about, runs: {optimiser: {rate: {mode: {losses, held_out}}}}}}`; either may be empty.
    """
    blocks: list = [_cost_table(name, modes) for name, modes in values["cost"].items()]
    if values["cost"]:
        blocks.append(_cost_plots(values["cost"]))
    for name, network in values["curves"].items():
        low, middle, high = network["about"]["scales"]
        blocks.append(
            f"**{name}**, {network['about']['parameters']:,} parameters, {network['about']['pairs']} convolutions "
            f"with a BatchNorm, |γ|/σ {middle:.2g} ({low:.2g} to {high:.2g}); before fine-tuning "
            f"{_run_cell(network['about'], None)}"
        )
        untouched = network["about"]["losses"]
        blocks += [_curve_table(optimizer, rates, untouched) for optimizer, rates in network["runs"].items()]
    plots = [
        plot
        for name, network in values["curves"].items()
        for optimizer, rates in network["runs"].items()
        for plot in _curve_plots(f"{name}, {optimizer}", rates, network["about"]["losses"])
    ]
    if plots:
        caption = f"Loss of fine-tuning, means of {SMOOTH} steps; a curve ends where a loss is no number."
        blocks.append(Panels(plots, columns=4, caption=caption, name="convbn"))
    return Report("Modes of a convolution and its BatchNorm", blocks)


def _cost_table(name: str, modes: dict) -> Table:
    base = modes[BASE]

    def peak(key: str) -> dict[str, Callable]:
        of = {"derived": "peak of tensors, MiB", "measured": "peak measured, MiB"}[key]
        return {
            of: lambda row: row[1][key] and f"{row[1][key] / MIB:.0f}",
            f"{of.removesuffix(', MiB')} to eval": lambda row: row[1][key] and f"{row[1][key] / base[key]:.2f}",
        }

    columns = {
        name: lambda row: row[0],
        "step, s": lambda row: f"{sorted(row[1]['seconds'])[len(row[1]['seconds']) // 2]:.3g}",
        "to eval": lambda row: "1" if row[0] == BASE else between(*(row[1]["ratio"][k] for k in _QUARTILES)),
        **peak("derived"),
        **peak("measured"),
    }
    note = f"Of the peaks, weights and AdamW's averages: {base['fixed'] / MIB:.0f} MiB."
    return table_of([(mode, modes[mode]) for mode in CONVBN_MODES], columns, note)


_QUARTILES = ("median", "lower", "upper")


def _curve_table(optimizer: str, rates: dict, untouched: list) -> Table:
    """Losses at the end, marked where they are above those of the same steps without training."""
    before = ending(untouched)
    columns = {optimizer: lambda row: f"{float(row[0]):g}"}
    columns |= {mode: lambda row, mode=mode: _run_cell(row[1][mode], before) for mode in CONVBN_MODES}
    columns["highest of deploy"] = lambda row: _number(
        max((loss for loss in row[1]["deploy"]["losses"] if loss is not None), default=None)
    )
    columns["tune from eval, at most"] = lambda row: f"{apart(row[1][BASE]['losses'], row[1]['tune']['losses']):.1e}"
    return table_of(list(rates.items()), columns)


def _run_cell(run: dict, before: float | None) -> str:
    end = ending(run["losses"])
    if end is None:
        return "no number"
    worse = " ↑" if before is not None and end > before else ""
    return f"{_number(end)} ({_number(run['held_out'])}){worse}"


def _number(value: float | None) -> str:
    if value is None:
        return "no number"
    return f"{value:.4f}" if value < 10 else f"{value:.2g}"


def _cost_plots(cost: dict) -> Panels:
    """Memory and time of a step, all to eval mode."""
    on_gpu = any(row["derived"] is None for modes in cost.values() for row in modes.values())
    kind, what = ("measured", "allocated") if on_gpu else ("derived", "tensors")
    heights = {
        f"{what} beyond weights and averages": lambda row, base: (
            (row[kind] - row["fixed"]) / (base[kind] - base["fixed"])
        ),
        "peak memory measured, all in all": lambda row, base: row["measured"] / base["measured"],
        "time of a step": lambda row, base: row["ratio"]["median"],
    }
    plots = []
    for title, height in heights.items():
        points = {
            name: (CONVBN_MODES, [height(row[m], row[BASE]) for m in CONVBN_MODES]) for name, row in cost.items()
        }
        plots.append(Plot(points, "", "to eval mode", points=True, title=title))
    return Panels(plots, caption="Memory and time of a step in each mode.", name="convbn-cost")


def _curve_plots(title: str, rates: dict, untouched: list) -> list[Plot]:
    """The losses at each rate; they leave the figure above `HIGHEST`."""
    before = ending(untouched) or 1.0
    ends = [ending(run["losses"]) for runs in rates.values() for run in runs.values()]
    lowest = min([before, *(end for end in ends if end is not None)])
    return [
        Plot(
            {mode: smoothed(run["losses"]) for mode, run in runs.items()} | {"untouched": smoothed(untouched)},
            "step", "loss", log_y=True, colours=COLOURS, y_limits=(0.85 * lowest, HIGHEST * before),
            title=f"{title}, rate {float(rate):g}",
        )
        for rate, runs in rates.items()
    ]  # fmt: skip


def smoothed(losses: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Steps and means of `SMOOTH` losses, up to the first that is no number."""
    end = losses.index(None) if None in losses else len(losses)
    width = min(SMOOTH, max(end, 1))
    starts = range(end - width + 1)
    return [at + (width - 1) / 2 for at in starts], [sum(losses[at : at + width]) / width for at in starts]
