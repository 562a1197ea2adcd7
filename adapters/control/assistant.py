"""The networks beside a frozen UNet that read a condition image, and what they add to it.

`Composite` is CBNet's composition (arXiv 2107.00420): a copy of the encoder, the assistant, gives each stage of the
lead the features of its own and of every higher stage. `ControlNet` is diffusers' network (arXiv 2302.05543).
"""

import math
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

from brickwork.adapters.modules import zeroed

DECODER = {"mid_block": None, "up_blocks": nn.ModuleList, "conv_norm_out": None, "norm_out": None}
COMPOSITIONS = ("dhlc", "same_level")
# What is handed to the assistant as the network gets it.
READ = (
    "encoder_hidden_states", "class_labels", "timestep_cond", "cross_attention_kwargs", "added_cond_kwargs",
    "attention_mask", "encoder_attention_mask", "additional_context_tokens",
)  # fmt: skip


class Pass:
    """One call of an assistant: what is added behind its first layer, and what its stages made of it."""

    def __init__(self, hint: torch.Tensor):
        self.hint, self.features = hint, []


_PASS: ContextVar[Pass | None] = ContextVar("pass", default=None)  # of this thread


class Guided(nn.Module):
    """A network's first layer, with the features of the condition image added to what it gives."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, sample: torch.Tensor) -> Any:
        output, hint = self.layer(sample), _PASS.get().hint
        first = output if isinstance(output, torch.Tensor) else output[0]
        if hint.shape[-2:] != first.shape[-2:]:  # a stem that makes maps smaller
            hint = nn.functional.adaptive_avg_pool2d(hint, first.shape[-2:])
        guided = first + hint
        return guided if isinstance(output, torch.Tensor) else [guided, *output[1:]]


class Link(nn.Module):
    """From one stage's map `(B, C, h, w)` to another's `(B, D, H, W)`: a convolution of zeros, nearest upsampling."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = zeroed(nn.Conv2d(channels, out_channels, 1))

    def forward(self, feature: torch.Tensor, size: torch.Size) -> torch.Tensor:
        linked = self.conv(feature)
        return linked if linked.shape[-2:] == size else nn.functional.interpolate(linked, size=tuple(size))


class Composite(nn.Module):
    """A copy of a UNet's encoder that reads the sample and a condition image, and links from its stages.

    Args:
        network: a `BlockUNet2DModel` or `UNet2DConditionModel`, which stays as it is.
        image_channels: of the condition image.
        pixels: of the image along each side for one of the sample.
        composition: `"dhlc"`: each stage is linked to its own and every higher one; `"same_level"`: to its own.
        middle: copy the middle of a `UNet2DConditionModel` too, as a stage behind the last one, linked as that is.
    """

    def __init__(self, network: nn.Module, image_channels: int, pixels: int, composition: str, middle: bool = False):
        super().__init__()
        self.ours, widths = not isinstance(network, UNet2DConditionModel), stage_widths(network)
        if middle and (self.ours or network.mid_block is None):
            raise ValueError(
                f"`middle` is True, which is for a UNet2DConditionModel with a middle block; leave it out for this "
                f"{type(network).__name__}."
            )
        self.encoder = encoder_of(network, middle)
        width = widths[0]
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(pixels),
            nn.Conv2d(image_channels * pixels**2, width, 3, padding=1),
            nn.SiLU(),
            zeroed(nn.Conv2d(width, width, 3, padding=1)),
        )
        self.encoder.conv_in = Guided(self.encoder.conv_in)
        last = {i: len(widths) if composition == "dhlc" else i + 1 for i in range(len(widths))}
        sources = {i: [*range(i, last[i])] for i in last}
        if middle:
            for linked in sources.values():
                linked += [len(widths)] if len(widths) - 1 in linked else []
        self.links = nn.ModuleList(
            nn.ModuleDict({str(j): Link([*widths, widths[-1]][j], widths[i]) for j in linked})
            for i, linked in sources.items()
        )
        if not self.ours:
            for stage in self.encoder.down_blocks:
                # Where diffusers adds residuals: behind the last attention of a stage, or behind the stage.
                site = stage.attentions[-1] if getattr(stage, "has_cross_attention", False) else stage
                site.register_forward_hook(_note)
            if middle:
                self.encoder.mid_block.register_forward_hook(_note)

    def forward(self, image: torch.Tensor, given: Mapping[str, Any]) -> dict[str, Any]:
        """Residuals by the argument of the network that takes them.

        Args:
            image: `(B, C, H, W)`.
            given: the network's arguments by name.
        """
        conditions = {name: given[name] for name in READ if given.get(name) is not None}
        call = Pass(self.stem(image))
        token = _PASS.set(call)
        try:
            if self.ours:
                passage = self.encoder.begin(given["sample"], given["timestep"], **conditions)
                features = [outputs[-1] for outputs in self.encoder.encode(given["sample"], passage)]
            else:
                self.encoder(given["sample"], given["timestep"], **conditions)
                features = call.features
        finally:
            _PASS.reset(token)
        residuals = [
            sum(link(features[int(source)], features[stage].shape[-2:]) for source, link in links.items())
            for stage, links in enumerate(self.links)
        ]
        return {"down_intrablock_additional_residuals": residuals}


