"""Results as JSON: writing, reading, and putting two or more side by side."""

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from brickwork.errors import explained, shown
from brickwork.eval.report.blocks import Table
from brickwork.eval.report.numbers import number
from brickwork.files import read_json

RESULT_FORMAT = "brickwork-evaluation/1"
GENERATION_FILE = "generation.json"


@dataclass(frozen=True)
class Score:
    """What a metric measured of one set.

    Attributes:
        value: The number.
        spread: Its spread inside the set, if it has one.
        spread_over: What that is over, such as `100 subsets`.
        settings: What the number depends on, and may not be compared without.
        details: Further keys of its entry.
    """

    value: float
    spread: float | None = None
    spread_over: str | None = None
    settings: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)


def metric_entry(scores: Sequence[Score]) -> dict:
    """One metric of a result: mean and spread, over the sets if there are several, else inside the one."""
    values, first = [score.value for score in scores], scores[0]
    spread, over = first.spread, first.spread_over if first.spread is not None else None
    if len(values) > 1:
        spread, over = statistics.stdev(values), f"{len(values)} sets"
    entry = {"mean": statistics.fmean(values), "spread": spread, "spread_over": over, "values": values}
    return entry | {"settings": first.settings} | first.details


def generation_file(samples: str | Path) -> Path:
    """Where the settings of a sampled set are: inside a folder, beside a file."""
    path = Path(samples)
    if path.suffix == ".npz":
        return path.with_suffix("." + GENERATION_FILE)
    return path / GENERATION_FILE


def generation_of(samples: str | Path) -> dict | None:
    """How a set was sampled, if `brickwork evaluate gen` made it."""
    path = generation_file(samples)
    if not path.is_file():
        return None
    record = read_json(path, "record of `brickwork evaluate gen`")
    if not isinstance(record.get("call", {}), dict):
        raise ValueError(f"{str(path)!r} is damaged: `call` is {shown(record['call'])}; sample the set anew.")
    return record


class _Part(BaseModel):
    """What is read of a result; other keys are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True)


def _part(**fields: Any) -> type[_Part]:
    """A part with these fields, `name=type` where there must be one, `name=(type, default)` else."""
    kinds = {name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in fields.items()}
    return create_model("Part", __base__=_Part, **kinds)


class _Result(_Part):
    name: str
    tags: dict[str, str | float | None]
    protocol: _part(name=str, description=(str, ""))
    extractor: _part(name=str, weights_sha256=str)
    preparation: dict[str, Any]
    count: int
    seeds: list[int | None]
    reference: _part(identity=str, count=int, source=str)
    sets: Annotated[list[_part(data_sha256=str, converted=dict[str, int])], Field(min_length=1)]
    metrics: dict[str, _part(mean=float, spread=float | None, spread_over=str | None, settings=dict[str, Any])]
    versions: dict[str, Any]
    memorisation: _part(copies=float, distance_ratio=float) | None = None
    pictures: dict[str, str] = Field(default_factory=dict)


def read_result(path: str | Path) -> dict:
    """A result that `brickwork evaluate calc` wrote.

    Raises:
        ValueError: naming the file and, where it is damaged, the key.
    """
    what = "result of `brickwork evaluate calc`"
    with explained(f"result: {path} cannot be read", OSError):
        result = read_json(path, what)
    if result.get("format") != RESULT_FORMAT:
        raise ValueError(f"result: {path} is no {what} (format {RESULT_FORMAT})")
    try:
        return _Result.model_validate(result).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"result: {path} is damaged: `{key[:80]}` is {shown(first['input'])}: {first['msg']}; measure anew."
        ) from None


def picture_beside(result_file: str | Path, name: str) -> Path | None:
    """The picture of a result, which lies in the folder of its file; `None` if it is not there.

    Raises:
        ValueError: for a name that leads elsewhere.
    """
    path = Path(result_file).parent / name
    if len(name.encode()) > 255 or not re.fullmatch(r"[^/\\\0]+", name) or name in (".", "..") or path.is_symlink():
        raise ValueError(f"result: {result_file} names the picture {name[:80]!r}; only files beside it are read.")
    return path if path.is_file() else None


def differences(results: Sequence[dict]) -> list[str]:
    """What keeps results from being compared, one line each; none if their numbers mean the same."""
    aspects = {
        "protocol": lambda r: r["protocol"]["name"],
        "extractor": lambda r: f"{r['extractor']['name']} ({r['extractor']['weights_sha256'][:8]})",
        "N": lambda r: r["count"],
        "reference": lambda r: r["reference"]["identity"],
        "preparation of samples": lambda r: json.dumps(r["preparation"], sort_keys=True),
    }
    found = []
    for aspect, value_of in aspects.items():
        values = [value_of(result) for result in results]
        if len(set(values)) > 1:
            found.append(f"{aspect}: " + ", ".join(f"{r['name']} {value}" for r, value in zip(results, values)))
    for metric in shared_metrics(results):
        settings = [json.dumps(r["metrics"][metric]["settings"], sort_keys=True) for r in results]
        if len(set(settings)) > 1:
            found.append(f"settings of {metric}: " + ", ".join(settings))
    return found


def shared_metrics(results: Sequence[dict]) -> list[str]:
    """Metrics that all results have, in the order of the first."""
    return [name for name in results[0]["metrics"] if all(name in result["metrics"] for result in results)]


def compare(results: Sequence[dict], force: bool = False) -> dict:
    """Put results side by side.

    Args:
        results: Two or more; the first is what the others are compared with.
        force: Compare what must not be compared; the reasons against it are then part of the answer.

    Returns:
        `names`, `not_comparable` (reasons, empty unless forced) and `metrics`: for each, a list with `mean` and
        `spread` of every result, the `difference` to the first and its `spread_of_difference` where both spreads are
        over sets of different seeds.
    """
    if len(results) < 2:
        raise ValueError(f"results: got {len(results)}, need at least two to compare")
    reasons = differences(results)
    if reasons and not force:
        raise ValueError(
            "results: these numbers cannot be compared, they differ in "
            + "; ".join(reasons)
            + "; measure them alike, or pass --force to see them side by side all the same"
        )
    if not shared_metrics(results):
        raise ValueError("results: they have no metric in common; measure them with the same --metrics")
    metrics = {
        name: [_compared(r["metrics"][name], results[0]["metrics"][name]) for r in results]
        for name in shared_metrics(results)
    }
    return {"names": [result["name"] for result in results], "not_comparable": reasons, "metrics": metrics}


def _compared(value: dict, first: dict) -> dict:
    seeds = [entry["spread"] is not None and str(entry["spread_over"]).endswith("sets") for entry in (value, first)]
    spread = math.hypot(value["spread"], first["spread"]) if all(seeds) and value is not first else None
    kept = {key: value[key] for key in ("mean", "spread", "spread_over")}
    return kept | {"difference": value["mean"] - first["mean"], "spread_of_difference": spread}


def comparison_table(comparison: dict) -> str:
    """A comparison as text: a row for each metric, a column for each result, differences to the first in brackets."""
    rows = []
    for name, entries in comparison["metrics"].items():
        cells = [number(entry["mean"], entry["spread"]) for entry in entries]
        changes = [number(entry["difference"], entry["spread_of_difference"], signed=True) for entry in entries]
        rows.append([name, cells[0], *(f"{cell} ({change})" for cell, change in zip(cells[1:], changes[1:]))])
    warnings = [f"NOT COMPARABLE: {reason}" for reason in comparison["not_comparable"]]
    return "\n".join([*warnings, Table(["metric", *comparison["names"]], rows).text()])
