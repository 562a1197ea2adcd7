"""`ControlAdapter`: a condition image, such as edges, masks or depth, that a trained UNet follows."""

from typing import Any, Self

import torch
from torch import nn

from brickwork.adapters.control.assistant import COMPOSITIONS, Composite, ControlNet, stage_widths
from brickwork.adapters.modules import AddResiduals, ModuleAdapter, for_batch
from brickwork.adapters.pictures import pixels_of
from brickwork.errors import one_of, whole_number

VARIANTS = ("composite", "controlnet")
CHANNELS = (1, 3)


class ControlAdapter(ModuleAdapter):
    """A condition image for `BlockUNet2DModel` and diffusers' `UNet2DConditionModel`.

    The network stays frozen. Beside it an assistant, a copy of its encoder, reads the sample and the image, and its
    stages are linked into the network's own and all larger ones (CBNet, arXiv 2107.00420), through convolutions that
    start at zero. `variant="controlnet"` is diffusers' ControlNet instead, for comparison.

        adapter = ControlAdapter.create(pipe)
        with adapter.condition(image=edges, scale=0.8):
            pipe("a robot and a cat")

    An image is a PIL image, an array `(H, W, C)` uint8, a tensor `(C, H, W)` or `(B, C, H, W)` in [0, 1], or a list of
    these; one for all pictures or one each. It is resized to the pictures' size. Without a condition nothing changes.
    """

    kind = "control"
    conditions, strength_argument = ("image",), "control_scale"

    @classmethod
    def build(
        cls,
        network: nn.Module,
        variant: str = "composite",
        composition: str = "dhlc",
        image_channels: int = 3,
        pixels: int | None = None,
        middle: bool = False,
    ) -> tuple[nn.Module, dict]:
        """The weights for a network, the UNet.

        Args:
            variant: `"composite"` or `"controlnet"`.
            composition: of a composite, `"dhlc"` (links from every higher stage) or `"same_level"`.
            image_channels: 3, or 1 for grey images.
            pixels: of the image along each side for one of the sample; `None` for 8 with a text-to-image UNet on
                latents, else 1. A pipeline knows.
            middle: whether a composite of a `UNet2DConditionModel` copies the middle too, as a ControlNet does.

        Raises:
            ValueError: for another kind of network, or settings that do not fit it.
        """
        one_of("variant", variant, VARIANTS)
        one_of("composition", composition, COMPOSITIONS)
        if image_channels not in CHANNELS:
            raise ValueError(f"`image_channels` is {image_channels!r}; give 3, or 1 for grey images.")
        stage_widths(network)
        if pixels is None:
            pixels = 8 if network.config.get("cross_attention_dim") else 1
        whole_number("pixels", pixels, more=", such as 8 for Stable Diffusion")
        if variant == "composite":
            parts = Composite(network, image_channels, pixels, composition, middle)
        else:
            parts = ControlNet(network, image_channels, pixels)
        config = {"variant": variant, "composition": composition, "image_channels": image_channels, "pixels": pixels}
        config |= {"middle": True} if middle else {}
        return parts.to(network.device, network.dtype), config

    @classmethod
    def create(cls, model, name: str | None = None, **config) -> Self:
        vae = None if isinstance(model, nn.Module) else getattr(model, "vae", None)
        if vae is not None:
            config = {"pixels": 2 ** (len(vae.config.block_out_channels) - 1)} | config
        return super().create(model, name, **config)

    def hooks(self) -> list[tuple[nn.Module, str, Any]]:
        return [(self.network, "pre", AddResiduals(self))]

    def prepare(self, image: Any = None) -> torch.Tensor:
        """The images as a tensor `(B, C, H, W)` in [0, 1]."""
        tensors = pixels_of("image", image, self.config["image_channels"])
        if len({tensor.shape[-2:] for tensor in tensors}) > 1:
            raise ValueError("`image` has images of several sizes; give them in one.")
        return torch.cat(tensors)

    def residuals(self, image: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        """The assistant's, as arguments of the network, from those of a call and the images."""
        sample, weight = given["sample"], next(self.parts.parameters())
        size = [side * self.config["pixels"] for side in sample.shape[-2:]]
        image = for_batch("image", image, len(sample)).to(sample.device, weight.dtype)
        if list(image.shape[-2:]) != size:
            image = nn.functional.interpolate(image, size=size, mode="bilinear", antialias=True)
        return self.parts(image, given | {"sample": sample.to(weight.dtype)})
