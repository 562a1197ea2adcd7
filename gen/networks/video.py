"""A video denoiser out of an image denoiser: pseudo-3D residual units (Qiu et al., arXiv 1711.10305).

A 3×3×3 convolution is a 1×3×3 one over the picture, S, and a 3×1×1 one over time, T. Three units mix them, one after
another over the network's residual blocks as in the authors' prototxt: A: x + T(S(x)); B: x + S(x) + T(x);
C: x + S(x) + T(S(x)). Here x + S(x) is a residual block of the image network, whatever is in it, and T alone is new.
A fourth unit is attention over time, as in AnimateDiff (Guo et al., arXiv 2307.04725), of about as many weights.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from brickwork.errors import one_of
from brickwork.gen.blocks.dit import DiTTokenBlock
from brickwork.gen.blocks.norms import LayerNorm, zeroed
from brickwork.gen.blocks.registry import Block
from brickwork.gen.networks.base import Adaptable, Denoiser, SampleOutput
from brickwork.gen.networks.composite import CompositeDenoiser
from brickwork.gen.networks.inputs import check_class_labels, check_sample, check_timestep
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.networks.parts import Parted, build_part, describe, load_part
from brickwork.gen.networks.stitched import StitchedDenoiser
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.networks.wrapped import class_rows
from brickwork.gen.subnets import FULL, Subnets

_OURS = (BlockUNet2DModel, BlockTransformer2DModel, LegoTransformer2DModel, StitchedDenoiser, CompositeDenoiser)
KINDS = {kind.__name__: kind for kind in (*_OURS, UNet2DModel, UNet2DConditionModel)}
ATTENTION = "T"
UNITS = ("A", "B", "C", ATTENTION)


class TemporalUnit(nn.Module):
    """T, a 3×1×1 convolution over time, which starts out adding nothing.

    In A, T is the identity and the convolution: x + T(S(x)) is the output of the block and what the convolution adds
    to it. B and C normalise and activate what they read.

    Args:
        kind: `"A"`, `"B"` or `"C"`.
        in_channels: of what the residual block reads.
        channels: of what it gives.
    """

    def __init__(self, kind: str, in_channels: int, channels: int):
        super().__init__()
        self.kind = one_of("pattern", kind, UNITS)
        reads = in_channels if kind == "B" else channels
        self.norm = None if kind == "A" else LayerNorm(reads, eps=1e-6)
        self.conv = zeroed(nn.Conv3d(reads, channels, (3, 1, 1), padding=(1, 0, 0)))

    def forward(self, hidden_states: torch.Tensor, output: torch.Tensor, frames: int) -> torch.Tensor:
        """What the unit adds to the block's output.

        Args:
            hidden_states: what the block read, `(B * F, pixels, in_channels)`, the frames of a clip in a row.
            output: what it gave, `(B * F, pixels, channels)`. Where a block changes the channels, this is S(x).
            frames: F.

        Returns:
            `(B, channels, F, pixels)`.
        """
        if self.kind == "B":
            read = hidden_states
        else:
            read = output - hidden_states if hidden_states.shape == output.shape else output
        if self.norm is not None:
            read = nn.functional.silu(self.norm(read))
        clips = read.unflatten(0, (-1, frames)).permute(0, 3, 1, 2)
        return self.conv(clips.unsqueeze(-1)).squeeze(-1)


class TemporalAttention(nn.Module):
    """Every pixel's attention to itself in the other frames, which starts out adding nothing.

    Three quarters of the channels wide, it has about the weights of a pseudo-3D unit. Frames carry sines and cosines
    of their number, so that any number of them may come.

    Args:
        channels: of what the residual block gives.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = max(2, 3 * channels // 4 // 2 * 2)
        self.heads = math.gcd(width, 8)
        self.norm = LayerNorm(channels, eps=1e-6)
        self.qkv, self.proj = nn.Linear(channels, 3 * width, bias=False), zeroed(nn.Linear(width, channels))

    def forward(self, hidden_states: torch.Tensor, output: torch.Tensor, frames: int) -> torch.Tensor:
        """As of a `TemporalUnit`; only the block's output is read."""
        clips = self.norm(output).unflatten(0, (-1, frames)).transpose(1, 2)  # (B, pixels, F, channels)
        places = frame_encoding(frames, clips.shape[-1]).to(clips)
        qkv = self.qkv(clips + places).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0)
        query, key, value = (part.flatten(0, 1).transpose(1, 2) for part in qkv)  # (B * pixels, heads, F, width)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, clips.shape[:2])
        return self.proj(mixed).permute(0, 3, 2, 1)


