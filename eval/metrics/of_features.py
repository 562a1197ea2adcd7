"""The metrics of features: Fréchet and kernel distance, precision and recall, the Inception Score."""

from brickwork.eval.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_scores,
    require_samples,
)
from brickwork.eval.metrics.registry import Given, register_metric
from brickwork.eval.report.results import Score


def _enough_samples(output: str):
    def check(given: Given) -> None:
        if output in given.reference.statistics:
            count, mean, _ = given.reference.statistics[output]
            require_samples(count, len(mean), "reference")
            require_samples(given.count, len(mean), "samples")

    return check


def _frechet(given: Given, metric: str, output: str) -> dict[str, Score]:
    (_, *ours), (_, *theirs) = given.statistics_of(output), given.reference.statistics[output]
    score = Score(frechet_distance(*ours, *theirs), settings={"features": len(ours[0])})
    return {given.extractor.metric_name(metric): score}


@register_metric("fd", results=("FID", "FD-*"), check=_enough_samples("features"))
def measure_fd(given: Given) -> dict[str, Score]:
    """The Fréchet distance (FID, arXiv 1706.08500)."""
    return _frechet(given, "fd", "features")


@register_metric("sfd", needs=("spatial",), results=("sFID", "sFD-*"), check=_enough_samples("spatial"))
def measure_sfd(given: Given) -> dict[str, Score]:
    """The Fréchet distance of spatial features (sFID, arXiv 2103.03841)."""
    return _frechet(given, "sfd", "spatial")


@register_metric("kd", needs=("features", "reference features"), results=("KID", "KD-*"))
def measure_kd(given: Given) -> dict[str, Score]:
    """The kernel distance (KID, arXiv 1801.01401)."""
    real, generated, settings = given.reference.require_features(), given.outputs["features"], given.settings
    size = min(settings.subset_size, len(real), len(generated))
    mean, spread = kernel_distance(real, generated, settings.subsets, size, settings.seed)
    details = {"subsets": settings.subsets, "subset_size": size, "seed": settings.seed}
    return {given.extractor.metric_name("kd"): Score(mean, spread, f"{settings.subsets} subsets", details)}


@register_metric("is", needs=("logits",), higher_is_better=True, results=("IS", "IS-*"))
def measure_is(given: Given) -> dict[str, Score]:
    """The Inception Score (arXiv 1606.03498)."""
    settings = given.settings
    mean, spread = inception_score(given.outputs["logits"], settings.splits, settings.seed)
    details = {"splits": settings.splits, "seed": settings.seed}
    return {given.extractor.metric_name("is"): Score(mean, spread, f"{settings.splits} splits", details)}


@register_metric(
    "prdc",
    needs=("features", "reference features"),
    higher_is_better=True,
    results=("precision", "recall", "density", "coverage"),
)
def measure_prdc(given: Given) -> dict[str, Score]:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797)."""
    ks = given.settings.precision_k, given.settings.density_k
    real, radii = given.reference.require_features(), given.reference.radii(*ks)
    scores = manifold_scores(real, given.outputs["features"], *ks, real_radii=radii)
    of = {"precision": ks[0], "recall": ks[0], "density": ks[1], "coverage": ks[1]}
    return {name: Score(value, settings={"k": of[name]}) for name, value in scores.items()}
