"""Vision models of transformers as extractors."""

import torch
from torch import nn

from brickwork.errors import explained
from brickwork.eval.extractors.features import IMAGENET_MEAN, IMAGENET_STD, Extractor, from_module, register_extractor


class TransformersFeatures(nn.Module):
    """The pooled output of a transformers vision model (for DINOv2 the normalised class token)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=images)
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state.mean(dim=1) if pooled is None else pooled).flatten(1)


@register_extractor("transformers:")
def transformers_model(source: str) -> Extractor:
    """A vision model of transformers (DINOv2, ViT, ConvNeXt, …) from a folder or the hub.

    Input size and normalisation are those of the model's own image processor.
    """
    from transformers import AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    with explained(f"extractor 'transformers:{source}' could not be loaded", OSError):
        model = AutoModel.from_pretrained(source)
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
    if getattr(model, "vision_model", None) is not None:
        model = model.vision_model
    size = settings.get("crop_size") or settings.get("size") or getattr(model.config, "image_size", 224)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    label = {"dinov2": "DINOv2", "vit": "ViT"}.get(model.config.model_type, type(model).__name__)
    mean, std = settings.get("image_mean", IMAGENET_MEAN), settings.get("image_std", IMAGENET_STD)
    return from_module(TransformersFeatures(model), label, int(size), mean, std, f"transformers:{source}")


def load_clip(source: str) -> tuple:
    """A CLIP of transformers, whose feature methods return tensors, and its processor."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    class Projected(CLIPModel):
        # transformers 5 returns an output class, which torchmetrics cannot take.
        def get_image_features(self, *arguments, **named) -> torch.Tensor:
            found = super().get_image_features(*arguments, **named)
            return getattr(found, "pooler_output", found)

        def get_text_features(self, *arguments, **named) -> torch.Tensor:
            found = super().get_text_features(*arguments, **named)
            return getattr(found, "pooler_output", found)

    with explained(f"clip: {source!r} could not be loaded as a CLIP model"):
        pictures, words = CLIPImageProcessor.from_pretrained(source), CLIPTokenizerFast.from_pretrained(source)
        return Projected.from_pretrained(source).eval(), CLIPProcessor(pictures, words)