def frame_encoding(frames: int, channels: int) -> torch.Tensor:
    """Sines and cosines of the frames' numbers `(frames, channels)` (Vaswani et al., arXiv 1706.03762)."""
    pairs = torch.arange((channels + 1) // 2)
    angles = torch.arange(frames)[:, None] / 10_000 ** (2 * pairs / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :channels]


class TemporalUnits(ModelMixin, ConfigMixin):
    """The temporal part of every residual block.

    Args:
        units: kind, channels in and channels out of each.
    """

    _no_split_modules = ["TemporalAttention", "TemporalUnit"]

    @register_to_config
    def __init__(self, units: Sequence[Sequence[Any]] = ()):
        super().__init__()
        self.layers = nn.ModuleList(
            TemporalAttention(channels) if kind == ATTENTION else TemporalUnit(kind, reads, channels)
            for kind, reads, channels in units
        )


class _Clip:
    """How many frames lie in a row in the batch of the running call; 0 for pictures that are none."""

    frames = 0

    @contextmanager
    def of(self, frames: int) -> Iterator[None]:
        before, self.frames = self.frames, frames
        try:
            yield
        finally:
            self.frames = before


class _UnitHook:
    """Adds a unit to a block's output while a clip runs; an object, so that a network's copy has hooks of its own."""

    def __init__(self, unit: nn.Module, clip: _Clip, tokens: bool):
        self.unit, self.clip, self.tokens = unit, clip, tokens

    def __call__(self, block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if not self.clip.frames:
            return None
        read, given = (x.flatten(1, 2) if self.tokens else x.flatten(2).transpose(1, 2) for x in (inputs[0], output))
        added = self.unit(read, given, self.clip.frames)  # (B, C, F, pixels)
        added = added.permute(0, 2, 3, 1) if self.tokens else added.transpose(1, 2)
        return output + added.reshape(output.shape).to(output.dtype)


def residual_blocks(image: nn.Module) -> dict[str, tuple[nn.Module, int, int]]:
    """The residual blocks of an image network by name, in its order, each with its channels in and out.

    Those that change the size of the map are none; nor are blocks within blocks.
    """
    found: dict[str, tuple[nn.Module, int, int]] = {}
    for name, module in image.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, Block) and module.stride == 1:
            found[name] = (module, module.out_dim, module.out_dim)
        elif isinstance(module, DiTTokenBlock):
            dim = module.attn.proj.in_features
            found[name] = (module, dim, dim)
        elif isinstance(module, ResnetBlock2D) and not (module.up or module.down):
            found[name] = (module, module.in_channels, module.out_channels)
    return found


class VideoDenoiser(Parted, ModelMixin, ConfigMixin, Adaptable):
    """An image network whose residual blocks see their neighbours in time; build one with `inflate`.

    Every frame goes through the image network as a picture of its own, and its residual blocks are pseudo-3D units.
    Saved, it holds the image network in `image/` and what is new in `temporal/`.

    Args (its configuration says what the image network's does beside them):
        network: configuration of the image network with its `_class_name`.
        pattern: the units of the residual blocks in turn, of the letters A, B and C, and T for attention over time.
        id2label: class names by number, `None` for the image network's.
    """

    told = (
        "sample_size", "in_channels", "out_channels", "num_classes", "cross_attention_dim", "time_cond_proj_dim",
        "patch_size", "patch_sizes", "window_sizes", "trained_subsets",
    )  # fmt: skip

    pipeline = "VideoPipeline"
    smallest = {"network": {"_class_name": "BlockUNet2DModel"} | BlockUNet2DModel.smallest}

    @register_to_config
    def __init__(
        self,
        network: Mapping[str, Any],
        pattern: str = "ABC",
        id2label: dict[int, str] | None = None,
    ):
        super().__init__()
        if not isinstance(pattern, str) or not pattern or set(pattern) - set(UNITS):
            raise ValueError(f"`pattern` is {pattern!r}; give letters of {', '.join(UNITS)}, such as 'ABC' or 'A'.")
        self.image = build_part("network", network, KINDS)
        blocks = residual_blocks(self.image).values()
        self.temporal = TemporalUnits(
            units=[[pattern[i % len(pattern)], *channels] for i, (_, *channels) in enumerate(blocks)]
        )
        config = self.image.config
        rows = None if isinstance(self.image, _OURS) else class_rows(config)
        self._tell(config, id2label, num_classes=config.num_classes if rows is None else rows - 1 if rows else None)
        self.maps = getattr(self.image, "maps", {})
        self._take_over([self.image])
        self._install()

    def _install(self) -> None:
        """Put the units behind their blocks; to be called once the parts are those to stay."""
        self.clip = _Clip()
        for unit, (block, *_) in zip(self.temporal.layers, residual_blocks(self.image).values()):
            block.register_forward_hook(_UnitHook(unit, self.clip, isinstance(block, DiTTokenBlock)))

    @classmethod
    def _load(cls, path: str, **kwargs):
        model = super()._load(path, **kwargs)
        model._install()
        return model

    def parts(self) -> dict[str, str]:
        return {"image": "image", "temporal": "temporal"}

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """As in diffusers; blocks that run again in the backward pass know their clip's frames."""
        inner = gradient_checkpointing_func or partial(checkpoint, use_reentrant=False)

        def with_frames(block: nn.Module, *inputs):
            return inner(partial(_run_with, self.clip, self.clip.frames, block), *inputs)

        super().enable_gradient_checkpointing(with_frames)

    def subnet_names(self) -> list[str]:
        return self.image.subnet_names() if isinstance(self.image, Denoiser) else [FULL]

    def subnets(self, height: int, width: int) -> Subnets:
        """As of every network, of one frame."""
        return Denoiser.subnets(self, height, width)

    def example_inputs(self, batch: int, height: int, width: int, frames: int = 1) -> dict[str, Any]:
        """As of every network; of clips."""
        make = self.image if isinstance(self.image, Denoiser) else super()
        inputs = make.example_inputs(batch, height, width)
        if self.config.num_classes is not None:
            inputs["class_labels"] = torch.zeros(batch, dtype=torch.long)
        return inputs | {"sample": torch.zeros(batch, self.config.in_channels, frames, height, width)}

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        return_dict: bool = True,
        subnet: str | None = None,
        **conditions,
    ) -> SampleOutput | tuple:
        """Estimate what the network was trained for.

        Args beside those of `Denoiser`:
            sample: `(B, in_channels, F, H, W)`, any number of frames of any size that the image network takes.
            timestep: `(B,)` or a scalar, or for each frame its own `(B, F)`.
            conditions: what else the image network takes; tensors with a batch axis hold for all frames of a clip.
        """
        check_sample(sample, self.config.in_channels, axes=("frames", "height", "width"))
        batch, frames, name = len(sample), sample.shape[2], self._find_subnet(subnet)
        if isinstance(timestep, torch.Tensor) and timestep.ndim == 2 and timestep.shape == (batch, frames):
            timestep = timestep.to(sample.device, torch.float32).flatten()
        else:
            timestep = check_timestep(timestep, batch, sample.device).repeat_interleave(frames)
        labels = check_class_labels(class_labels, batch, self.config.num_classes)
        if isinstance(self.image, Denoiser):
            conditions["subnet"] = name
        elif self.config.num_classes is not None and labels is None:
            labels = sample.new_full((batch,), self.config.num_classes, dtype=torch.long)
        conditions |= {} if labels is None else {"class_labels": labels}
        conditions |= {} if encoder_hidden_states is None else {"encoder_hidden_states": encoder_hidden_states}
        pictures = sample.transpose(1, 2).flatten(0, 1)
        with self.clip.of(frames):
            output = self.image(pictures, timestep, return_dict=False, **_for_frames(conditions, batch, frames))[0]
        output = output.unflatten(0, (batch, frames)).transpose(1, 2)
        return SampleOutput(sample=output) if return_dict else (output,)


