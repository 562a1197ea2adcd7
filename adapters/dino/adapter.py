"""`DinoAdapter`: a picture as a condition, through the dense features of a frozen vision transformer."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brickwork.adapters.dino.encoder import (
    dense_features,
    load_encoder,
    normalisation,
    patches_digest,
    reference_pixels,
    usual_layers,
    usual_size,
)
from brickwork.adapters.dino.projection import FAPM, LearnedUpsample, LinearProjection
from brickwork.adapters.dino.sites import sites_of
from brickwork.adapters.dino.spatial_prior import STRIDES, SpatialPrior, with_prior
from brickwork.adapters.modules import AddResiduals, ModuleAdapter, for_batch, zeroed
from brickwork.errors import one_of, whole_number

PROJECTIONS = ("fapm", "linear")


class DinoParts(nn.Module):
    """All weights of the adapter, the encoder's included.

    Args:
        encoder: frozen.
        widths: channels of the residual at each site.
        layers: how many of the encoder's are read; the sites share them in order.
        rank: of the projection.
        projection: one of `PROJECTIONS`.
        spatial_prior: whether convolutions see the reference too.
    """

    def __init__(
        self,
        encoder: nn.Module,
        widths: Sequence[int],
        layers: int,
        rank: int,
        projection: str,
        spatial_prior: bool = False,
    ):
        super().__init__()
        channels = int(encoder.config.hidden_size)
        self.encoder = encoder
        self.layer_of = [round(site * (layers - 1) / max(1, len(widths) - 1)) for site in range(len(widths))]
        if projection == "fapm":
            self.projection = FAPM(channels, rank, widths)
        else:
            self.projection = LinearProjection(channels, widths)
        self.prior = SpatialPrior(channels) if spatial_prior else None
        self.upsamplers = nn.ModuleList(LearnedUpsample(width) for width in widths)
        self.outputs = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in widths)

    def forward(self, features: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Features of each layer `(B, D, rows, columns)` => a residual `(B, C, *size)` for each site.

        With a spatial prior the pixels `(B, 3, H, W)` come behind the features.
        """
        weight = self.outputs[0].weight
        chosen = [features[layer].to(weight) for layer in self.layer_of]
        if self.prior is not None:
            chosen = with_prior(chosen, self.prior(features[-1].to(weight)))
        projected = self.projection(chosen)
        return [
            output(upsample(feature, size))
            for feature, size, upsample, output in zip(projected, sizes, self.upsamplers, self.outputs, strict=True)
        ]


