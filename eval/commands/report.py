"""`brickwork report`: results on one page, with everything a reader needs to judge them by.

The page is one HTML file with its pictures inside; the same pictures lie beside it as PNGs. It shows the metrics of
every result, what they depend on, curves over whatever the results' tags say (training images, sizes, operations),
fixed-seed grids and samples beside their nearest training pictures.
"""

import argparse
import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

from brickwork.eval.report.numbers import number
from brickwork.eval.report.results import compare, differences, read_result, shared_metrics
from brickwork.files import write_file

STYLE = """
:root { --ink: #1c2126; --soft: #5d6873; --line: #d8dde2; --band: #f5f7f8; --accent: #b3431f; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: var(--ink); margin: 0 auto; max-width: 68rem;
       padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p, figcaption { color: var(--soft); max-width: 46rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem 1rem .35rem 0; text-align: left; white-space: nowrap;
         vertical-align: top; }
th { font-weight: 600; } tbody tr:nth-child(odd) { background: var(--band); }
td small { color: var(--soft); display: block; }
.warning { border-left: 4px solid var(--accent); padding: .2rem 1rem; }
figure { margin: 0 0 1.4rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure img { max-width: 100%; }
img.pixels { image-rendering: pixelated; min-width: 16rem; } code { font-size: .85em; }
"""
# Whether more is better, by the beginning of a metric's name; for the arrows beside names.
MORE_IS_BETTER = ("precision", "recall", "density", "coverage", "IS", "CLIP")
COLOURS = ("#b3431f", "#2b6a8f", "#5b7f2b", "#7a4a8f", "#8a6d1b", "#3d4a57")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `brickwork report`."""
    parser.description = (
        "Put results of `brickwork evaluate calc` on one self-contained HTML page, with PNGs beside it."
    )
    parser.epilog = "example:\n  brickwork report result-*.json -o report"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", nargs="+", help="results of `brickwork evaluate calc` (.json)")
    parser.add_argument("-o", "--output", default="report", help="folder for index.html and PNGs (default: report)")
    parser.add_argument("--title", default="Evaluation", help="heading of the page (default: Evaluation)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the report and say where it is."""
    print(write_report(args.results, args.output, args.title))


