"""Numbers for one or more sets of samples: what `brickwork evaluate calc` does.

Several sets (one for each seed) give every metric a mean and a spread; they must all have the same number of
pictures, since most metrics depend on it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from brickwork.eval.extractors.features import Extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.metrics.distances import nearest_neighbours
from brickwork.eval.metrics.feature_sets import FeatureSet, extract_features
from brickwork.eval.metrics.reference import Reference, describe
from brickwork.eval.metrics.registry import METRICS, Given, MetricSettings, further_needs
from brickwork.eval.report.pictures import grid, neighbour_sheet, save_picture
from brickwork.eval.report.results import RESULT_FORMAT, generation_of, metric_entry
from brickwork.eval.report.versions import library_versions
from brickwork.eval.sets.pictures import ImageSet, Preparation, decode, open_image_set

GRID_PICTURES = 64
NEIGHBOUR_SAMPLES, NEIGHBOURS = 12, 3


def calculate(
    samples: Sequence[str | Path],
    reference: Reference,
    extractor: Extractor,
    settings: MetricSettings | None = None,
    *,
    preparation: Preparation | None = None,
    limit: int | None = None,
    name: str | None = None,
    tags: dict | None = None,
    progress: bool = True,
    on_features: Callable[[int, ImageSet, FeatureSet], None] | None = None,
    **further: Any,
) -> dict:
    """Measure sets of samples against a reference, by the reference's own protocol.

    Args:
        samples: One source a set, see `open_image_set`.
        reference: What to measure against.
        extractor: Must be the reference's, weights included.
        settings: Which metrics, and how.
        preparation: For the samples; by default they are taken as they are.
        limit: Take the first so many of each set.
        name: What to call the result; the first source by default.
        tags: Numbers or names that a report can draw curves over (`{"images": 43000, "gflops": 1.2}`).
        progress: Show a bar.
        on_features: Called with `(set number, pictures, features)` for every set.
        further: What metrics need beside, by the names of `register_need`, such as `clip`; `None` is nothing.

    Returns:
        The result, ready to be stored as JSON.
    """
    settings, preparation, further = settings or MetricSettings(), preparation or Preparation(), further_needs(further)
    require_same_extractor(reference, extractor)
    protocol = get_protocol(reference.info["protocol"]["name"])
    metrics = [METRICS[metric] for metric in settings.metrics]
    keep = ("features", "logits") if any("logits" in metric.needs for metric in metrics) else ("features",)
    table, sets = {}, []
    for number, source in enumerate(samples):
        images = open_image_set(source, limit)
        if sets and len(images) != sets[0]["count"]:
            raise ValueError(
                f"samples: {source} has {len(images)} pictures and {samples[0]} {sets[0]['count']}; need one number,"
                " pass --limit"
            )
        given = Given(settings, len(images), extractor, reference, {}, {}, images, preparation, further)
        for metric in metrics:
            metric.require(given)
        measured = extract_features(images, extractor, protocol, preparation, keep, progress)
        _require_same_size(measured, reference, source)
        _require_other_pictures(measured, sets, source)
        given.outputs, given.statistics = measured.outputs, measured.statistics
        for metric in metrics:
            if metric.of_samples or not number:
                metric.require(given, measured=True)
                for title, score in metric.measure(given).items():
                    table.setdefault(title, []).append(score)
        sets.append({"source": str(source), **describe(measured), "generation": generation_of(source)})
        if on_features is not None:
            on_features(number, images, measured)
    return {
        "format": RESULT_FORMAT,
        "name": name or Path(str(samples[0])).name,
        "tags": _tags_of(sets[0]) | (tags or {}),
        **_origin(reference, extractor, preparation, sets),
        "metrics": {title: metric_entry(scores) for title, scores in table.items()},
        "versions": library_versions(),
    }


def _origin(reference: Reference, extractor: Extractor, preparation: Preparation, sets: list[dict]) -> dict:
    """What a result's numbers depend on, and what decides whether they may be compared."""
    of_reference = {key: reference.info[key] for key in ("source", "count", "size", "data_sha256", "preparation")}
    return {
        "protocol": reference.info["protocol"],
        "extractor": extractor.to_dict(),
        "preparation": preparation.to_dict(),
        "count": sets[0]["count"],
        "seeds": [(entry["generation"] or {}).get("seed") for entry in sets],
        "reference": {"identity": reference.identity, **of_reference},
        "sets": sets,
    }