def inflate(model: ModelMixin | str | os.PathLike, pattern: str = "ABC") -> VideoDenoiser:
    """A video denoiser out of an image denoiser, whose frames are what the image denoiser makes of them until trained.

    Args:
        model: a trained network of ours, diffusers' `UNet2DModel` or `UNet2DConditionModel`, which stays as it is; or
            a folder of such a network, of a pipeline with it, or of a training run.
        pattern: as of `VideoDenoiser`.

    Raises:
        ValueError: for another network, one without residual blocks, or another pattern.
    """
    model = load_part("model", model, KINDS, "cannot be inflated")
    if not residual_blocks(model):
        raise ValueError("`model` has no residual blocks that keep their map's size; give a network with some.")
    with torch.device("meta"):
        video = VideoDenoiser(network=describe(model), pattern=pattern)
    units = video.temporal.config.units
    video.image, video.temporal = deepcopy(model), TemporalUnits(units=units)
    video.temporal.layers.to(model.device, model.dtype)
    video._install()
    return video.eval()


def _for_frames(value: Any, batch: int, frames: int) -> Any:
    """Tensors with a batch axis once for each frame, those in dictionaries too; anything else as it is."""
    if isinstance(value, dict):
        return {name: _for_frames(entry, batch, frames) for name, entry in value.items()}
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch:
        return value.repeat_interleave(frames, dim=0)
    return value


def _run_with(clip: _Clip, frames: int, block: nn.Module, *inputs):
    with clip.of(frames):
        return block(*inputs)