class ControlNet(nn.Module):
    """diffusers' ControlNet of a UNet: residuals for every skip connection and the middle.

    Args:
        network: a `UNet2DConditionModel`.
        image_channels: of the condition image.
        pixels: of the image along each side for one of the sample, a power of two.
    """

    def __init__(self, network: nn.Module, image_channels: int, pixels: int):
        super().__init__()
        if not isinstance(network, UNet2DConditionModel):
            raise ValueError(
                f"`variant` is 'controlnet', which is for a UNet2DConditionModel; a {type(network).__name__} takes "
                "'composite'."
            )
        if 2 ** round(math.log2(pixels)) != pixels:
            raise ValueError(
                f"`pixels` is {pixels}; a ControlNet halves the image again and again: give a power of 2."
            )
        widths = (16, 32, 96, 256)
        widths = (*widths, *(256,) * 8)[: round(math.log2(pixels)) + 1]
        self.controlnet = ControlNetModel.from_unet(
            network, conditioning_channels=image_channels, conditioning_embedding_out_channels=widths
        )

    def forward(self, image: torch.Tensor, given: Mapping[str, Any]) -> dict[str, Any]:
        """As `Composite.forward`."""
        conditions = {name: given[name] for name in READ[:-2] if given.get(name) is not None}
        down, middle = self.controlnet(
            given["sample"], given["timestep"], controlnet_cond=image, return_dict=False, **conditions
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def stage_widths(network: nn.Module) -> list[int]:
    """Channels of each stage of the encoder, from the highest resolution down.

    Raises:
        ValueError: for a network without stages that take residuals.
    """
    if isinstance(network, UNet2DConditionModel):
        return list(network.config.block_out_channels)
    if callable(getattr(network, "encode", None)) and hasattr(network, "widths"):
        return list(network.widths)
    raise ValueError(
        f"a {type(network).__name__} has no stages that take residuals; give a BlockUNet2DModel or a "
        "UNet2DConditionModel, or a pipeline with one."
    )


def encoder_of(network: nn.Module, middle: bool = False) -> nn.Module:
    """A copy of a UNet without its decoder, and without what hooks have put on the original.

    Args:
        network: the UNet.
        middle: whether the copy keeps the blocks in the middle.

    Raises:
        ValueError: for a network whose layers something else has replaced, such as a LoRA.
    """
    twin = type(network).from_config(network.config)
    for name, empty in DECODER.items():
        if hasattr(twin, name) and not (middle and name == "mid_block"):
            setattr(twin, name, empty and empty())
    twin.conv_out = nn.Identity()
    own = twin.state_dict()
    given = {name: tensor.detach() for name, tensor in network.state_dict().items() if name in own}
    if given.keys() != own.keys():
        missing = sorted(own.keys() - given.keys())[0]
        raise ValueError(f"the network has no {missing!r} of its own, as with a LoRA on it; unload that, or fuse it.")
    twin.load_state_dict(given)
    return twin.to(network.device, network.dtype).requires_grad_(True)


def _note(module: nn.Module, inputs: tuple, output: Any) -> None:
    _PASS.get().features.append(output if isinstance(output, torch.Tensor) else output[0])
