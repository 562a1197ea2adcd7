"""The page is one HTML file with its pictures inside; the same pictures lie beside it as PNGs. It shows the metrics of
every result, what they depend on, curves over whatever the results' tags say (training images, sizes, operations),
fixed-seed grids and samples beside their nearest training pictures.

Put results of `brickwork evaluate calc` on one self-contained HTML page, with PNGs beside it.

example:
  brickwork report result-*.json -o report
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from brickwork import options
from brickwork.errors import explained
from brickwork.eval.report.blocks import Block, Code, Panels, Picture, Plot, Report, Table, Text, literal
from brickwork.eval.report.numbers import number
from brickwork.eval.report.results import compare, differences, picture_beside, read_result, shared_metrics
from brickwork.files import new_folder

CAPTIONS = {
    "grid": "The first samples, in the order of their seeds, none left out.",
    "neighbours": "Samples (top row) and their nearest training pictures by the extractor's features.",
}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `brickwork report`."""
    parser.add_argument("results", nargs="+", help="results of `brickwork evaluate calc` (.json)")
    parser.add_argument("-o", "--output", default="report", help="folder for index.html and PNGs (default: report)")
    parser.add_argument("--title", default="Evaluation", help="heading of the page (default: Evaluation)")
    options.add_common(parser, "--overwrite")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the report and say where it is."""
    print(write_report(args.results, args.output, args.title, args.overwrite))


def write_report(
    paths: Sequence[str | Path], output: str | Path, title: str = "Evaluation", overwrite: bool = False
) -> Path:
    """Write a report.

    Args:
        paths: Result files; their pictures are looked for beside them.
        output: Folder for `index.html`, Markdown, JSON and PNGs.
        title: Heading of the page.
        overwrite: Replace an earlier report there; other files in the folder are left alone.

    Returns:
        The path of the page.
    """
    report = make_report(paths, title)
    with new_folder(output, "brickwork report", overwrite=overwrite) as folder:
        report.write(folder)
    return Path(output) / "index.html"


def make_report(paths: Sequence[str | Path], title: str = "Evaluation") -> Report:
    """The report, not yet written; see `write_report`.

    Raises:
        ValueError: for a result that cannot be read or is damaged, naming file and key.
    """
    results = [read_result(path) for path in paths]
    if not results:
        raise ValueError("results: got none, need at least one result of `brickwork evaluate calc`")
    blocks = [_lead(results), *_metrics_blocks(results), *_curves_blocks(results)]
    for i, (result, path) in enumerate(zip(results, paths)):
        blocks += _pictures_blocks(result, path, i)
    return Report(title, [*blocks, *_details_blocks(results)])


def _lead(results: Sequence[dict]) -> Text:
    first, unlike = results[0], differences(results)
    if unlike:
        listed = "\n".join(f"- {literal(line)}" for line in unlike)
        return Text(f"These results cannot be compared; they differ in\n\n{listed}", warning=True)
    count = f"{len(results)} result{'s' if len(results) > 1 else ''}"
    protocol, reference = first["protocol"], first["reference"]
    return Text(
        f"{count} by protocol **{literal(protocol['name'])}** ({literal(protocol.get('description', ''))}) with"
        f" {literal(first['extractor']['name'])}, N = {first['count']}, against {reference['count']} pictures of"
        f" {literal(reference['source'])}."
    )


def _arrow(metric: str) -> str:
    from brickwork.eval.metrics.registry import is_higher_better  # a second of imports, which --help can do without

    return metric + {True: " ↑", False: " ↓", None: ""}[is_higher_better(metric)]


def _all_metrics(results: Sequence[dict]) -> list[str]:
    """Names of all metrics, in the order in which they come up."""
    return list(dict.fromkeys(name for result in results for name in result["metrics"]))


def _metrics_blocks(results: Sequence[dict]) -> list[Block]:
    names, rows = _all_metrics(results), []
    for result in results:
        sets = f"{len(result['sets'])} set{'s' if len(result['sets']) > 1 else ''}"
        cells = [f"{result['name']}\n{sets}, N = {result['count']}"]
        for name in names:
            entry = result["metrics"].get(name, {"mean": None, "spread": None})
            over = f"\nover {entry['spread_over']}" if entry["spread"] is not None else ""
            cells.append(number(entry["mean"], entry["spread"]) + over)
        rows.append(cells)
    return [Text("## Metrics"), Table(["result", *map(_arrow, names)], rows), *_differences_blocks(results)]


def _differences_blocks(results: Sequence[dict]) -> list[Block]:
    if len(results) < 2 or differences(results) or not shared_metrics(results):
        return []
    comparison = compare(results)
    rows = []
    for i, name in enumerate(comparison["names"][1:], 1):
        entries = [comparison["metrics"][metric][i] for metric in comparison["metrics"]]
        rows.append([name, *(number(e["difference"], e["spread_of_difference"], signed=True) for e in entries)])
    head = [f"minus {comparison['names'][0]}", *map(_arrow, comparison["metrics"])]
    note = "A difference has a spread where both results were measured on sets of several seeds."
    return [Text("### Differences"), Table(head, rows, note)]


def _curves_blocks(results: Sequence[dict]) -> list[Block]:
    """One picture for each tag that has several numbers, with a small plot for each metric."""
    blocks: list[Block] = []
    for tag in dict.fromkeys(tag for result in results for tag in result["tags"]):
        having = [result for result in results if isinstance(result["tags"].get(tag), int | float)]
        if len({result["tags"][tag] for result in having}) < 2:
            continue
        plots = [_curve(metric, tag, having) for metric in _all_metrics(having)]
        blocks.append(Panels(plots, 3, f"Metrics over {tag}; bands show the spread.", f"curves-{_file_part(tag)}"))
    if not blocks:
        return []
    note = Text("Points of results that cannot be compared stand side by side here.", warning=True)
    return [Text("## Curves"), *([note] if differences(results) else []), *blocks]


def _curve(metric: str, tag: str, results: Sequence[dict]) -> Plot:
    series, bands = {}, {}
    for name in dict.fromkeys(map(_series, results)):
        points = sorted(
            (r["tags"][tag], r["metrics"][metric]["mean"], r["metrics"][metric]["spread"] or 0.0)
            for r in results
            if _series(r) == name and metric in r["metrics"]
        )
        if points:
            x, y, spread = zip(*points)
            series[name] = x, y
            bands[name] = [value - s for value, s in zip(y, spread)], [value + s for value, s in zip(y, spread)]
    return Plot(series, tag, bands=bands, title=_arrow(metric))


def _series(result: dict) -> str:
    """Results with the same words among their tags belong to one curve."""
    return " ".join(str(value) for value in result["tags"].values() if isinstance(value, str))


def _file_part(text: str) -> str:
    return re.sub(r"[^\w]", "-", text)[:60]


def _pictures_blocks(result: dict, source: str | Path, number: int) -> list[Block]:
    """Grid and neighbours of one result, from beside its file."""
    blocks: list[Block] = []
    if (found := result.get("memorisation")) is not None:
        nearer = (
            f"**{100 * found['copies']:.1f}%** of the samples are nearer to a training picture than that picture is"
        )
        ratio = f"the median sample is {found['distance_ratio']:.2f} times as far away from it"
        blocks.append(Text(f"{nearer} to any other; {ratio}. A model that copies is near 100% and 0."))
    for kind, caption in CAPTIONS.items():
        name = result.get("pictures", {}).get(kind)
        path = None if name is None else picture_beside(source, name)
        if path is not None:
            blocks.append(Picture(_open(path), caption, f"{number:02d}-{_file_part(result['name'])}.{kind}"))
    return [Text(f"## Pictures of {literal(result['name'])}"), *blocks] if blocks else []


def _open(path: Path) -> Image.Image:
    from brickwork.eval.sets.decode import BrokenPicture, open_upright, to_rgb  # half a second of imports beside it

    with explained(f"result: the picture {str(path)!r} cannot be read", BrokenPicture):
        return to_rgb(open_upright(path))


def _details_blocks(results: Sequence[dict]) -> list[Block]:
    rows, codes = [], []
    for result in results:
        converted = [f"{count} {kind}" for entry in result["sets"] for kind, count in entry["converted"].items()]
        extractor = f"{result['extractor']['name']}\nweights {result['extractor']['weights_sha256'][:12]}"
        samples = "\n".join(entry["data_sha256"][:12] for entry in result["sets"])
        seeds = ", ".join("–" if seed is None else str(seed) for seed in result["seeds"])
        names = result["name"], result["protocol"]["name"], extractor, result["reference"]["identity"]
        rows.append([*names, samples, seeds, "; ".join(converted) or "none"])
        settings = {name: entry["settings"] for name, entry in result["metrics"].items() if entry["settings"]}
        told = {"settings": settings, "versions": result["versions"]}
        codes.append(Code(json.dumps(told, indent=1), f"Settings and versions of {result['name']}"))
    head = ["result", "protocol", "extractor", "reference", "samples", "seeds", "converted"]
    return [Text("## What the numbers depend on"), Table(head, rows), *codes]
