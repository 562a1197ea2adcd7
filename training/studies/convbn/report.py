"""The tables and the figure of `brickwork convbn`, from its values alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from brickwork.gen.convbn import CONVBN_MODES
from brickwork.training.studies.convbn.cost import BASE

MIB = 2**20
COLOURS = {"train": "#8a6d1b", "eval": "#2b6a8f", "tune": "#5b7f2b", "deploy": "#b3431f"}
# Those that lie on one another all the same can be seen.
LINES = {
    "train": {"lw": 1.1},
    "deploy": {"lw": 3.0, "alpha": 0.6},
    "eval": {"lw": 1.3},
    "tune": {"lw": 1.3, "ls": (0, (3, 3))},
}
HIGHEST = 6  # times the loss before fine-tuning, where curves leave the figure
SMOOTH = 9  # steps that a point of a curve is the mean of
TAIL = 4  # the end of a run is its last quarter


def ending(losses: Sequence[float | None]) -> float | None:
    """The mean loss of the last quarter, `None` where a step had none."""
    last = losses[-max(1, len(losses) // TAIL) :]
    return None if None in last else sum(last) / len(last)


def apart(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """The largest difference of two curves over the first's value, where both are numbers."""
    both = [(a, b) for a, b in zip(first, second) if a is not None and b is not None]
    return max((abs(a - b) / abs(a) for a, b in both), default=float("nan"))


def tables(values: dict) -> str:
    """Markdown: what a step costs, then how fine-tuning went.

    Args:
        values: `cost`, `{network: {mode: {fixed, derived, measured, seconds, ratio, …}}}`, and `curves`,
            `{network: {about, runs: {optimiser: {rate: {mode: {losses, held_out}}}}}}`; either may be empty.
    """
    parts = [_cost_table(name, modes) for name, modes in values["cost"].items()]
    for name, network in values["curves"].items():
        low, middle, high = network["about"]["scales"]
        parts.append(
            f"**{name}**, {network['about']['parameters']:,} parameters, {network['about']['pairs']} convolutions "
            f"with a BatchNorm, |γ|/σ {middle:.2g} ({low:.2g} to {high:.2g}); before fine-tuning "
            f"{_run_cell(network['about'], None)}"
        )
        untouched = network["about"]["losses"]
        parts += [_curve_table(optimizer, rates, untouched) for optimizer, rates in network["runs"].items()]
    return "\n\n".join(parts) + "\n"


