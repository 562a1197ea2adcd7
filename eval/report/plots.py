"""Plots drawn by matplotlib, in one style."""

import io
import math
from collections.abc import Sequence
from typing import Any

# Of series, in turn.
COLOURS = (
    "#b3431f", "#2b6a8f", "#5b7f2b", "#7a4a8f", "#8a6d1b", "#3d4a57", "#c06c9c", "#1f8a7d", "#9a9a2a", "#555555",
)  # fmt: skip
PANEL = 4.2, 2.8  # inches
DPI = 110
MARKERS_UP_TO = 30  # points of a line that has markers


class NoMatplotlib(ValueError):
    """There is no matplotlib to draw with."""


def draw(plots: Sequence[Any], columns: int = 3) -> bytes:
    """Draw `blocks.Plot`s side by side.

    Args:
        plots: at least one.
        columns: in a row.

    Returns:
        The bytes of a PNG.

    Raises:
        NoMatplotlib: naming the extra.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise NoMatplotlib("Plots need matplotlib: pip install 'brickwork[report]'.") from error
    columns = min(columns, len(plots))
    rows = -(-len(plots) // columns)
    wide = {1: 1.6, 2: 1.2}.get(columns, 1.0)
    heights = [max(_height(plot) for plot in plots[row * columns : (row + 1) * columns]) for row in range(rows)]
    figure = Figure(figsize=(PANEL[0] * columns * wide, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, height_ratios=heights).flat)
    for axes, plot in zip(panels, plots):
        _draw(axes, plot)
    for axes in panels[len(plots) :]:
        axes.remove()
    _legends(figure, plots)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


def _height(plot: Any) -> float:
    """Inches: more where the rows of a plot are words."""
    words = {y for _, ys in plot.series.values() for y in ys if isinstance(y, str)}
    return max(PANEL[1], 1.0 + 0.22 * len(words))


def _draw(axes, plot: Any) -> None:
    for number, (name, (xs, ys)) in enumerate(plot.series.items()):
        colour = (plot.colours or {}).get(name, COLOURS[number % len(COLOURS)])
        band = (plot.bands or {}).get(name)
        is_line = plot.points is not True and name not in (plot.points or ())
        _draw_series(axes, name, xs, ys, band, colour, is_line)
    for words, mark in (plot.marks or {}).items():
        _draw_mark(axes, words, mark)
    _scale(axes, plot)
    axes.set_xlabel(plot.x_label, fontsize=9)
    axes.set_ylabel(plot.y_label, fontsize=9)
    axes.set_title(plot.title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e9ec", linewidth=0.7)
    axes.set_axisbelow(True)


def _can_draw(value: Any) -> bool:
    return isinstance(value, str) or (value is not None and math.isfinite(value))


def _draw_series(axes, name: str, xs: Sequence, ys: Sequence, band: Any, colour: str, is_line: bool) -> None:
    kept = [i for i in range(len(xs)) if all(_can_draw(value) for value in (xs[i], ys[i]))]
    if not kept:
        return
    xs, ys = [xs[i] for i in kept], [ys[i] for i in kept]
    if not is_line or len(xs) <= MARKERS_UP_TO:
        axes.plot(xs, ys, "o", color=colour, markersize=4)
    if is_line:
        axes.plot(xs, ys, color=colour, linewidth=1.5, label=name)
    else:
        axes.lines[-1].set_label(name)
    if band is None:
        return
    lows, highs = ([side[i] for i in kept] for side in band)
    along_x = isinstance(ys[0], str)
    if is_line and len(xs) > 1 and not along_x:
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
        return
    middles = xs if along_x else ys
    ends = [[m - low for m, low in zip(middles, lows)], [high - m for m, high in zip(middles, highs)]]
    bars = {"xerr": ends} if along_x else {"yerr": ends}
    axes.errorbar(xs, ys, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, **bars)


def _draw_mark(axes, words: str, mark: Any) -> None:
    x, y = mark if isinstance(mark, Sequence) else (mark, None)
    line = {"color": "#8a929a", "linewidth": 0.9, "linestyle": ":", "zorder": 0}
    if y is None:
        axes.axvline(x, **line)
        axes.annotate(words, (x, 1), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, ha="right", va="top")
    elif x is None:
        axes.axhline(y, **line)
        axes.annotate(words, (1, y), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
    else:
        axes.annotate(words, (x, y), xytext=(0, 6), textcoords="offset points", fontsize=7, ha="center")


def _scale(axes, plot: Any) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    large = EngFormatter(sep="")  # 20k, 1.5M
    columns = [values for series in plot.series.values() for values in zip(("x", "y"), series)]
    words = {axis for axis, values in columns for value in values if isinstance(value, str)}
    for name, log, axis in (("x", plot.log_x, axes.xaxis), ("y", plot.log_y, axes.yaxis)):
        if name in words:
            axis.set_inverted(name == "y")  # the first row on top
            continue
        if log:
            axes.set(**{f"{name}scale": "log"})
            low, high = getattr(axes, f"get_{name}lim")()
            # Less than a decade has round numbers as ticks, like a linear axis; much more has powers of ten.
            subs = (1, 2, 5) if high < 300 * low else (1,)
            axis.set_major_locator(LogLocator(subs=subs) if high > 10 * low else MaxNLocator(6))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(lambda value, _: large(value) if abs(value) >= 1000 else f"{value:.4g}")
    axes.set(xlim=plot.x_limits, ylim=plot.y_limits)


def _legends(figure, plots: Sequence[Any]) -> None:
    """One legend below where all plots have the same series, one in each otherwise; none for a single series."""
    names = [list(plot.series) for plot in plots]
    if len(plots) > 1 and all(own == names[0] for own in names):
        if len(names[0]) > 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            columns = min(4, len(labels) or 1)
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        return
    for axes, own in zip(figure.axes, names):
        if len(own) > 1:
            axes.legend(fontsize=7.5, frameon=False)
