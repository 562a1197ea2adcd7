"""The one way between pictures, a VAE's latents, and what a network works on; for pipelines, caches and trainers.

A network works on latents of about unit variance, `(raw - shift_factor - latents_mean) / latents_std *
scaling_factor`, as diffusers' pipelines have them; a VAE's configuration holds some of the four, or none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def pixels_per_latent(vae: nn.Module | None) -> int:
    """Pixels of a picture along one latent, each way; 1 without a VAE."""
    if vae is None:
        return 1
    config = vae.config
    if config.get("scale_factor_spatial"):  # VAEs of video
        return int(config["scale_factor_spatial"])
    return 2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1)


def sample_size(
    height: int | None, width: int | None, defaults: tuple[int, int], factor: int, patch: int
) -> tuple[int, int]:
    """Height and width of what a network sees, from those of the image.

    Args:
        height: of the image in pixels; `None` for the default.
        width: likewise.
        defaults: height and width of what the network sees.
        factor: pixels of the image for each of those.
        patch: the smallest it can see.

    Raises:
        ValueError: for sizes below one patch, and those that are no multiple of the factor.
    """
    size = []
    for name, value, default in zip(("height", "width"), (height, width), defaults):
        value = default * factor if value is None else value
        if not isinstance(value, int) or value < patch * factor or value % factor:
            multiple = f", a multiple of the VAE's {factor}" if factor > 1 else ""
            raise ValueError(
                f"`{name}` is {value!r}; give a whole number of pixels from {patch * factor} up (one patch){multiple}."
            )
        size.append(value // factor)
    return size[0], size[1]


def scale(vae: nn.Module, raw: torch.Tensor) -> torch.Tensor:
    """A VAE's own latents `(B, C, …)` => what a network works on, of about unit variance."""
    shift, mean, std, factor = _numbers(vae, raw)
    return (raw - shift - mean) / std * factor


def unscale(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Undo `scale`: what a network works on `(B, C, …)` => latents as the VAE's decoder reads them."""
    shift, mean, std, factor = _numbers(vae, latents)
    return latents / factor * std + mean + shift


@torch.no_grad()
def moments(vae: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and logarithm of the variance of a VAE's own latents, not scaled.

    Args:
        vae: one that codes a picture as a normal distribution, such as `AutoencoderKL`.
        pixels: `(B, 3, H, W)` in [-1, 1], or whatever else the VAE takes.

    Returns:
        Two tensors `(B, C, h, w)`, float32.
    """
    distribution = _encoded(vae, pixels).latent_dist
    return distribution.mean.float(), distribution.logvar.float()


def draw(vae: nn.Module, mean: torch.Tensor, logvar: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """Scaled latents, chosen from a VAE's distribution (see `moments`) by normal numbers of the same shape."""
    return scale(vae, mean + torch.exp(0.5 * logvar) * normal)


@torch.no_grad()
def encode(vae: nn.Module | None, pixels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Pixels => what a network works on, float32.

    Args:
        vae: the VAE; without one a network works on the pixels themselves, which are returned as they are.
        pixels: `(B, 3, H, W)` in [-1, 1], or whatever else the VAE takes.
        generator: draw from the VAE's distribution with this; `None` for its mean. VAEs that code a picture as one
            point have nothing to draw.
    """
    if vae is None:
        return pixels
    if _takes_frames_apart(vae, pixels):
        return _by_frame(lambda part: encode(vae, part, generator), pixels)
    output = _encoded(vae, pixels)
    if hasattr(output, "latent_dist"):
        distribution = output.latent_dist
        raw = distribution.mode() if generator is None else distribution.sample(generator)
    else:
        raw = output.latent if hasattr(output, "latent") else output.latents
    return scale(vae, raw.float())


@torch.no_grad()
def decode(vae: nn.Module | None, latents: torch.Tensor) -> torch.Tensor:
    """What a network works on `(B, C, h, w)` => pixels `(B, 3, H, W)` about [-1, 1], in the VAE's dtype.

    Without a VAE they are the pixels already. A VAE of pictures codes and decodes frames `(B, C, F, h, w)` one by one.
    """
    if vae is None:
        return latents
    if _takes_frames_apart(vae, latents):
        return _by_frame(lambda part: decode(vae, part), latents)
    with _precise(vae):
        return vae.decode(unscale(vae, latents).to(vae.dtype), return_dict=False)[0]


def _takes_frames_apart(vae: nn.Module, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 5 and not any(isinstance(module, nn.Conv3d) for module in vae.modules())


def _by_frame(function: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """A function of pictures on every frame of `(B, C, F, H, W)`."""
    return torch.stack([function(part) for part in frames.unbind(2)], dim=2)


def _encoded(vae: nn.Module, pixels: torch.Tensor):
    # Autocast would code in half precision what training and sampling without it code in full.
    with _precise(vae), torch.autocast(pixels.device.type, enabled=False):
        return vae.encode(pixels.to(vae.device, vae.dtype))


@contextmanager
def _precise(vae: nn.Module) -> Iterator[None]:
    """float32 for a VAE in float16 whose configuration says that it overflows there."""
    dtype = vae.dtype
    upcast = dtype == torch.float16 and vae.config.get("force_upcast", False)
    if upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(dtype)


def _numbers(vae: nn.Module, like: torch.Tensor) -> tuple:
    """Shift, mean, standard deviation and factor of a VAE, the middle two `(C, 1, …)` where it has them."""
    config, buffers = vae.config, dict(vae.named_buffers(recurse=False))  # some VAEs of video keep the two as buffers
    mean, std = (config.get(name, buffers.get(name)) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        mean, std = 0.0, 1.0
    else:
        mean, std = (torch.as_tensor(values).to(like).view(-1, *[1] * (like.ndim - 2)) for values in (mean, std))
    return config.get("shift_factor") or 0.0, mean, std, config.get("scaling_factor") or 1.0
