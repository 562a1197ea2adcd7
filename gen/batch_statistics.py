"""Running statistics of BatchNorm that belong to the weights they stand beside.

An average of weights (EMA) is not the network whose activations the running statistics have followed. The trainer
averages the statistics like the weights, which is cheap and close; here they are measured anew on data at all noise
levels, which is exact.
"""

from collections.abc import Iterable

import torch
from torch import nn


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the network keeps running statistics."""
    return any(True for _ in _batch_norms(model))


@torch.no_grad()
def recalibrate_batch_norm(
    model: nn.Module,
    objective,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
    generator: torch.Generator | None = None,
) -> int:
    """Measure the running statistics anew: plain averages over batches, each image at a noise level as in training.

    Args:
        model: network of blocks; its weights, its mode and the modes of its parts stay as they are.
        objective: what it was trained for, see `brickwork.gen.objectives`.
        batches: images `(B, C, H, W)` in [-1, 1], or latents, with labels `(B,)` or `None`. A few thousand images are
            plenty.
        generator: of noise and noise levels, on the CPU.

    Returns:
        The number of batches. Without any, nothing changes.

    Raises:
        ValueError: if there are no running statistics to measure.
    """
    norms = list(_batch_norms(model))
    if not norms:
        raise ValueError("`model` has no BatchNorm, so there is nothing to recalibrate; leave it as it is.")
    parameter = next(model.parameters())
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    count = 0
    try:
        for images, labels in batches:
            if count == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # a plain average instead of one that forgets
                    norm.train()
            noise = torch.randn(images.shape, generator=generator).to(parameter.device)
            levels = objective.noise_levels(torch.randn(len(images), generator=generator)).to(parameter.device)
            sample, timestep = objective.network_inputs(images.to(parameter.device), noise, levels)
            model(sample, timestep, class_labels=None if labels is None else labels.to(parameter.device))
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    return count


def _batch_norms(model: nn.Module) -> Iterable[nn.BatchNorm2d]:
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats)
