"""The benchmark's tables, its marks, and its plot."""

from collections.abc import Sequence

from brickwork.eval.benchmark.networks import OURS
from brickwork.eval.report.blocks import Panels, Plot, Table
from brickwork.eval.report.numbers import spread
from brickwork.eval.studies.core import table_of


def timing_table(rows: Sequence[dict]) -> str:
    """Operations, share of the machine's rate and time against the base of each group, with quartiles."""
    columns = {
        "": lambda row: f"{row['group']}: {row['case']}",
        "GFLOP": lambda row: f"{row['operations'] / 1e9:.4g}",
        "CPU s": lambda row: f"{sorted(row['seconds'])[len(row['seconds']) // 2]:.3g}",
        "of the machine's rate": lambda row: spread(row["fraction_of_machine"], ".0%"),
        "time, to the first's": lambda row: spread(row.get("ratio"), ".2f"),
        "per operation": lambda row: spread(row.get("ratio_per_operation"), ".2f"),
    }
    return table_of(rows, columns).text()


def memory_table(rows: Sequence[dict]) -> str:
    """Peak memory of training steps."""

    def gib(entry: dict | None, key: str = "peak") -> str:
        return "–" if entry is None else f"{entry[key] / 2**30:.2f}"

    columns = {
        "training step with AdamW, GiB": lambda row: row["name"] + ("" if row["case"] == OURS else f": {row['case']}"),
        "images": lambda row: f"{row['batch']} × {row['size']} px",
        "weights": lambda row: gib(row["derived"], "weights"),
        "peak, tensors": lambda row: gib(row["derived"]),
        "peak, process": lambda row: gib(row["measured"]),
    }
    return table_of(rows, columns).text()


def suite_text(name: str, suite: dict) -> str:
    """A suite's result as text."""
    parts = [f"== {name}"]
    if "rows" in suite:
        parts.append(timing_table(suite["rows"]))
    if "memory" in suite:
        parts.append(memory_table(suite["memory"]))
    for table in suite.get("tables", ()):
        parts += [Table(table["columns"], table["rows"]).text(), *filter(None, [table.get("note")])]
    return "\n\n".join(parts)


def marks(suites: dict[str, dict]) -> list[dict]:
    """The marks that results can be held to: `what`, `wanted`, `measured`, `met`."""
    return [entry for suite in suites.values() for entry in suite.get("marks", ())]


def marks_table(found: Sequence[dict]) -> str:
    """The marks as text."""
    columns = {
        "mark": lambda entry: entry["what"],
        "wanted": lambda entry: entry["wanted"],
        "measured": lambda entry: f"{entry['measured']:.3f}",
        "": lambda entry: "met" if entry["met"] else "MISSED",
    }
    return table_of(found, columns).text()


def plot(suites: dict[str, dict]) -> Panels | None:
    """One panel for each suite that has times; `None` if none has."""
    panels = [
        _scaling(name, suite) if suite["kind"] == "scaling" else _ratios(name, suite["rows"])
        for name, suite in suites.items()
        if suite.get("rows")
    ]
    return Panels(panels, columns=1, name="benchmark") if panels else None


def _ratios(title: str, rows: Sequence[dict]) -> Plot:
    series: dict[str, tuple[list, list]] = {}
    bands: dict[str, tuple[list, list]] = {}
    for row in rows:
        ratio, group = row.get("ratio") or row["fraction_of_machine"], row["group"]
        values, names = series.setdefault(group, ([], []))
        lows, highs = bands.setdefault(group, ([], []))
        values.append(ratio["median"])
        names.append(f"{group}: {row['case']} ({row['fraction_of_machine']['median']:.0%} of the machine's rate)")
        lows.append(ratio["lower"])
        highs.append(ratio["upper"])
    label = "time, to the first of its group (quartiles)"
    return Plot(series, label, bands=bands, marks={"": 1}, points=True, title=title)


def _scaling(title: str, suite: dict) -> Plot:
    series = {}
    for block, exponent in suite["exponents"].items():
        rows = [row for row in suite["rows"] if row["group"] == block]
        medians = [sorted(row["seconds"])[len(row["seconds"]) // 2] for row in rows]
        pixels = [side**2 for side in suite["sides"]]
        series[f"{block}: pixels to the power of {exponent['median']:.2f}"] = pixels, medians
    return Plot(series, "pixels", "CPU seconds", log_x=True, log_y=True, title=title)
