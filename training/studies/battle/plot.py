"""The pictures of a battle: held-out loss over what training has cost, and a sheet of samples, one row a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from PIL import Image

from brickwork.eval.report.pictures import GAP, labelled_sheet, save_picture
from brickwork.eval.sets.pictures import write_atomically
from brickwork.training.studies.battle.tables import Curve

# What is drawn begins at this share of the common budget; before it all curves fall alike, and far.
FIRST_SHARE = 0.2
# Rows of samples that the sheet shows of each network, and the most that they may be enlarged to, in pixels.
_SHEET_ROWS, _SHEET_WIDTH = 2, 640


def draw_curves(
    curves: Sequence[Curve],
    looks: Mapping[str, tuple[str, str]],
    tables: Mapping[str, dict],
    titles: Mapping[str, str],
    path: Path,
) -> None:
    """Write a PNG with a panel for each table: mean over seeds, a band of one standard deviation to either side.

    Args:
        curves: of every run.
        looks: what each network is called, and its colour as matplotlib takes it.
        tables: of `standings`; their budgets are marked.
        titles: the words for each axis.
        path: of the PNG.

    Raises:
        ValueError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("battle: the plot needs matplotlib: pip install 'brickwork[report]'") from error

    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (axis, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items()):
        begin, heights = FIRST_SHARE * table["budget"], []
        for network, (label, colour) in looks.items():
            course = _course([curve for curve in curves if curve.network == network], axis)
            if course:
                heights += _draw_course(axes, course, label, colour, begin)
        axes.axvline(table["budget"], color="#8a929a", linewidth=0.9, linestyle=":")
        _scale(axes, begin, heights)
        axes.set_xlabel(titles[axis], fontsize=10)
    first = figure.axes[0]
    first.set_ylabel("paired held-out loss", fontsize=10)
    handles, names = first.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=10, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _scale(axes, begin: float, heights: Sequence[float]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set(xscale="log", yscale="log")
    axes.set_xlim(begin)
    axes.set_ylim(0.99 * min(heights), 1.01 * max(heights))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter("{x:.4g}")
    for line in (axes.xaxis, axes.yaxis):
        line.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ec", linewidth=0.7)


def _course(curves: Sequence[Curve], axis: str) -> list[tuple[float, float, float]]:
    """What was spent, mean loss and spread at every point that lies within all of a network's curves."""
    if not curves or curves[0].price(axis) is None:
        return []
    first, last = max(c.images[0] for c in curves), min(c.images[-1] for c in curves)
    points = sorted({n for curve in curves for n in curve.images if first <= n <= last})
    course = []
    for images in points:
        losses = [curve.loss_at(images) for curve in curves]
        spread = stdev(losses) if len(losses) > 1 else 0.0
        course.append((images * curves[0].price(axis), fmean(losses), spread))
    return course


def _draw_course(axes, course: Sequence[tuple], label: str, colour: str, begin: float) -> list[float]:
    """Draw one network; the heights that its part from `begin` on takes up."""
    spent, means, spreads = zip(*course)
    lows = [mean - spread for mean, spread in zip(means, spreads)]
    highs = [mean + spread for mean, spread in zip(means, spreads)]
    axes.plot(spent, means, color=colour, linewidth=1.6, label=label)
    axes.plot(spent[-1], means[-1], "o", color=colour, markersize=4)
    axes.fill_between(spent, lows, highs, color=colour, alpha=0.18, linewidth=0)
    shown = [i for i, cost in enumerate(spent) if cost >= begin] or [-1]
    return [lows[i] for i in shown] + [highs[i] for i in shown]


def draw_samples(grids: Mapping[str, Path], size: int, path: Path) -> None:
    """Write a sheet with the first rows of several grids of samples below one another.

    Args:
        grids: PNGs by label; a line break starts a second line.
        size: side of the samples.
        path: of the PNG.
    """
    rows = []
    for file in grids.values():
        with Image.open(file) as picture:
            height = min(picture.height, _SHEET_ROWS * (size + GAP) - GAP)
            rows.append([picture.convert("RGB").crop((0, 0, picture.width, height))])
    save_picture(labelled_sheet(rows, list(grids), [""], side=_SHEET_WIDTH), path)
