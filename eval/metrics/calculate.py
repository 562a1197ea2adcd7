"""Numbers for one or more sets of samples: what `brickwork evaluate calc` does.

Several sets (one for each seed) give every metric a mean and a spread; they must all have the same number of
pictures, since most metrics depend on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from brickwork.eval.extractors.features import Extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.messages import choice_error
from brickwork.eval.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_scores,
    nearest_neighbours,
    require_samples,
)
from brickwork.eval.metrics.feature_sets import FeatureSet, extract_features
from brickwork.eval.metrics.reference import Reference, describe
from brickwork.eval.report.pictures import grid, neighbour_sheet
from brickwork.eval.report.results import RESULT_FORMAT, MetricValues, generation_of
from brickwork.eval.report.versions import library_versions
from brickwork.eval.sets.pictures import ImageSet, Preparation, decode, open_image_set
from brickwork.files import write_file

METRICS = ("fd", "kd", "prdc", "is", "sfd")
GRID_PICTURES = 64
NEIGHBOUR_SAMPLES, NEIGHBOURS = 12, 3


@dataclass(frozen=True)
class MetricSettings:
    """Settings that metrics depend on; stored with them, and compared before two numbers are.

    Attributes:
        metrics: Which of `METRICS` to compute.
        subsets, subset_size: Of the kernel distance.
        splits: Of the Inception Score.
        precision_k, density_k: Neighbours of precision and recall, and of density and coverage.
        seed: Of the draws of subsets and splits.
    """

    metrics: tuple[str, ...] = ("fd", "kd", "prdc")
    subsets: int = 100
    subset_size: int = 1000
    splits: int = 10
    precision_k: int = 3
    density_k: int = 5
    seed: int = 0

    def __post_init__(self):
        for metric in self.metrics:
            if metric not in METRICS:
                raise choice_error("metrics", metric, METRICS)
        for name in ("subsets", "subset_size", "splits", "precision_k", "density_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, need at least 1")


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

    Returns:
        The result, ready to be stored as JSON.
    """
    settings, preparation = settings or MetricSettings(), preparation or Preparation()
    require_same_extractor(reference, extractor)
    protocol = get_protocol(reference.info["protocol"]["name"])
    keep = ("features", "logits") if "is" in settings.metrics else ("features",)
    table, sets = {}, []
    for number, source in enumerate(samples):
        images = open_image_set(source, limit)
        if sets and len(images) != sets[0]["count"]:
            raise ValueError(
                f"samples: {source} has {len(images)} pictures and {samples[0]} {sets[0]['count']}; need one number,"
                " pass --limit"
            )
        measured = extract_features(images, extractor, protocol, preparation, keep, progress)
        _require_same_size(measured, reference, source)
        _require_other_pictures(measured, sets, source)
        for metric in settings.metrics:
            _MEASURES[metric](table, measured, reference, extractor, settings)
        sets.append({"source": str(source), **describe(measured), "generation": generation_of(source)})
        if on_features is not None:
            on_features(number, images, measured)
    return {
        "format": RESULT_FORMAT,
        "name": name or Path(str(samples[0])).name,
        "tags": _tags_of(sets[0]) | (tags or {}),
        **_origin(reference, extractor, preparation, sets),
        "metrics": {key: values.to_dict() for key, values in table.items()},
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
    size = {"size": width} if width == height else {"width": width, "height": height}
    tags = size | {
        "steps": generation.get("call", {}).get("num_inference_steps"),
        "gflops": generation.get("gflops"),
    }
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
    size, wanted = list(measured.inspection.size), reference.info["size"]
    if size != wanted:
        raise ValueError(
            f"samples: pictures in {source} are {size[0]}x{size[1]} and the reference's {wanted[0]}x{wanted[1]}; make"
            f" the reference at that size (`evaluate ref --resolution {size[0]}`) or pass --resolution here"
        )


def _require_other_pictures(measured: FeatureSet, sets: list[dict], source: str | Path) -> None:
    """Refuse a set that was measured already: its spread would be over nothing."""
    for entry in sets:
        if entry["data_sha256"] == measured.data_sha256:
            raise ValueError(
                f"samples: {entry['source']} and {source} hold the same pictures (SHA-256 {measured.data_sha256[:8]});"
                " a spread is over sets of different seeds, name each set once"
            )


def _frechet(table: dict, name: str, output: str, measured: FeatureSet, reference: Reference) -> None:
    for title, statistics in (("reference", reference.statistics), ("samples", measured.statistics)):
        if output not in statistics:
            raise ValueError(
                f"metrics: {title} have no {output} features, which only inception-v3 gives; leave out sfd"
            )
        count, mean, _ = statistics[output]
        require_samples(count, len(mean), title)
    (_, *ours), (_, *theirs) = measured.statistics[output], reference.statistics[output]
    table.setdefault(name, MetricValues({"features": len(ours[0])})).values.append(frechet_distance(*ours, *theirs))


def _measure_fd(table, measured, reference, extractor, settings) -> None:
    _frechet(table, extractor.metric_name("fd"), "features", measured, reference)


def _measure_sfd(table, measured, reference, extractor, settings) -> None:
    _frechet(table, extractor.metric_name("sfd"), "spatial", measured, reference)


def _measure_kd(table, measured, reference, extractor, settings) -> None:
    real, generated = reference.require_features(), measured.outputs["features"]
    size = min(settings.subset_size, len(real), len(generated))
    mean, spread = kernel_distance(real, generated, settings.subsets, size, settings.seed)
    details = {"subsets": settings.subsets, "subset_size": size, "seed": settings.seed}
    values = table.setdefault(extractor.metric_name("kd"), MetricValues(details, f"{settings.subsets} subsets"))
    values.values.append(mean)
    values.inner_spread.append(spread)


def _measure_is(table, measured, reference, extractor, settings) -> None:
    if "logits" not in measured.outputs:
        raise ValueError(f"metrics: {extractor.name} has no class logits for an Inception Score; leave out is")
    mean, spread = inception_score(measured.outputs["logits"], settings.splits, settings.seed)
    details = {"splits": settings.splits, "seed": settings.seed}
    values = table.setdefault(extractor.metric_name("is"), MetricValues(details, f"{settings.splits} splits"))
    values.values.append(mean)
    if spread is not None:
        values.inner_spread.append(spread)


def _measure_prdc(table, measured, reference, extractor, settings) -> None:
    ks = settings.precision_k, settings.density_k
    generated = measured.outputs["features"]
    scores = manifold_scores(reference.require_features(), generated, *ks, real_radii=reference.radii(*ks))
    for name, value in scores.items():
        k = settings.precision_k if name in ("precision", "recall") else settings.density_k
        table.setdefault(name, MetricValues({"k": k})).values.append(value)


_MEASURES = {
    "fd": _measure_fd,
    "kd": _measure_kd,
    "is": _measure_is,
    "prdc": _measure_prdc,
    "sfd": _measure_sfd,
}


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
        write_file(path, lambda temporary, sheet=sheet: sheet.save(temporary, format="PNG"))
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
    if batch is None or batch.corrupt or len(batch.indices) != len(rows):
        return {}
    if not torch.equal(batch.digests, reference.digests[rows]):
        return {}
    return dict(zip(rows, batch.pixels.permute(0, 2, 3, 1).numpy()))
