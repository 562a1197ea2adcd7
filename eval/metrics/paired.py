"""The paired denoising loss of a network as a metric: it looks at held-out pictures, not at samples."""

from brickwork.eval.held_out.pictures import measure_paired_loss
from brickwork.eval.metrics.registry import Given, register_metric
from brickwork.eval.report.results import Score


@register_metric("paired", needs=("held out",), results=("paired loss",))
def measure_paired(given: Given) -> dict[str, Score]:
    """The paired loss of `given.held_out`."""
    held_out = given.held_out
    score = measure_paired_loss(
        held_out.load(), held_out.images, given.preparation, held_out.objective, options=dict(held_out.options)
    )
    return {"paired loss": score}
