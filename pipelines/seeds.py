"""Noise whose images do not depend on the batch they are drawn in."""

import torch


def generators_per_image(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int
) -> list[torch.Generator]:
    """One generator an image, so that image k is the same however many are drawn after it.

    Args:
        generator: a list with one generator an image, which are used as they are; or one generator, from which a seed
            is drawn for each image in turn; or `None`, for seeds from torch's global generator.
        batch_size: number of images.

    Returns:
        Generators on the CPU (except for those of a list), so that an image does not depend on the device either.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != batch_size:
            raise ValueError(
                f"`generator` has {len(generator)} entries for {batch_size} images; give one an image, or one for all."
            )
        return list(generator)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`generator` is {generator!r}; give a torch.Generator, a list with one an image, or None.")
    device = "cpu" if generator is None else generator.device
    # One at a time: how a vector of numbers is drawn may depend on its length.
    seeds = [torch.randint(2**63 - 1, (), generator=generator, device=device).item() for _ in range(batch_size)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]
