"""A U-shaped denoiser whose stages are made of any of the blocks."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import apply_lora_scale
from torch import nn

from brickwork.gen.blocks.norms import make_norm
from brickwork.gen.blocks.registry import build_block, check_block_options, parse_block_types
from brickwork.gen.conditioning import ClassTimeEmbedding
from brickwork.gen.networks.base import Denoiser, SampleOutput, largest_window
from brickwork.gen.networks.inputs import check_class_labels, check_sample, check_timestep, check_tokens
from brickwork.gen.presets import UNET_PRESETS

BASE_CHANNELS = 128  # of the first stage, where a configuration does not say


class DownStage(nn.Module):
    """Blocks of the encoder at one resolution, and the way to the next, with half the sides, rounded up."""

    def __init__(self, blocks: list[nn.Module], dim: int, next_dim: int | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if next_dim is None else nn.Conv2d(dim, next_dim, 3, stride=2, padding=1)


class UpStage(nn.Module):
    """Blocks of the decoder at one resolution, each after what its twin of the encoder saw, and the way up."""

    def __init__(self, blocks: list[nn.Module], dim: int, next_dim: int | None):
        super().__init__()
        self.fuse = nn.ModuleList(nn.Conv2d(2 * dim, dim, 1) for _ in blocks)
        self.blocks = nn.ModuleList(blocks)
        self.upsample = None if next_dim is None else nn.Conv2d(dim, next_dim, 3, padding=1)


class BlockUNet2DModel(Denoiser, ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A UNet of any blocks of `brickwork.gen.blocks.list_blocks()`, for images of any height and width.

    It stands where diffusers' pipelines expect a UNet: `StableDiffusionPipeline(unet=BlockUNet2DModel(...), ...)`.

    Args:
        sample_size: side of the training images, in pixels of what the network sees (latents for a latent model).
        in_channels: channels of `sample`.
        out_channels: channels of the estimate, `None` for as many as `in_channels`.
        num_classes: number of classes, `None` for a network without them.
        block_types: the block of each stage from the highest resolution down, as a sequence or one string with
            commas; one name stands for all stages. The decoder mirrors the encoder.
        block_out_channels: channels of each stage; `None` for 128, 256, 512, 512 …
        layers_per_block: blocks of each stage of the encoder, and as many of the decoder; one number for all stages.
        attention_head_dim: channels of a head; divides the channels. `None` for each block's own default, as below.
        mlp_ratio: hidden width of the blocks' MLPs over the width.
        window_size: side of the blocks' windows, in pixels of the stage; a stage's map is at least as large.
        block_options: further settings by block name, such as `{"i2rmb": {"expand_ratio": 2.0}}`.
        cross_attention_dim: width of a text's tokens, `None` for a network that reads no text.
        time_embed_dim: width of the condition, `None` for four times the first stage's channels.
        time_cond_proj_dim: width of `timestep_cond`, such as an embedded guidance scale; `None` for none.
        freq_shift: see `ClassTimeEmbedding`.
        convbn_folded: whether BatchNorms are in the convolutions before them, as `set_convbn_mode(model, "deploy")`
            leaves them.
        id2label: class names by number, for pipelines.
    """

    presets = UNET_PRESETS
    _skip_layerwise_casting_patterns = ["condition", "conv_in", "norm", "modulation", "conv_out"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int | None = None,
        num_classes: int | None = None,
        block_types: str | Sequence[str] = "resnet",
        block_out_channels: Sequence[int] | None = None,
        layers_per_block: int | Sequence[int] = 2,
        attention_head_dim: int | None = None,
        mlp_ratio: float | None = None,
        window_size: int | None = None,
        block_options: dict[str, dict] | None = None,
        cross_attention_dim: int | None = None,
        time_embed_dim: int | None = None,
        time_cond_proj_dim: int | None = None,
        freq_shift: int = 0,
        convbn_folded: bool = False,
        id2label: dict[int, str] | None = None,
    ):
        super().__init__()
        widths = _stage_widths(block_types, block_out_channels)
        names = parse_block_types(block_types, len(widths))
        layers = _per_stage("layers_per_block", layers_per_block, len(widths))
        options = check_block_options(block_options, names)
        cond_dim = time_embed_dim or 4 * widths[0]
        shared = {
            "attention_head_dim": attention_head_dim,
            "mlp_ratio": mlp_ratio,
            "window_size": window_size,
            "cross_attention_dim": cross_attention_dim,
        }

        def blocks(stage: int, count: int, decoder: bool = False) -> list[nn.Module]:
            settings, own = shared | {"decoder": decoder or None}, options.get(names[stage])
            return [build_block(names[stage], widths[stage], cond_dim, settings, own) for _ in range(count)]

        stages = range(len(widths))
        self.condition = ClassTimeEmbedding(cond_dim, num_classes, freq_shift, time_cond_proj_dim)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownStage(blocks(stage, layers[stage]), widths[stage], next_width)
            for stage, next_width in zip(stages, [*widths[1:], None])
        )
        self.mid_block = nn.ModuleList(blocks(stages[-1], 1))
        self.up_blocks = nn.ModuleList(
            UpStage(blocks(stage, layers[stage], decoder=True), widths[stage], next_width)
            for stage, next_width in zip(reversed(stages), [*widths[-2::-1], None])
        )
        self.norm_out = make_norm("group", widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels or in_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        self._set_maps(
            {
                f"stage {number + 1} of {len(widths)}": (2**number, largest_window(stage.blocks))
                for number, stage in enumerate(self.down_blocks)
            }
        )
        if convbn_folded:
            self._fold_norms()

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        return_dict: bool = True,
        subnet: str | None = None,
    ) -> SampleOutput | tuple:
        """Estimate what the network was trained for.

        Args:
            sample: `(B, in_channels, H, W)`, scaled as the scheduler does; any height and width whose smallest map
                holds a window of its blocks.
            timestep: `(B,)` or a scalar, what the scheduler says.
            encoder_hidden_states: `(B, length, cross_attention_dim)`, a text, for networks that read one.
            class_labels: integers `(B,)` from 0 to `num_classes`, which itself stands for "no class", as does `None`.
            timestep_cond: `(B, time_cond_proj_dim)`.
            cross_attention_kwargs: `{"scale": s}` scales the LoRA layers; diffusers' pipelines hand it on.
            added_cond_kwargs: what other UNets of diffusers read beside the text; must be empty here.
            return_dict: return an output object rather than a tuple.
            subnet: `"full"`, which `None` means too: the network has no cheaper version of itself inside it.

        Raises:
            ValueError: for wrong channels, sizes below a window, labels out of range, or conditions that do not fit
                the network.
        """
        self._check_conditions(timestep_cond, cross_attention_kwargs, added_cond_kwargs)
        self._find_subnet(subnet)
        check_sample(sample, self.config.in_channels)
        self._check_maps(sample)
        batch, dtype = sample.shape[0], self.dtype
        width_of_text = self.config.cross_attention_dim
        check_tokens("encoder_hidden_states", encoder_hidden_states, batch, width_of_text, required=True)
        timestep = check_timestep(timestep, batch, sample.device)
        labels = check_class_labels(class_labels, batch, self.config.num_classes)
        temb = self.condition(timestep, labels, dtype, timestep_cond)

        hidden_states, skips = self.conv_in(sample.to(dtype, memory_format=torch.channels_last)), []
        for stage in self.down_blocks:
            for block in stage.blocks:
                hidden_states = self._run(block, hidden_states, temb, encoder_hidden_states)
                skips.append(hidden_states)
            if stage.downsample is not None:
                hidden_states = stage.downsample(hidden_states)
        for block in self.mid_block:
            hidden_states = self._run(block, hidden_states, temb, encoder_hidden_states)
        for stage in self.up_blocks:
            for fuse, block in zip(stage.fuse, stage.blocks):
                hidden_states = fuse(torch.cat([hidden_states, skips.pop()], dim=1))
                hidden_states = self._run(block, hidden_states, temb, encoder_hidden_states)
            if stage.upsample is not None:
                # To the size of the encoder's map, which odd sides made larger than half.
                hidden_states = nn.functional.interpolate(hidden_states, size=skips[-1].shape[-2:], mode="nearest")
                hidden_states = stage.upsample(hidden_states)
        output = self.conv_out(nn.functional.silu(self.norm_out(hidden_states)))
        if not return_dict:
            return (output,)
        return SampleOutput(sample=output)

    def _check_conditions(
        self, timestep_cond: torch.Tensor | None, cross_attention_kwargs: dict | None, added_cond_kwargs: dict | None
    ) -> None:
        if timestep_cond is not None and self.config.time_cond_proj_dim is None:
            raise ValueError("`timestep_cond` was given, but this network has no `time_cond_proj_dim`; leave it out.")
        for name, given in (
            ("cross_attention_kwargs", {k: v for k, v in (cross_attention_kwargs or {}).items() if k != "scale"}),
            ("added_cond_kwargs", added_cond_kwargs or {}),
        ):
            if given:
                raise ValueError(f"`{name}` has {sorted(given)}, which this network does not read; leave them out.")


def _stage_widths(block_types: str | Sequence[str], block_out_channels: Sequence[int] | None) -> list[int]:
    """Channels of each stage; where nothing says how many stages there are, three."""
    if block_out_channels is not None:
        widths = list(block_out_channels)
        if not widths or any(not isinstance(width, int) or width < 1 for width in widths):
            raise ValueError(f"`block_out_channels` is {widths}; give the channels of at least one stage.")
        return widths
    count = len(parse_block_types(block_types))
    return [BASE_CHANNELS * min(2**stage, 4) for stage in range(3 if count == 1 else count)]


def _per_stage(name: str, value: int | Sequence[int], count: int) -> list[int]:
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise ValueError(f"`{name}` has {len(values)} entries for {count} stages; give one number, or one each.")
    if any(entry < 1 for entry in values):
        raise ValueError(f"`{name}` is {values}; give at least 1 for each stage.")
    return values
