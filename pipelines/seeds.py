"""The `generator` of a pipeline's call, as every pipeline of diffusers has it, and the noise it draws."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

Generators = torch.Generator | list[torch.Generator] | None


def checked_generator(generator: Generators, batch_size: int) -> Generators:
    """The generator or generators that draw a call's noise, by diffusers' `randn_tensor`.

    Args:
        generator: one, from which the noise of the batch is drawn at once; or a list with one an image, by which
            an image's noise is the same alone and in any batch; or `None`, for torch's global one.
        batch_size: number of images.

    Raises:
        ValueError: for a list of another length, and for anything else.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, (list, tuple)) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ValueError(f"`generator` is {generator!r}; give a torch.Generator, a list with one an image, or None.")
    if len(generator) != batch_size:
        raise ValueError(
            f"`generator` has {len(generator)} entries for {batch_size} images; give one an image, or one for all."
        )
    return list(generator)


def first_noise(
    latents: Any, shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Noise of unit variance `(B, …)` of any shape, drawn in float32, or given and checked."""
    if latents is None:
        latents = randn_tensor(tuple(shape), generator, device, torch.float32)
    if not isinstance(latents, torch.Tensor):
        raise ValueError(f"`latents` is a {type(latents).__name__}; give a tensor of the shape {tuple(shape)}.")
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}; this call needs {tuple(shape)}.")
    return latents.to(device, dtype)