def _tags_of(entry: dict) -> dict:
    """What every result can be drawn over: the size, and what is known of how the set was sampled."""
    generation = entry["generation"] or {}
    width, height = entry["size"]
    tags = {"size": width} if width == height else {"width": width, "height": height}
    tags |= {"steps": generation.get("call", {}).get("num_inference_steps"), "gflops": generation.get("gflops")}
    return {key: value for key, value in tags.items() if value is not None}


def require_same_extractor(reference: Reference, extractor: Extractor) -> None:
    """Refuse features of another network, or of other weights, than the reference's."""
    wanted, got = reference.info["extractor"], extractor.to_dict()
    if wanted["weights_sha256"] != got["weights_sha256"]:
        raise ValueError(
            f"extractor: the reference was made with {wanted['name']} (weights {wanted['weights_sha256'][:8]}), got"
            f" {got['name']} (weights {got['weights_sha256'][:8]}); use the same or make the reference anew"
        )


def _require_same_size(measured: FeatureSet, reference: Reference, source: str | Path) -> None:
    (width, height), wanted = measured.inspection.size, reference.info["size"]
    if [width, height] != wanted:
        raise ValueError(
            f"samples: pictures in {source} are {width}x{height} and the reference's {wanted[0]}x{wanted[1]}; make"
            f" the reference at that size (`evaluate ref --resolution {width}`) or pass --resolution here"
        )


def _require_other_pictures(measured: FeatureSet, sets: list[dict], source: str | Path) -> None:
    """Refuse a set that was measured already: its spread would be over nothing."""
    for entry in sets:
        if entry["data_sha256"] == measured.data_sha256:
            raise ValueError(
                f"samples: {entry['source']} and {source} hold the same pictures (SHA-256 {measured.data_sha256[:8]});"
                " a spread is over sets of different seeds, name each set once"
            )


def memorisation(reference: Reference, features: torch.Tensor) -> dict:
    """How near samples come to the training pictures, beside how near these come to one another.

    A sample nearer to its nearest training picture than that one is to any other training picture counts as a copy
    (the complement of the authenticity of arXiv 2102.08921).

    Args:
        reference: With features, of the data the model was trained on.
        features: Of the samples, `(count, dimension)`.

    Returns:
        `copies`, the share of such samples; `distance_ratio`, the median over samples of the one distance over the
        other; `nearest`, for the first samples the row numbers in the reference and the distances.
    """
    real = reference.require_features()
    distances, rows = nearest_neighbours(features, real, min(NEIGHBOURS, len(real)))
    own = reference.radii(1)[rows[:, 0], 0]
    ratio = distances[:, 0] / own.clamp_min(torch.finfo(torch.float64).tiny)
    shown = slice(0, NEIGHBOUR_SAMPLES)
    return {
        "copies": (distances[:, 0] < own).double().mean().item(),
        "distance_ratio": ratio.median().item(),
        "nearest": {"rows": rows[shown].tolist(), "distances": distances[shown].tolist()},
    }


def write_pictures(
    stem: Path, images: ImageSet, preparation: Preparation, nearest: dict | None, reference: Reference
) -> dict[str, str]:
    """Write the sheets of a result: the first samples, and some of them beside their nearest training pictures.

    Returns:
        File names by kind, `grid` and `neighbours`; the latter only where the reference's pictures can still be read
        and are still the same.
    """
    first = decode(images, range(min(GRID_PICTURES, len(images))), preparation, (1, 1))
    pixels = list(first.pixels.permute(0, 2, 3, 1).numpy())
    sheets = {"grid": grid(pixels)}
    rows = nearest["nearest"]["rows"] if nearest is not None else []
    training = _reference_pictures(reference, sorted({row for found in rows for row in found}))
    if training:
        sheets["neighbours"] = neighbour_sheet(pixels[: len(rows)], [[training[i] for i in found] for found in rows])
    names = {}
    for kind, sheet in sheets.items():
        path = stem.with_name(f"{stem.name}.{kind}.png")
        save_picture(sheet, path)
        names[kind] = path.name
    return names


def _reference_pictures(reference: Reference, rows: list[int]) -> dict:
    """Pictures of the reference by row, empty if its source is gone or has changed."""
    info = reference.info["preparation"]
    preparation = Preparation(info["resolution"], info["filter"] or "lanczos", convert=True)
    try:
        images = open_image_set(reference.info["source"])
        batch = decode(images, [row for row in rows if row < len(images)], preparation, (1, 1)) if rows else None
    except (ValueError, OSError):
        return {}
    if batch is None or batch.corrupt or not torch.equal(batch.digests, reference.digests[rows]):
        return {}
    return dict(zip(rows, batch.pixels.permute(0, 2, 3, 1).numpy()))