class DinoAdapter(ModuleAdapter):
    """A picture as a condition for `BlockUNet2DModel`, networks of one resolution, and diffusers' UNets.

    A frozen DINOv2, DINOv3 or ViT sees the reference; features of several of its layers go through Dino U-Net's
    fidelity-aware projection (arXiv 2508.20909) and learned upsampling, and are added to the network's maps by
    convolutions that start at zero.

        adapter = DinoAdapter.create(pipe, encoder="facebook/dinov2-small")
        pipe("robots", reference_image=picture, reference_scale=0.8)          # a pipeline of ours
        with adapter.condition(reference_image=picture, scale=0.8):           # one of diffusers
            pipe("a robot")

    A reference is stretched to the shape of what is drawn. One is for all pictures of a call, or there is one for
    each. Without any, nothing is added. Under guidance both halves of a batch have the reference. What is saved has no
    part of the encoder: `load_adapter` finds it by its name again, or takes it as `encoder=`.
    """

    kind = "dino"
    conditions, strength_argument = ("reference_image",), "reference_scale"
    frozen = options = ("encoder",)

    @classmethod
    def build(
        cls,
        network: nn.Module,
        encoder: str | Path | nn.Module | None = None,
        layers: Sequence[int] | None = None,
        rank: int = 64,
        size: int | None = None,
        projection: str = "fapm",
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        encoder_digest: str | None = None,
        spatial_prior: bool = False,
    ) -> tuple[nn.Module, dict]:
        """The weights for a network that takes residuals (see `sites_of`).

        Args:
            encoder: a name on the hub, a folder, or a loaded model of transformers (`Dinov2Model`, `DINOv3ViTModel`,
                `ViTModel`).
            layers: of the encoder, numbered from 0, rising; the first are for the finest maps. `None` for four at
                equal distances.
            rank: channels of the projection's bases.
            size: side in pixels at which the encoder sees the reference, a multiple of its patch; `None` for 16
                patches.
            projection: `"fapm"`, or `"linear"` for a 1×1 convolution a site.
            image_mean, image_std: of the encoder's pixels in [0, 1]; `None` for what its image processor says.
            encoder_digest: of the encoder that the adapter was made with; another one is warned of.
            spatial_prior: let convolutions see the reference too, for detail that is finer than a patch.

        Raises:
            ValueError: for another kind of encoder or network, or settings that do not fit each other.
        """
        sites = sites_of(network)
        if encoder is None:
            raise ValueError("`encoder` is not known: give the vision transformer that the adapter was made with.")
        model = load_encoder(encoder)
        depth, patch = int(model.config.num_hidden_layers), int(model.config.patch_size)
        layers = usual_layers(model) if layers is None else list(layers)
        in_range = all(type(layer) is int and 0 <= layer < depth for layer in layers)
        if not layers or not in_range or layers != sorted(set(layers)):
            raise ValueError(f"`layers` is {layers!r}; give rising numbers from 0 to {depth - 1}.")
        size = usual_size(model) if size is None else size
        if type(size) is not int or size < patch or size % patch:
            raise ValueError(f"`size` is {size!r}; give a multiple of the encoder's patch of {patch} pixels.")
        whole_number("rank", rank)
        if type(spatial_prior) is not bool or (spatial_prior and size < STRIDES[-1]):
            raise ValueError(
                f"`spatial_prior` is {spatial_prior!r} at a `size` of {size}; give True or False, and a size from "
                f"{STRIDES[-1]} up with True."
            )
        mean, std = normalisation(model, encoder)
        digest = patches_digest(model)
        if encoder_digest not in (None, digest):
            warnings.warn("`encoder` has other weights than the one that the adapter was made with.", stacklevel=4)
        config = {
            "encoder": str(encoder) if isinstance(encoder, str | Path) else model.config.name_or_path or None,
            "layers": layers,
            "rank": rank,
            "size": size,
            "projection": one_of("projection", projection, PROJECTIONS),
            "image_mean": [float(x) for x in (mean if image_mean is None else image_mean)],
            "image_std": [float(x) for x in (std if image_std is None else image_std)],
            "encoder_digest": digest,
            "spatial_prior": spatial_prior,
        }
        return DinoParts(model, sites.widths, len(layers), rank, projection, spatial_prior), config

    def hooks(self) -> list[tuple[nn.Module, str, Any]]:
        return [(self.network, "pre", AddResiduals(self))]

    def prepare(self, reference_image: Any) -> list[torch.Tensor]:
        """The features of one picture or several (see `reference_pixels`) by layer, `(R, D, rows, columns)` each.

        With a spatial prior the pixels come behind them, `(R, 3, size, size)`.
        """
        pixels = reference_pixels(reference_image, self.config["size"])
        device = next(self.network.parameters()).device
        if device.type != "meta":  # where weights are offloaded, the first call says where it computes
            self.parts.to(device)
        weight = next(self.parts.encoder.parameters())
        mean, std = (torch.tensor(self.config[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
        pixels = ((pixels.cpu() - mean) / std).to(weight.device)
        features = dense_features(self.parts.encoder, pixels, self.config["layers"])
        return [*features, pixels] if self.config["spatial_prior"] else features

    def residuals(self, features: list[torch.Tensor], given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the network from those of a call and what `prepare` made of the reference."""
        sample, sites = given["sample"], sites_of(self.network)
        features = [for_batch("reference_image", one, len(sample)).to(sample.device) for one in features]
        return sites.arguments(self.parts(features, sites.sizes(*sample.shape[-2:])))