def write_report(paths: Sequence[str | Path], output: str | Path, title: str = "Evaluation") -> Path:
    """Write a report.

    Args:
        paths: Result files; their pictures are looked for beside them.
        output: Folder for `index.html` and the PNGs. Files of other names in it are left alone.
        title: Heading of the page.

    Returns:
        The path of the page.
    """
    results = [read_result(path) for path in paths]
    if not results:
        raise ValueError("results: got none, need at least one result of `brickwork evaluate calc`")
    folder = Path(output)
    if folder.is_file():
        raise ValueError(f"output: {folder} is a file; need a folder, new or existing")
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _lead(results),
        _metrics_section(results),
        _curves_section(results, folder),
        *(_pictures_section(result, Path(path), i, folder) for i, (result, path) in enumerate(zip(results, paths))),
        _details_section(results),
    ]
    path = folder / "index.html"
    text = html_page(title, sections)
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def html_page(title: str, sections: Sequence[str]) -> str:
    """A whole page of sections that are HTML already; empty ones are left out."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>'
        + "\n".join(section for section in sections if section)
        + "</body></html>\n"
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _lead(results: Sequence[dict]) -> str:
    first, unlike = results[0], differences(results)
    if unlike:
        listed = "".join(f"<li>{html.escape(line)}</li>" for line in unlike)
        return f'<div class="warning"><p>These results cannot be compared; they differ in</p><ul>{listed}</ul></div>'
    count = f"{len(results)} result{'s' if len(results) > 1 else ''}"
    return (
        f"<p>{count} by protocol <b>{html.escape(first['protocol']['name'])}</b>"
        f" ({html.escape(first['protocol']['description'])}) with {html.escape(first['extractor']['name'])}, N ="
        f" {first['count']}, against {first['reference']['count']} pictures of"
        f" <code>{html.escape(str(first['reference']['source']))}</code>.</p>"
    )


def _arrow(metric: str) -> str:
    return f"{html.escape(metric)} {'↑' if metric.startswith(MORE_IS_BETTER) else '↓'}"


def _all_metrics(results: Sequence[dict]) -> list[str]:
    """Names of all metrics, in the order in which they come up."""
    return list(dict.fromkeys(name for result in results for name in result["metrics"]))


def _sets(result: dict) -> str:
    return f"{len(result['sets'])} sets" if len(result["sets"]) > 1 else "1 set"


def _metrics_section(results: Sequence[dict]) -> str:
    names = _all_metrics(results)
    rows = []
    for result in results:
        cells = [f"<b>{html.escape(result['name'])}</b><small>{_sets(result)}, N = {result['count']}</small>"]
        for name in names:
            entry = result["metrics"].get(name)
            if entry is None:
                cells.append("–")
                continue
            over = f"<small>over {entry['spread_over']}</small>" if entry["spread"] is not None else ""
            cells.append(html.escape(number(entry["mean"], entry["spread"])) + over)
        rows.append(cells)
    table = html_table(["result", *map(_arrow, names)], rows)
    return f"<h2>Metrics</h2>{table}{_differences_table(results)}"


def _differences_table(results: Sequence[dict]) -> str:
    if len(results) < 2 or differences(results) or not shared_metrics(results):
        return ""
    comparison = compare(results)
    rows = []
    for i, name in enumerate(comparison["names"][1:], 1):
        entries = [comparison["metrics"][metric][i] for metric in comparison["metrics"]]
        changes = [number(entry["difference"], entry["spread_of_difference"]) for entry in entries]
        signed = [("+" if entry["difference"] >= 0 else "") + text for entry, text in zip(entries, changes)]
        rows.append([f"<b>{html.escape(name)}</b>", *map(html.escape, signed)])
    head = [f"minus {html.escape(comparison['names'][0])}", *map(_arrow, comparison["metrics"])]
    note = "<p>A difference has a spread where both results were measured on sets of several seeds.</p>"
    return f"<h3>Differences</h3>{html_table(head, rows)}{note}"


def _curves_section(results: Sequence[dict], folder: Path) -> str:
    """One figure for each tag that has several numbers, with a small plot for each metric."""
    figures = []
    for tag in dict.fromkeys(tag for result in results for tag in result["tags"]):
        having = [result for result in results if isinstance(result["tags"].get(tag), int | float)]
        if len({result["tags"][tag] for result in having}) < 2:
            continue
        path = folder / f"curves-{_file_part(tag)}.png"
        write_file(path, lambda temporary, tag=tag, having=having: _draw_curves(temporary, tag, having))
        figures.append(html_figure(path, f"Metrics over {tag}; bars show the spread.", pixels=False))
    if not figures:
        return ""
    note = ""
    if differences(results):
        note = '<p class="warning">Points of results that cannot be compared stand side by side here.</p>'
    return "<h2>Curves</h2>" + note + "".join(figures)


def _draw_curves(path: Path, tag: str, results: Sequence[dict]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, MaxNLocator
    except ModuleNotFoundError as error:
        raise ValueError("report: curves need matplotlib: pip install 'brickwork[report]'") from error

    names = _all_metrics(results)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    series = dict.fromkeys(_series(result) for result in results)
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        for colour, one in zip(COLOURS * len(series), series):
            points = sorted(
                (r["tags"][tag], r["metrics"][name]["mean"], r["metrics"][name]["spread"] or 0.0)
                for r in results
                if _series(r) == one and name in r["metrics"]
            )
            if points:
                x, y, spread = zip(*points)
                axes.errorbar(x, y, spread, marker="o", markersize=4, capsize=3, color=colour, label=one or None)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel(tag, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png", dpi=130)


def _series(result: dict) -> str:
    """Results with the same words among their tags belong to one curve."""
    return " ".join(str(value) for value in result["tags"].values() if isinstance(value, str))


def _file_part(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def html_figure(path: Path, caption: str, pixels: bool = True) -> str:
    """A PNG with its caption, held in the page itself; `pixels` keeps them sharp where it is enlarged."""
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    kind = ' class="pixels"' if pixels else ""
    return (
        f'<figure><img{kind} src="data:image/png;base64,{encoded}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _pictures_section(result: dict, source: Path, number: int, folder: Path) -> str:
    """Grid and neighbours of one result, copied from beside its file."""
    captions = {
        "grid": "The first samples, in the order of their seeds, none left out.",
        "neighbours": "Samples (top row) and their nearest training pictures by the extractor's features.",
    }
    figures = []
    for kind, caption in captions.items():
        picture = source.parent / result.get("pictures", {}).get(kind, "")
        if not picture.is_file():
            continue
        copy = folder / f"{number:02d}-{_file_part(result['name'])}.{kind}.png"
        write_file(copy, lambda temporary, picture=picture: temporary.write_bytes(picture.read_bytes()))
        figures.append(html_figure(copy, caption))
    if not figures and "memorisation" not in result:
        return ""
    text = _memorisation_text(result["memorisation"]) if "memorisation" in result else ""
    return f'<h2>Pictures of {html.escape(result["name"])}</h2>{text}<div class="figures">{"".join(figures)}</div>'


def _memorisation_text(found: dict) -> str:
    return (
        f"<p><b>{100 * found['copies']:.1f}%</b> of the samples are nearer to a training picture than that picture is"
        f" to any other; the median sample is {found['distance_ratio']:.2f} times as far away from it. A model that"
        " copies is near 100% and 0.</p>"
    )


def _details_section(results: Sequence[dict]) -> str:
    rows = []
    for result in results:
        seeds = ", ".join("–" if seed is None else str(seed) for seed in result["seeds"])
        converted = "; ".join(
            f"{count} {kind}" for entry in result["sets"] for kind, count in entry["converted"].items()
        )
        settings = {name: entry["settings"] for name, entry in result["metrics"].items() if entry["settings"]}
        rows.append(
            [
                f"<b>{html.escape(result['name'])}</b>",
                html.escape(result["protocol"]["name"]),
                f"{html.escape(result['extractor']['name'])}<small>weights"
                f" <code>{result['extractor']['weights_sha256'][:12]}</code></small>",
                f"<code>{result['reference']['identity']}</code>",
                "<br>".join(f"<code>{entry['data_sha256'][:12]}</code>" for entry in result["sets"]),
                html.escape(seeds),
                html.escape(converted) or "none",
                f"<details><summary>show</summary><pre>{html.escape(json.dumps(settings, indent=1))}</pre></details>",
                f"<details><summary>show</summary><pre>{html.escape(json.dumps(result['versions'], indent=1))}</pre>"
                "</details>",
            ]
        )
    head = ["result", "protocol", "extractor", "reference", "samples", "seeds", "converted", "settings", "versions"]
    return f"<h2>What the numbers depend on</h2>{html_table(head, rows)}"
