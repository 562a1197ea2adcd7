"""What a denoiser computes of a picture at a noise level, as feature maps for heads on top of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from brickwork.adapters.base import denoiser_of
from brickwork.errors import no_unknown
from brickwork.gen.blocks.windows import window_reverse
from brickwork.gen.parameterization import EDMObjective
from brickwork.gen.taps import tapped


class DenoiserFeatures:
    """Feature maps of a pipeline's network, read at the sites where it takes residuals in.

    A picture is encoded, noised to one level with noise from a seed, and shown to the network without a class; one
    forward pass gives all maps.

    Args:
        pipeline: of class to image, on pixels or latents.
        sites: names of `residual_sites`; by default four at even distances, the finest maps first.
        sigma: noise level, in the objective's unit (EDM's standard deviation).
        objective: what the network was trained for; EDM's by default.
        seed: of the noise.
        size: side that heads bring pictures to, in pixels; by default that which the network was trained on. On
            twice the side an object's features have twice the side too.

    Raises:
        ValueError: for a network without such sites, or an unknown one.
    """

    def __init__(
        self, pipeline, sites: Sequence[str] | None = None, sigma: float = 0.2, objective=None, seed: int = 0,
        size: int | None = None,
    ):  # fmt: skip
        self.pipeline, self.network = pipeline, denoiser_of(pipeline).eval().requires_grad_(False)
        if not hasattr(self.network, "residual_sites"):
            raise ValueError(f"`pipeline` has a {type(self.network).__name__}; give one of our networks with sites.")
        if not 0 < sigma < float("inf"):
            raise ValueError(f"`sigma` is {sigma}; give a noise level above 0.")
        side = self.network.config.sample_size
        known = {site: shape for site, shape in self.network.residual_sites(side, side).items() if shape}
        if sites is None:
            names = list(known)
            chosen = np.unique(np.linspace(0, len(names) - 1, min(4, len(names))).round().astype(int))
            sites = sorted((names[i] for i in chosen), key=lambda site: -known[site][1])
        no_unknown("sites", sites, known, type(self.network).__name__)
        self.sites, self.sigma, self.seed = tuple(sites), sigma, seed
        self.objective = objective or EDMObjective(sigma_data=pipeline.scheduler.config.get("sigma_data", 0.5))
        self.channels = [known[site][0] for site in self.sites]
        self.size = size or side * getattr(pipeline, "vae_scale_factor", 1)

    def to_dict(self) -> dict[str, Any]:
        """All that the features depend on beside the network."""
        return {"sites": list(self.sites), "sigma": self.sigma, "seed": self.seed, "size": self.size}

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor, sigma: float | None = None) -> list[torch.Tensor]:
        """Maps `(B, C, h, w)`, one for each site, float32, of pictures uint8 `(B, 3, H, W)`.

        Args:
            pictures: of any size of which the network takes.
            sigma: another noise level than the usual one.
        """
        parameter = next(self.network.parameters())
        images = pictures.to(parameter.device, parameter.dtype) / 127.5 - 1
        if getattr(self.pipeline, "vae", None) is not None:
            images = self.pipeline.encode(images)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(images.shape[1:], generator=generator).to(images).expand_as(images)
        levels = torch.full((len(images),), sigma or self.sigma, device=images.device)
        sample, timestep = self.objective.network_inputs(images, noise, levels)
        classes = self.network.config.num_classes
        labels = None if classes is None else torch.full((len(images),), classes, device=images.device)
        names = {site: _last_module(self.network, site) for site in self.sites}
        with tapped(self.network, list(names.values())) as taps:
            self.network(sample, timestep, class_labels=labels)
        shapes = self.network.residual_sites(*sample.shape[-2:])
        return [self._map(site, taps[names[site]], shapes[site], sample.shape[-2:]).float() for site in self.sites]

    def _map(self, site: str, output: torch.Tensor, shape: tuple, size: Sequence[int]) -> torch.Tensor:
        """What a site gave, tokens in windows for LEGO, as a map of its shape."""
        if tuple(output.shape[1:]) == tuple(shape):
            return output
        window = self.network.bricks[int(site.split(".")[1])].window_of(*size)
        padded = [-(-side // length) * length for side, length in zip(shape[1:], window)]
        return window_reverse(output, window, *padded)[..., : shape[1], : shape[2]]


def _last_module(network: torch.nn.Module, site: str) -> str:
    """The module whose output a site is: of a list or a stage of blocks, its last."""
    modules = dict(network.named_modules())
    if len(getattr(modules[site], "blocks", ())):
        site = f"{site}.blocks"
    return f"{site}.{len(modules[site]) - 1}" if isinstance(modules[site], torch.nn.ModuleList) else site


class Standardized(torch.nn.Module):
    """Brings every channel of maps to mean zero and variance one over some pictures.

    A few channels of a denoiser's hidden states are ten times as large as the others and hardly vary; heads that see
    them as they are learn slowly.

    Args:
        channels: of each map.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        for index, count in enumerate(channels):
            self.register_buffer(f"mean_{index}", torch.zeros(count))
            self.register_buffer(f"std_{index}", torch.ones(count))

    @torch.no_grad()
    def fit(self, maps: Sequence[torch.Tensor]) -> None:
        """Take the means and deviations of maps `(B, C, h, w)`."""
        for index, one in enumerate(maps):
            values = one.float().transpose(0, 1).flatten(1)
            getattr(self, f"mean_{index}").copy_(values.mean(dim=1))
            getattr(self, f"std_{index}").copy_(values.std(dim=1).clamp_min(1e-6))

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        columns = ((getattr(self, f"mean_{index}"), getattr(self, f"std_{index}")) for index in range(len(maps)))
        return [(one - mean.view(-1, 1, 1)) / std.view(-1, 1, 1) for one, (mean, std) in zip(maps, columns)]
