"""CLIP score of pictures with their captions, through torchmetrics, with any local or hub CLIP."""

import torch

from brickwork.eval.extractors.features import FIXED_BATCH, weights_digest
from brickwork.eval.extractors.vision_models import load_clip
from brickwork.eval.metrics.registry import Given, register_metric, register_need
from brickwork.eval.report.results import Score
from brickwork.eval.sets.pictures import decoded_batches

register_need("clip", "there is no CLIP; pass --clip MODEL")


@register_metric("clip", needs=("captions", "clip"), higher_is_better=True, results=("CLIP score",))
def measure_clip(given: Given) -> dict[str, Score]:
    """Mean of 100 · cos(picture, caption), not below 0 (arXiv 2104.08718)."""
    from torchmetrics.multimodal import CLIPScore

    images, preparation = given.images, given.preparation
    model, processor = load_clip(given.further["clip"])
    # One process measures; torchmetrics must not wait for others.
    metric = CLIPScore(model_name_or_path=lambda: (model, processor), sync_on_compute=False)
    with torch.inference_mode():
        for batch in decoded_batches(images, preparation, FIXED_BATCH):
            metric.update(list(batch.pixels), [images.texts[i] for i in batch.indices])
    settings = {"model": given.further["clip"], "weights_sha256": weights_digest(model)}
    return {"CLIP score": Score(metric.compute().item(), settings=settings)}
