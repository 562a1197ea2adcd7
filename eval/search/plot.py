"""Quality against cost, drawn: the loss of schedules over their operations and, where measured, another metric."""

from collections.abc import Mapping
from pathlib import Path

from brickwork.files import write_file

COLOURS = {"full": "#1c2126", "fast": "#2b6a8f", "only": "#5b7f2b", "searched": "#b3431f", "random": "#8a929a"}
FITTED = ("full", "fast", "searched")  # the axes are made for these; others may be worse by far
MARKERS = {"full": "s", "fast": "o", "only": "^", "searched": "D", "random": "x"}


def draw_search(search, path: Path, scores: Mapping, metric: Mapping | None = None) -> None:
    """Write the PNG of a search.

    Args:
        search: a `ScheduleSearch`.
        path: of the PNG.
        scores: `ScheduleScore` by name; what a name begins with (`full`, `fast`, `only`, `searched`, `random`) is
            its kind.
        metric: entries of a result by name, `{"name": "KD-…", "values": {schedule: {"mean": …, "spread": …}}}`, for a
            second panel.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("search: the plot needs matplotlib: pip install 'brickwork[report]'") from error

    panels = 2 if metric else 1
    figure = Figure(figsize=(5.4 * panels, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, panels, 1)
    _draw_frontier(axes, search)
    points = {name: (score.share, score.loss, None) for name, score in scores.items()}
    _draw_points(axes, points, [search.frontier.losses[0], search.frontier.losses[-1]])
    _label(axes, f"paired held-out loss ({search.settings.get('weighting', 'sampler')} weighting)")
    axes.legend(fontsize=7.5, frameon=False, loc="upper right")
    if metric:
        axes = figure.add_subplot(1, panels, 2)
        values = metric["values"]
        _draw_points(axes, {n: (scores[n].share, v["mean"], v["spread"]) for n, v in values.items()}, [])
        _label(axes, metric["name"])
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def _draw_frontier(axes, search) -> None:
    """Every one-break schedule as a dot, and the best loss for every cost as a line."""
    tried = search.one_break()
    axes.plot([s.share for s in tried], [s.loss for s in tried], ".", color="#c4cbd2", markersize=3, zorder=1)
    axes.lines[-1].set_label("one set above a noise level, another below")
    shares = search.frontier.costs / search.full_operations
    axes.plot(shares, search.frontier.losses, color=COLOURS["searched"], linewidth=1.2, zorder=2)
    axes.lines[-1].set_label("best of all for its cost")


def _draw_points(axes, points: Mapping[str, tuple[float, float, float | None]], further: list[float]) -> None:
    """Draw every schedule; the axis is made for those worth running, and what lies above it stands at its edge.

    Args:
        axes: of a panel.
        points: `(share, value, spread)` by name.
        further: values that the axis has to show as well.
    """
    kinds = {name: name.split()[0] if name.split()[0] in COLOURS else "searched" for name in points}
    ends = [(value - (spread or 0), value + (spread or 0)) for _, value, spread in points.values()]
    shown = [end for kind, pair in zip(kinds.values(), ends) if kind in FITTED for end in pair] + further
    low, high = min(shown), max(shown)
    margin = 0.12 * (high - low or 1.0)
    axes.set_ylim(low - margin, high + margin)
    for name, (share, value, spread) in points.items():
        kind, place, side, title = kinds[name], (0, -12) if kinds[name] == "searched" else (0, 6), "center", name
        if value > high + margin:
            place, side, title = (6, -3), "left", f"{name}: {value:#.3g} ↑"
            value, spread = high + 0.9 * margin, None
        axes.errorbar(share, value, spread, fmt=MARKERS[kind], color=COLOURS[kind], markersize=5, capsize=2, zorder=3)
        if kind != "random":  # what was found is named below, since it lies below what it stands beside
            axes.annotate(title, (share, value), textcoords="offset points", xytext=place, fontsize=7, ha=side)


def _label(axes, title: str) -> None:
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set_xlabel("operations, share of the full schedule's", fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.margins(x=0.1)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
