"""Frozen vision transformers of transformers, and the dense features that they see in pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from brickwork.adapters.pictures import pixels_of
from brickwork.errors import MissingFile, explained, shown
from brickwork.files import tensor_digest

FAMILIES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")  # as their configurations say, `model_type`
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PLAIN = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # Google's ViT
_CELLS = 16  # patches along the side of a picture, unless more are asked for


def load_encoder(encoder: str | Path | nn.Module) -> nn.Module:
    """A vision transformer by its name on the hub or its folder, or one that is loaded already.

    Raises:
        ValueError: for another family, before its weights are read, and for one that cannot be had.
    """
    if isinstance(encoder, nn.Module):
        check_family(getattr(encoder, "config", None), encoder)
        return encoder
    from transformers import AutoConfig, AutoModel

    if not isinstance(encoder, str | Path) or not str(encoder):
        raise ValueError(f"`encoder` is {shown(encoder)}; give a name on the hub, a folder, or a loaded transformer.")
    with explained(f"`encoder` is {str(encoder)!r}, which cannot be loaded", OSError, kind=MissingFile):
        check_family(AutoConfig.from_pretrained(encoder), encoder)
        return AutoModel.from_pretrained(encoder, use_safetensors=True).eval()


def check_family(config: Any, encoder: Any) -> None:
    """Raise a `ValueError` for a configuration that is of no vision transformer that gives a feature a patch."""
    family = getattr(config, "model_type", None)
    if family not in FAMILIES:
        what = f"a {family}" if family else f"a {type(encoder).__name__}"
        raise ValueError(
            f"`encoder` is {what}; give a vision transformer, one of {', '.join(FAMILIES)}, such as "
            "facebook/dinov2-small."
        )


def normalisation(encoder: nn.Module, source: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels in [0, 1] that an encoder takes: of its image processor, or usual."""
    mean, std = _PLAIN if encoder.config.model_type == "vit" else _IMAGENET
    if isinstance(source, str | Path):
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            settings, _ = ImageProcessingMixin.get_image_processor_dict(str(source))
        except OSError:  # saved without one
            settings = {}
        mean, std = settings.get("image_mean") or mean, settings.get("image_std") or std
    return list(mean), list(std)


def patches_digest(encoder: nn.Module) -> str:
    """What tells an encoder from others of its shape: a digest of how it embeds patches, in bfloat16."""
    weights = encoder.embeddings.patch_embeddings.named_parameters()
    return tensor_digest((name, weight.to(torch.bfloat16)) for name, weight in weights)


def usual_size(encoder: nn.Module) -> int:
    """Side in pixels of what an encoder is shown: 16 patches, or what it was trained at if that is less."""
    config = encoder.config
    return min(int(config.image_size), _CELLS * int(config.patch_size))


def usual_layers(encoder: nn.Module, count: int = 4) -> list[int]:
    """Layers at equal distances, the last one included, numbered from 0."""
    depth = int(encoder.config.num_hidden_layers)
    return sorted({max(0, depth * (number + 1) // count - 1) for number in range(count)})


def reference_pixels(images: Any, size: int) -> torch.Tensor:
    """Pictures (see `pixels_of`) as `(R, 3, size, size)` in [0, 1], `size` in pixels; their shape is not kept."""
    how = {"size": (size, size), "mode": "bicubic", "antialias": True, "align_corners": False}
    return torch.cat([F.interpolate(one, **how).clamp(0, 1) for one in pixels_of("reference_image", images)])


@torch.no_grad()
def dense_features(encoder: nn.Module, pixels: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
    """What an encoder sees in normalised pixels `(B, 3, H, W)`, sides multiples of its patch, at some of its layers.

    Returns:
        For each layer the patches' tokens behind the encoder's last norm, `(B, D, H / patch, W / patch)`, float32.
    """
    patch = int(encoder.config.patch_size)
    rows, columns = (side // patch for side in pixels.shape[-2:])
    weight = next(encoder.parameters())
    # Google's ViT has a table of positions for one size.
    further = {"interpolate_pos_encoding": True} if encoder.config.model_type == "vit" else {}
    output = encoder(pixel_values=pixels.to(weight), output_hidden_states=True, **further)
    norm = encoder.norm if hasattr(encoder, "norm") else encoder.layernorm
    found = []
    for layer in layers:
        tokens = norm(output.hidden_states[layer + 1])[:, -rows * columns :]  # behind class token and registers
        found.append(tokens.float().transpose(1, 2).unflatten(2, (rows, columns)))
    return found
