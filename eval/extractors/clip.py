"""CLIP score of pictures with their captions, through torchmetrics, with any local or hub CLIP."""

import torch
from torch import nn

from brickwork.eval.extractors.features import FIXED_BATCH, weights_digest
from brickwork.eval.report.results import MetricValues
from brickwork.eval.sets.pictures import ImageSet, Preparation, decode_ahead, inspect_images


class _ProjectedFeatures(nn.Module):
    """A CLIP whose feature methods return tensors: transformers 5 returns an output class torchmetrics cannot take."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def config(self):
        return self.model.config

    def get_image_features(self, *args) -> torch.Tensor:
        output = self.model.get_image_features(*args)
        return output if isinstance(output, torch.Tensor) else output.pooler_output

    def get_text_features(self, *args) -> torch.Tensor:
        output = self.model.get_text_features(*args)
        return output if isinstance(output, torch.Tensor) else output.pooler_output


def measure_clip(images: ImageSet, preparation: Preparation, source: str) -> dict:
    """The CLIP score's entry in a result: mean of 100 · cos(picture, caption), not below 0 (arXiv 2104.08718).

    Args:
        images: Pictures with captions.
        preparation: How they are opened.
        source: A CLIP of transformers with its processor, a folder or a hub id.
    """
    from torchmetrics.multimodal import CLIPScore
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    if images.texts is None:
        raise ValueError(f"clip: {images.source} has no captions; put them in metadata.jsonl under the key 'text'")
    try:
        model = CLIPModel.from_pretrained(source).eval()
        processor = CLIPProcessor(
            CLIPImageProcessor.from_pretrained(source), CLIPTokenizerFast.from_pretrained(source)
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"clip: {source!r} could not be loaded as a CLIP model: {error}") from error
    # One process measures; torchmetrics must not wait for others.
    metric = CLIPScore(model_name_or_path=lambda: (_ProjectedFeatures(model), processor), sync_on_compute=False)
    size = inspect_images(images, preparation).size
    batches = [range(i, min(i + FIXED_BATCH, len(images))) for i in range(0, len(images), FIXED_BATCH)]
    with torch.inference_mode():
        for batch in decode_ahead(images, batches, preparation, size):
            metric.update(list(batch.pixels), [images.texts[i] for i in batch.indices])
    settings = {"model": source, "weights_sha256": weights_digest(model)}
    return MetricValues(settings, values=[metric.compute().item()]).to_dict()
