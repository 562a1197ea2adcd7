"""The benchmark's tables, its marks, and its plot."""

from collections.abc import Sequence

from brickwork.eval.benchmark.networks import OURS, PLAIN
from brickwork.eval.report.blocks import Panels, Plot, Table
from brickwork.eval.report.numbers import between

GIB = 2**30


def _spread(values: dict | None, form: str) -> str:
    return "–" if values is None else between(values["median"], values["lower"], values["upper"], form)


def _gib(entry: dict | None, key: str = "peak") -> str:
    return "–" if entry is None else f"{entry[key] / GIB:.2f}"


def timing_table(rows: Sequence[dict]) -> str:
    """Operations, share of the machine's rate and time against the base of each group, with quartiles."""
    lines = []
    for row in rows:
        seconds = sorted(row["seconds"])[len(row["seconds"]) // 2]
        lines.append(
            (
                f"{row['group']}: {row['case']}",
                f"{row['operations'] / 1e9:.4g}",
                f"{seconds:.3g}",
                _spread(row["fraction_of_machine"], ".0%"),
                _spread(row.get("ratio"), ".2f"),
                _spread(row.get("ratio_per_operation"), ".2f"),
            )
        )
    return Table(
        ("", "GFLOP", "CPU s", "of the machine's rate", "time, to the first's", "per operation"), lines
    ).text()


def memory_table(rows: Sequence[dict]) -> str:
    """Peak memory of training steps."""
    lines = [
        (
            row["name"] if row["case"] == OURS else f"{row['name']}: {row['case']}",
            f"{row['batch']} × {row['size']} px",
            _gib(row["derived"], "weights"),
            _gib(row["derived"]),
            _gib(row["measured"]),
        )
        for row in rows
    ]
    return Table(
        ("training step with AdamW, GiB", "images", "weights", "peak, tensors", "peak, process"), lines
    ).text()


def suite_text(name: str, suite: dict) -> str:
    """A suite's result as text."""
    parts = [f"== {name}"]
    if "rows" in suite:
        parts.append(timing_table(suite["rows"]))
    if "memory" in suite:
        parts.append(memory_table(suite["memory"]))
    if "exponents" in suite:
        lines = [(block, _spread(value, ".3f")) for block, value in suite["exponents"].items()]
        parts.append(Table(("time ~ pixels to the power of", "exponent"), lines).text())
    if suite.get("losses"):
        lines = [
            (title, f"{score['share']:.1%}", f"{score['loss']:.4f}", f"{score['change']:+.1%} ± {score['error']:.1%}")
            for title, score in suite["losses"].items()
        ]
        parts.append(Table(("schedule", "operations", "paired loss", "against full"), lines).text())
    if "shares" in suite:
        kinds = list(next(iter(suite["shares"].values())))
        lines = [(title, *(f"{shares[kind]:.1%}" for kind in kinds)) for title, shares in suite["shares"].items()]
        parts.append(Table(("share of the time", *kinds), lines).text())
        sampler = suite["sampler"]
        outside = 1 - sampler["seconds_in_network"] / sampler["seconds"]
        parts.append(
            f"sampler, batch 1: {outside:.1%} of its time outside the network's {sampler['evaluations']} runs"
        )
    return "\n\n".join(parts)


def marks(suites: dict[str, dict]) -> list[dict]:
    """The marks that a result can be held to: `what`, `wanted`, `measured`, `met`."""
    found = []

    def mark(what: str, wanted: str, measured: float, met: bool) -> None:
        found.append({"what": what, "wanted": wanted, "measured": measured, "met": bool(met)})

    for suite in suites.values():
        if suite["kind"] == "network" and any(row["case"] == PLAIN for row in suite["rows"]):
            _network_marks(suite, mark)
        elif suite["kind"] == "schedules":
            shares = {row["case"]: row["operations"] for row in suite["rows"]}
            for title, most in (("fast 0.5", 0.75), ("fast 0.65", 0.75), ("searched", 0.6)):
                if title in shares:
                    share = shares[title] / shares["full"]
                    mark(f"{suite['name']}: operations, {title} to full", f"≤ {most}", share, share <= most + 5e-4)
        elif suite["kind"] == "blocks":
            row = next(row for row in suite["rows"] if row["case"] == "d-emo-s-2")
            ratio = row["ratio_per_operation"]["median"]
            mark("D-EMO-S to DiT-S: time per operation", "≤ 1.3", ratio, ratio <= 1.3)
        elif suite["kind"] == "scaling":
            for block, exponent in suite["exponents"].items():
                value = exponent["median"]
                mark(f"{block} with windows: exponent of time in pixels", "about 1", value, abs(value - 1) <= 0.1)
    return found


def _network_marks(suite: dict, mark) -> None:
    rows = {(row["group"], row["case"]): row for row in suite["rows"]}
    forward = rows["forward", OURS]["fraction_of_machine"]["median"]
    mark(f"{suite['name']}: forward, share of the machine's rate", "≥ 0.82", forward, forward >= 0.82)
    for group, least in (("forward", 1.1), ("training step", 1.05)):
        plain = rows.get((group, PLAIN))
        if plain is not None:
            ratio = plain["ratio"]["median"]
            mark(
                f"{suite['name']}: {group}, times as fast as the plain reference", f"≥ {least}", ratio, ratio >= least
            )
    half = rows.get(("forward", "ours, bfloat16"))
    if half is not None:
        ratio = 1 / half["ratio"]["median"]
        mark(f"{suite['name']}: forward in bfloat16, times as fast as in float32", "> 1", ratio, ratio > 1)
    memory = {row["case"]: row for row in suite["memory"]}
    for way in ("derived", "measured"):
        if PLAIN in memory and memory[OURS][way] is not None and memory[PLAIN][way] is not None:
            ratio = memory[OURS][way]["peak"] / memory[PLAIN][way]["peak"]
            words = "of tensors" if way == "derived" else "of the process"
            mark(
                f"{suite['name']}: peak training memory {words}, to the plain reference's",
                "≤ 0.7",
                ratio,
                ratio <= 0.7,
            )


def marks_table(found: Sequence[dict]) -> str:
    """The marks as text."""
    lines = [
        (entry["what"], entry["wanted"], f"{entry['measured']:.3f}", "met" if entry["met"] else "MISSED")
        for entry in found
    ]
    return Table(("mark", "wanted", "measured", ""), lines).text()


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
