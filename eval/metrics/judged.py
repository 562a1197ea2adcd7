"""The judge as a metric: the share of pictures that show what their captions ask for (GenEval, arXiv 2310.11513)."""

from brickwork.eval.extractors.features import FIXED_BATCH
from brickwork.eval.judge.requirements import CATEGORIES
from brickwork.eval.judge.verdicts import summary
from brickwork.eval.metrics.registry import Given, register_metric, register_need
from brickwork.eval.report.results import Score
from brickwork.eval.sets.pictures import decoded_batches

register_need("judge", "there is no judge; pass --judge DETECTOR")


def _can_be_judged(given: Given) -> None:
    """Raise a `ValueError` for captions that name nothing that can be judged, before anything is measured."""
    judge = given.further["judge"]
    judge.require_known(judge.asked(given.images.names, given.images.texts))


@register_metric(
    "judge",
    needs=("captions", "judge"),
    higher_is_better=True,
    results=("judged", *(f"judged {name}" for name in CATEGORIES)),
    check=_can_be_judged,
)
def measure_judge(given: Given) -> dict[str, Score]:
    """Correct pictures: the mean over GenEval's categories as `judged`, and the share within each."""
    judge, images, verdicts = given.further["judge"], given.images, []
    asked = judge.asked(images.names, images.texts)
    for batch in decoded_batches(images, given.preparation, FIXED_BATCH):
        pictures = list(batch.pixels.permute(0, 2, 3, 1).numpy())
        verdicts += judge(pictures, [asked[i] for i in batch.indices])
    found, settings = summary(verdicts), judge.to_dict()
    scores = {"judged": Score(found["overall"], settings=settings)}
    for name, entry in found["categories"].items():
        share = entry["correct"] / entry["count"]
        scores[f"judged {name}"] = Score(share, settings=settings, details={"count": entry["count"]})
    return scores
