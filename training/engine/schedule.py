"""The optimiser, and the course of its rate in images."""

import math

import torch

from brickwork.training.config.config import TrainConfig


def learning_rate(config: TrainConfig, images: int, total: int | None = None) -> float:
    """The rate of the step that begins at `images` images: a linear rise, the chosen course, a linear fall to zero.

    Args:
        config: of the run.
        images: since the course began.
        total: images of the whole course, by default of the run.
    """
    optimizer, total = config.optimizer, total or config.run.total_images
    rise = min(1.0, (images + config.run.batch_size) / max(optimizer.warmup_images, 1))
    fall = min(1.0, (total - images) / optimizer.cooldown_images) if optimizer.cooldown_images else 1.0
    course = 1.0
    if optimizer.schedule == "cosine":
        course = (1 + math.cos(math.pi * min(1.0, images / total))) / 2
    elif optimizer.schedule == "inverse_sqrt":
        course = 1 / math.sqrt(max(images / optimizer.decay_images, 1.0))
    return optimizer.learning_rate * rise * course * max(fall, 0.0)


def build_optimizer(config: TrainConfig, network: torch.nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over the parameters that are not frozen, fused where torch can, or with 8-bit states."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    settings = config.optimizer
    options = {"lr": settings.learning_rate, "betas": tuple(settings.betas), "weight_decay": settings.weight_decay}
    if settings.type == "adamw":
        return torch.optim.AdamW(parameters, fused=device.type in ("cpu", "cuda"), **options)
    try:
        import bitsandbytes
    except ImportError:
        raise ValueError(
            f"`optimizer.type` is {settings.type!r}, which needs bitsandbytes; pip install it, or take adamw."
        ) from None
    return bitsandbytes.optim.AdamW8bit(parameters, **options)
