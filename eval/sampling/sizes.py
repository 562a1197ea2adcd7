"""Which sizes a pipeline of any class draws."""

import inspect
import math

from brickwork.eval.sampling.sample_set import denoiser_of
from brickwork.gen.networks.base import Denoiser


def size_rule(pipeline) -> tuple[int, int, int]:
    """What sides a pipeline and its network take: their multiple and the smallest, and the training size, in pixels.

    Raises:
        ValueError: for a pipeline that draws one size only.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    if not {"height", "width"} <= set(parameters):
        raise ValueError(
            f"`pipeline` is a {type(pipeline).__name__}, which draws one size only (it takes no height and width)."
        )
    network = denoiser_of(pipeline)
    patches = [network.config.get("patch_size") or 1, *(network.config.get("patch_sizes") or [])]
    patch = max(patch for patch in patches if isinstance(patch, int))
    factor, native = getattr(pipeline, "vae_scale_factor", 1), network.config.get("sample_size") or 64
    native = (native if isinstance(native, int) else min(native)) * factor
    if isinstance(network, Denoiser):  # ours pad what their patches do not divide
        return factor, factor * patch, native
    # Transformers of diffusers cut off what their patches do not divide; its UNets halve at each level but the last,
    # and its pipelines want multiples of 8 whatever the VAE's factor is.
    levels = len(network.config.get("block_out_channels") or [0])
    multiple = math.lcm(8, factor * patch * 2 ** (levels - 1))
    return multiple, multiple, native