def _cost_table(name: str, modes: dict) -> str:
    base = modes[BASE]
    head = [name, "step, s", "to eval", "peak of tensors, MiB", "to eval", "peak measured, MiB", "to eval"]
    rows = [head, ["---"] * len(head)]
    for mode in CONVBN_MODES:
        row, ratio = modes[mode], modes[mode]["ratio"]
        seconds = sorted(row["seconds"])[len(row["seconds"]) // 2]
        spread = f"{ratio['median']:.2f} ({ratio['lower']:.2f}–{ratio['upper']:.2f})" if mode != BASE else "1"
        peaks = [
            cell
            for key in ("derived", "measured")
            for cell in (("–", "–") if row[key] is None else (f"{row[key] / MIB:.0f}", f"{row[key] / base[key]:.2f}"))
        ]
        rows.append([mode, f"{seconds:.3g}", spread, *peaks])
    note = f"of the peaks, weights and AdamW's averages: {base['fixed'] / MIB:.0f} MiB"
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n({note})"


def _curve_table(optimizer: str, rates: dict, untouched: list) -> str:
    """Losses at the end, marked where they are above those of the same steps without training."""
    before = ending(untouched)
    head = [optimizer, *CONVBN_MODES, "highest of deploy", "tune from eval, at most"]
    rows = [head, ["---"] * len(head)]
    for rate, runs in rates.items():
        highest = [loss for loss in runs["deploy"]["losses"] if loss is not None]
        cells = [_run_cell(runs[mode], before) for mode in CONVBN_MODES]
        difference = apart(runs[BASE]["losses"], runs["tune"]["losses"])
        rows.append([f"{float(rate):g}", *cells, _number(max(highest, default=None)), f"{difference:.1e}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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


def draw(values: dict, path: Path) -> None:
    """Above, memory and time of a step in each mode; below, the curves, a row an optimiser, a column a learning rate.

    Curves end where a loss is no number, and leave the figure above `HIGHEST`.

    Raises:
        ValueError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("plot: needs matplotlib: pip install 'brickwork[report]'") from error
    rows = [
        (f"{name}, {optimizer}", rates, network["about"]["losses"])
        for name, network in values["curves"].items()
        for optimizer, rates in network["runs"].items()
    ]
    heights = ([2.6] if values["cost"] else []) + [2.2] * len(rows)
    figure = Figure(figsize=(10.0, sum(heights)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if values["cost"]:
        _draw_cost(parts.pop(0), values["cost"])
    for part, row in zip(parts, rows):
        _draw_curves(part, *row)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # A palette makes the file a third, and shows no difference.
    picture.quantize(64, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def _draw_cost(part, cost: dict) -> None:
    memory, process, time = part.subplots(1, 3)
    of_tensors = all(row["derived"] is not None for modes in cost.values() for row in modes.values())
    if of_tensors:
        _bars(memory, cost, lambda row, base: (row["derived"] - row["fixed"]) / (base["derived"] - base["fixed"]))
    else:
        _bars(memory, cost, lambda row, base: (row["measured"] - row["fixed"]) / (base["measured"] - base["fixed"]))
    memory.set_title(f"{'tensors' if of_tensors else 'allocated'} beyond weights and averages", fontsize=9)
    _bars(process, cost, lambda row, base: row["measured"] / base["measured"])
    process.set_title("peak memory measured, all in all", fontsize=9)
    _bars(time, cost, lambda row, base: row["ratio"]["median"], lambda row: row["ratio"])
    time.set_title("time of a step, with quartiles", fontsize=9)
    memory.set_ylabel("to eval mode", fontsize=8)
    memory.legend(fontsize=7, frameon=False, ncols=4, loc="upper left")


def _bars(axis, cost: dict, height, spread=None) -> None:
    """A group of bars a network, a bar a mode."""
    for number, mode in enumerate(CONVBN_MODES):
        places = [group + 0.2 * (number - 1.5) for group in range(len(cost))]
        tops = [height(modes[mode], modes[BASE]) for modes in cost.values()]
        axis.bar(places, tops, 0.18, color=COLOURS[mode], label=mode)
        for place, top in zip(places, tops):
            axis.text(place, 0.03, f"{top:.2f}", ha="center", fontsize=7, color="white", rotation=90)
        if spread is not None:
            for place, modes in zip(places, cost.values()):
                ends = spread(modes[mode])
                axis.vlines(place, ends["lower"], ends["upper"], color="black", lw=1)
    axis.axhline(1, color="#888888", lw=0.7)
    axis.set_xticks(range(len(cost)), list(cost))
    axis.set_ylim(0, axis.get_ylim()[1] * 1.15)
    _plain(axis)


def _draw_curves(part, title: str, rates: dict, untouched: list) -> None:
    axes = part.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    before = ending(untouched) or 1.0
    ends = [ending(run["losses"]) for runs in rates.values() for run in runs.values()]
    lowest = min([before, *(end for end in ends if end is not None)])
    for axis, (rate, runs) in zip(axes, rates.items()):
        for mode, style in LINES.items():
            axis.plot(*smoothed(runs[mode]["losses"]), color=COLOURS[mode], label=mode, **style)
        axis.plot(*smoothed(untouched), color="#888888", lw=0.8, ls=":", label="untouched")
        axis.set_title(f"learning rate {float(rate):g}", fontsize=8)
        axis.set_xlabel("step", fontsize=8)
        axis.set_yscale("log")
        _plain(axis)
    axes[0].set_ylim(0.85 * lowest, HIGHEST * before)
    ticks = [tick * before for tick in (1, 2, 4)]
    axes[0].set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
    axes[0].minorticks_off()
    axes[0].set_ylabel(f"{title}\nloss, {SMOOTH} steps", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)


def smoothed(losses: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Steps and means of `SMOOTH` losses, up to the first that is no number."""
    end = losses.index(None) if None in losses else len(losses)
    width = min(SMOOTH, max(end, 1))
    starts = range(end - width + 1)
    return [at + (width - 1) / 2 for at in starts], [sum(losses[at : at + width]) / width for at in starts]


def _plain(axis) -> None:
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
