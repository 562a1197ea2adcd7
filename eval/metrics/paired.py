"""The paired denoising loss of a network as a metric: it looks at held-out pictures, not at samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from brickwork.eval.held_out.pictures import measure_paired_loss
from brickwork.eval.metrics.registry import Given, register_metric, register_need
from brickwork.eval.report.results import Score
from brickwork.eval.sets.pictures import ImageSet


@dataclass(frozen=True)
class HeldOut:
    """A network and pictures that it was not trained on, for its paired loss.

    Attributes:
        load: Gives the pipeline with the network; called when it is needed.
        images: The pictures, with labels if the network is conditional.
        objective, options: What the network was trained for.
    """

    load: Callable[[], Any]
    images: ImageSet
    objective: str = "edm"
    options: Mapping[str, Any] = field(default_factory=dict)


register_need("held_out", "there are no network and held-out pictures; pass --paired PIPELINE DATA")


@register_metric("paired", needs=("held_out",), results=("paired loss",))
def measure_paired(given: Given) -> dict[str, Score]:
    """The paired loss of a `HeldOut`."""
    held_out = given.further["held_out"]
    score = measure_paired_loss(
        held_out.load(), held_out.images, given.preparation, held_out.objective, options=dict(held_out.options)
    )
    return {"paired loss": score}
