"""Metrics by name: what each needs, which way is better, and how it measures.

A new metric is one file with one registration, and one line in this folder's `__init__.py`; `brickwork evaluate calc`,
the live metrics of a training run and the arrows of a report all read from here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch

from brickwork.errors import no_unknown, one_of
from brickwork.eval.extractors.features import Extractor
from brickwork.eval.metrics.distances import Statistics, feature_statistics
from brickwork.eval.metrics.reference import Reference
from brickwork.eval.report.results import Score
from brickwork.eval.sets.pictures import ImageSet, Preparation


@dataclass(frozen=True)
class MetricSettings:
    """Settings that metrics depend on; stored with them, and compared before two numbers are.

    Attributes:
        metrics: Names of registered metrics.
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
            one_of("metrics", metric, METRICS)
        for name in ("subsets", "subset_size", "splits", "precision_k", "density_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, need at least 1")


@dataclass
class Given:
    """What there is to measure with.

    Attributes:
        settings: See there.
        count: Pictures in the set of samples.
        extractor: What the features are of.
        reference: What samples are measured against.
        outputs: `features` and `logits` of the samples, float32 rows.
        statistics: Count, mean and covariance of `features` and `spatial` of the samples.
        images, preparation: The samples as pictures; with their captions, if they have any.
        further: What metrics of their own needs look at, by the need's name, such as `clip` or `judge`.
    """

    settings: MetricSettings
    count: int
    extractor: Extractor
    reference: Reference
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    images: ImageSet | None = None
    preparation: Preparation = field(default_factory=Preparation)
    further: Mapping[str, Any] = field(default_factory=dict)

    def statistics_of(self, output: str) -> Statistics:
        """Count, mean and covariance of an output of the samples."""
        if output not in self.statistics:
            self.statistics[output] = feature_statistics(self.outputs[output])
        return self.statistics[output]


# Needs that are known before a network has seen a picture, then those that only its outputs show: whether they are
# met, and what to say if not.
_NEEDS: dict[str, tuple[Callable[[Given], bool], str]] = {
    "reference features": (
        lambda given: given.reference.features is not None,
        "the reference's file holds no features, only their mean and covariance; make it without --no-features",
    ),
    "captions": (
        lambda given: given.images is not None and given.images.texts is not None,
        "the set has no captions; put them in metadata.jsonl under the key 'text'",
    ),
    "asked": (
        lambda given: given.images is not None and (given.images.texts or given.images.labels) is not None,
        "the set has neither captions nor classes; put them in metadata.jsonl under the keys 'text' and 'label'",
    ),
}
_OUTPUTS: dict[str, tuple[Callable[[Given], bool], str]] = {
    "features": (lambda given: "features" in given.outputs or "features" in given.statistics, "there are none"),
    "logits": (lambda given: "logits" in given.outputs, "the extractor has no class logits; leave it out"),
    "spatial": (
        lambda given: "spatial" in given.statistics and "spatial" in given.reference.statistics,
        "samples or reference have no spatial features, which only inception-v3 gives; leave it out",
    ),
}


def register_need(name: str, missing: str) -> None:
    """Let metrics need something of their own, which `calculate` takes by this name and `Given.further` holds.

    Args:
        name: Of the need.
        missing: What to say where it is not there.
    """
    _NEEDS[name] = (lambda given: given.further.get(name) is not None), missing


def further_needs(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given for registered needs, without what is `None`; a `ValueError` for other names."""
    no_unknown("calculate", given, _NEEDS, "it")
    return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Metric:
    """A registered metric; see `register_metric`."""

    name: str
    needs: tuple[str, ...]
    higher_is_better: bool
    results: tuple[str, ...]
    measure: Callable[[Given], dict[str, Score]]
    check: Callable[[Given], None] | None

    def titles(self, extractor: Extractor) -> list[str]:
        """Names of its values with an extractor."""
        labelled = any("*" in name for name in self.results)
        published = extractor.label == "Inception"
        names = [name for name in self.results if not labelled or ("*" in name) != published]
        return [name.replace("*", extractor.label) for name in names]

    @property
    def of_samples(self) -> bool:
        """Whether it looks at samples, and so has a value for every set of them."""
        return any(need in _OUTPUTS or need in ("captions", "asked") for need in self.needs)

    def require(self, given: Given, measured: bool = False) -> None:
        """Raise a `ValueError` unless there is what the metric needs; of outputs only once they are `measured`."""
        for need in self.needs:
            is_met, words = (_NEEDS | _OUTPUTS)[need]
            if (measured or need in _NEEDS) and not is_met(given):
                raise ValueError(f"`metrics` has {self.name!r}, which needs {need}, and {words}.")
        if self.check is not None:
            self.check(given)


METRICS: dict[str, Metric] = {}


def register_metric(
    name: str,
    *,
    needs: Sequence[str] = ("features",),
    higher_is_better: bool = False,
    results: Sequence[str] = (),
    check: Callable[[Given], None] | None = None,
):
    """Register a function from `Given` to `{title: Score}` as a metric.

    Args:
        name: What `--metrics` calls it.
        needs: Of `features`, `logits`, `spatial` (of the samples), `reference features`, `captions`, `asked`
            (captions or classes), and of those that `register_need` names. The reference's statistics are there.
        higher_is_better: Which way.
        results: Names of its values, by default the metric's own. Where one has a `*`, that is the extractor's label,
            and those without belong to the published Inception alone.
        check: Raises a `ValueError` for what can be said before anything is measured (`Given.outputs` is empty then).
    """

    def register(measure: Callable[[Given], dict[str, Score]]):
        if name in METRICS:
            raise ValueError(f"`name` is {name!r}, which is registered already; choose another.")
        for need in needs:
            one_of("needs", need, _NEEDS | _OUTPUTS)
        METRICS[name] = Metric(name, tuple(needs), higher_is_better, tuple(results or [name]), measure, check)
        return measure

    return register


def is_higher_better(result: str) -> bool | None:
    """Which way is better, by the name of a value in a result (`"KD-DINOv2"`); `None` for one that nobody knows."""
    for metric in METRICS.values():
        if any(fnmatchcase(result, name) for name in metric.results):
            return metric.higher_is_better
    return None
