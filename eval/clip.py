"""CLIP score of pictures with their captions, through torchmetrics, with any local or hub CLIP."""

from collections.abc import Iterator

import torch
from torch import nn

from brickwork.eval.image_sets import DecodedBatch


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


def clip_score(batches: Iterator[DecodedBatch], texts: list[str], source: str) -> tuple[float, dict]:
    """Mean of 100 · cos(picture, caption), not below 0 (arXiv 2104.08718).

    Args:
        batches: The pictures.
        texts: The caption of each, by its place in the set.
        source: A CLIP of transformers with its processor, a folder or a hub id.

    Returns:
        The score, and how the model is named in the result.
    """
    from torchmetrics.multimodal import CLIPScore
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    from brickwork.eval.extractors import weights_digest

    try:
        model = CLIPModel.from_pretrained(source).eval()
        processor = CLIPProcessor(
            CLIPImageProcessor.from_pretrained(source), CLIPTokenizerFast.from_pretrained(source)
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"clip: {source!r} could not be loaded as a CLIP model: {error}") from error
    metric = CLIPScore(model_name_or_path=lambda: (_ProjectedFeatures(model), processor))
    with torch.inference_mode():
        for batch in batches:
            metric.update(list(batch.pixels), [texts[i] for i in batch.indices])
    return metric.compute().item(), {"model": source, "weights_sha256": weights_digest(model)}
