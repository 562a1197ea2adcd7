"""The `generator` of a pipeline's call, as every pipeline of diffusers has it."""

import torch

Generators = torch.Generator | list[torch.Generator] | None


def checked_generator(generator: Generators, batch_size: int) -> Generators:
    """The generator or generators that draw a call's noise, by diffusers' `randn_tensor`.

    Args:
        generator: one, from which the noise of the whole batch is drawn at once; or a list with one an image, by which
            an image's noise is the same alone and in any batch; or `None`, for torch's global one.
        batch_size: number of images.

    Raises:
        ValueError: for a list of another length, and for anything else.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != batch_size:
            raise ValueError(
                f"`generator` has {len(generator)} entries for {batch_size} images; give one an image, or one for all."
            )
        generator = list(generator)
    for one in generator if isinstance(generator, list) else [generator]:
        if not isinstance(one, torch.Generator) and (one is not None or isinstance(generator, list)):
            raise ValueError(
                f"`generator` is {generator!r}; give a torch.Generator, a list with one an image, or None."
            )
    return generator
