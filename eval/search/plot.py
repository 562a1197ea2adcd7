"""Quality against cost, drawn: the loss of schedules over their operations and, where measured, another metric."""

from collections.abc import Mapping

from brickwork.eval.report.blocks import Panels, Plot

COLOURS = {"full": "#1c2126", "fast": "#2b6a8f", "only": "#5b7f2b", "searched": "#b3431f", "random": "#8a929a"}
FITTED = ("full", "fast", "searched")  # the axes are made for these; others may be worse by far
TRIED, BEST = "one subnet above a noise level, another below", "best of all for its cost"
SHARE = "operations, share of the full schedule's"


def plot_search(search, scores: Mapping, metric: Mapping | None = None) -> Panels:
    """The picture of a search.

    Args:
        search: a `ScheduleSearch`.
        scores: `ScheduleScore` by name; what a name begins with (`full`, `fast`, `only`, `searched`, `random`) is
            its kind.
        metric: entries of a result by name, `{"name": "KD-…", "values": {schedule: {"mean": …, "spread": …}}}`, for a
            second panel.
    """
    tried, frontier = search.one_break(), search.frontier
    lines = {
        TRIED: ([score.share for score in tried], [score.loss for score in tried]),
        BEST: (frontier.costs / search.full_operations, frontier.losses),
    }
    points = {name: (score.share, score.loss, None) for name, score in scores.items()}
    title = f"paired held-out loss ({search.settings.get('weighting', 'sampler')} weighting)"
    plots = [_plot(title, points, lines, [frontier.losses[0], frontier.losses[-1]])]
    if metric:
        values = metric["values"]
        plots.append(_plot(metric["name"], {n: (scores[n].share, v["mean"], v["spread"]) for n, v in values.items()}))
    return Panels(plots, name="search")


def _plot(title: str, points: Mapping[str, tuple], lines: Mapping[str, tuple] | None = None, further=()) -> Plot:
    """Every schedule as a point; the axis is made for those worth running, and what lies above it stands at its edge.

    Args:
        title: of the panel.
        points: `(share, value, spread)` by name.
        lines: further series.
        further: values that the axis has to show as well.
    """
    kinds = {name: name.split()[0] if name.split()[0] in COLOURS else "searched" for name in points}
    ends = {name: (value - (spread or 0), value + (spread or 0)) for name, (_, value, spread) in points.items()}
    shown = [end for name, pair in ends.items() if kinds[name] in FITTED for end in pair] + list(further)
    low, high = min(shown), max(shown)
    margin = 0.12 * (high - low or 1.0)
    series, bands, marks = dict(lines or {}), {}, {}
    for kind in dict.fromkeys(kinds.values()):
        own = [name for name in points if kinds[name] == kind]
        edge = high + 0.4 * margin
        series[kind] = [points[name][0] for name in own], [min(points[name][1], edge) for name in own]
        bands[kind] = tuple([min(ends[name][side], edge) for name in own] for side in (0, 1))
        for name in own if kind != "random" else ():
            value = points[name][1]
            marks[name if value <= edge else f"{name}: {value:#.3g} ↑"] = points[name][0], min(value, edge)
    limits = low - margin, high + margin
    is_line = {BEST}
    return Plot(
        series, SHARE, bands=bands, marks=marks, points=[n for n in series if n not in is_line], title=title,
        colours={**COLOURS, TRIED: "#c4cbd2", BEST: COLOURS["searched"]}, y_limits=limits,
    )  # fmt: skip
