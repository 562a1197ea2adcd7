"""A U-shaped denoiser: a stem, an encoder whose stages are made of any of the blocks, and a neck that fuses them."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import apply_lora_scale
from torch import nn

from brickwork.errors import one_of
from brickwork.gen.blocks.norms import make_norm, zeroed
from brickwork.gen.blocks.registry import Block, parse_block_types
from brickwork.gen.blocks.stages import StageSpec, per_stage, resolve_stages, set_drop_path
from brickwork.gen.conditioning import ClassTimeEmbedding
from brickwork.gen.necks.registry import NECKS
from brickwork.gen.networks.base import Adaptable, Denoiser, Passage, SampleOutput, largest_window
from brickwork.gen.networks.cutting import Cuttable, Site
from brickwork.gen.ports import ResidualPorts
from brickwork.gen.presets import UNET_PRESETS
from brickwork.gen.stems.registry import STEMS, stem_shape

BASE_CHANNELS = 128  # of the first stage, where a configuration does not say


class DownStage(nn.Module):
    """Blocks of the encoder at one resolution, and the way to the next, with half the sides, rounded up."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class BlockUNet2DModel(Denoiser, ResidualPorts, Cuttable, ModelMixin, ConfigMixin, Adaptable):
    """A UNet of any blocks of `brickwork.gen.blocks.list_blocks()`, for images of any height and width.

    It stands where diffusers' pipelines expect a UNet: `StableDiffusionPipeline(unet=BlockUNet2DModel(...), ...)`.

    Args beside those of `Denoiser`:
        block_types: the block of each stage from the highest resolution down, as a sequence or one string with
            commas; one name stands for all stages. The decoder mirrors the encoder.
        block_out_channels: channels of each stage; `None` for 128, 256, 512, 512 …
        layers_per_block: blocks of each stage of the encoder, and as many of the decoder; one number for all stages.
        attention_head_dim: channels of a head; divides the channels. One for all stages or one each; `None` for each
            block's own default, as the three that follow.
        mlp_ratio: hidden width of the blocks' MLPs over the width.
        window_size: side of the blocks' windows, in pixels of the stage; a stage's map is at least as large.
        num_attention_heads: in place of `attention_head_dim`.
        stage_options: further settings for each stage, which go before those of its kind of block.
        time_embed_dim: width of the condition, `None` for four times the first stage's channels.
        stem: the way from the sample to the first map, one of `brickwork.gen.stems.list_stems()`.
        neck: the way from the stages' maps back to the first one's size, one of `brickwork.gen.necks.list_necks()`.
        stem_options: settings of the stem.
        neck_options: settings of the neck.
        downsample: `"conv"` for a strided convolution between stages, `"block"` for a block of the stage above, of a
            kind that can change the shape.
    """

    needs_text = True
    aligned = True  # a stage's map has a size of its own
    presets = UNET_PRESETS
    smallest = {
        "sample_size": 16, "num_classes": 5, "block_types": "resnet,dit", "block_out_channels": (16, 24),
        "layers_per_block": 1, "attention_head_dim": 8, "cross_attention_dim": 8,
    }  # fmt: skip
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
        attention_head_dim: int | Sequence[int] | None = None,
        mlp_ratio: float | Sequence[float] | None = None,
        window_size: int | Sequence[int] | None = None,
        block_options: dict[str, dict] | None = None,
        cross_attention_dim: int | None = None,
        time_embed_dim: int | None = None,
        time_cond_proj_dim: int | None = None,
        freq_shift: int = 0,
        convbn_folded: bool = False,
        id2label: dict[int, str] | None = None,
        stem: str = "conv",
        neck: str = "skip",
        stem_options: dict | None = None,
        neck_options: dict | None = None,
        stage_options: Sequence[dict] | None = None,
        num_attention_heads: int | Sequence[int] | None = None,
        downsample: str = "conv",
        drop_path: float = 0.0,
        augment_dim: int | None = None,
    ):
        super().__init__()
        self.widths = widths = _stage_widths(block_types, block_out_channels)
        shared = {
            "attention_head_dim": attention_head_dim,
            "num_attention_heads": num_attention_heads,
            "mlp_ratio": mlp_ratio,
            "window_size": window_size,
            "cross_attention_dim": cross_attention_dim,
        }
        neck_class, lowest = NECKS.find(neck), len(widths) - 1
        layers = _layers(layers_per_block, len(widths), 1 if neck_class.reads_every_block else 0)
        stages = resolve_stages(block_types, widths, layers, shared, block_options, stage_options)
        cond_dim = time_embed_dim or 4 * widths[0]
        one_of("downsample", downsample, ("conv", "block"))

        settings = {"time_cond_proj_dim": time_cond_proj_dim, "augment_dim": augment_dim}
        self.condition = ClassTimeEmbedding(cond_dim, num_classes, freq_shift, **settings)
        self.conv_in = _build_stem(stem, in_channels, widths, stem_options)
        self.reduction, self.stem_levels = stem_shape(self.conv_in)
        self.down_blocks = nn.ModuleList()
        for number, stage in enumerate(stages):
            blocks = [stage.build(cond_dim) for _ in range(stage.layers)]
            down = None
            if number < lowest and self.stem_levels == 1 and downsample == "block":
                down = stage.build(cond_dim, out_dim=widths[number + 1], stride=2)
            elif number < lowest and self.stem_levels == 1:
                down = nn.Conv2d(stage.channels, widths[number + 1], 3, stride=2, padding=1)
            self.down_blocks.append(DownStage(blocks, down))
        self.mid_block = nn.ModuleList(stages[-1].build(cond_dim) for _ in range(neck_class.mid_layers))
        self.up_blocks = neck_class(stages, cond_dim, **NECKS.check_options(neck, neck_options, "neck_options"))
        self.reads_every_block = neck_class.reads_every_block
        self.norm_out = make_norm("group", widths[0])
        # A stem that reduces the sides is answered by a head that shuffles channels into pixels.
        self.conv_out = zeroed(nn.Conv2d(widths[0], (out_channels or in_channels) * self.reduction**2, 3, padding=1))
        self._set_ports(layers)
        self.layer_names = [f"down_blocks.{stage}" for stage in range(len(widths))]
        strides = [self.reduction * 2**number for number in range(len(widths))]
        windows = [largest_window(stage.blocks) for stage in self.down_blocks]
        names = [f"stage {number + 1} of {len(widths)}" for number in range(len(widths))]
        self._set_maps(dict(zip(names, zip(strides, windows))))
        set_drop_path([module for module in self.modules() if isinstance(module, Block)], drop_path)
        if convbn_folded:
            self._fold_norms()

    @classmethod
    def from_stages(cls, stages: Sequence[StageSpec], **config) -> "BlockUNet2DModel":
        """A freshly initialised network of these stages, from the highest resolution down.

        Args:
            stages: block, channels, layers and options of each.
            config: what the constructor takes beside them.
        """
        return cls(
            block_types=[stage.block for stage in stages],
            block_out_channels=[stage.channels for stage in stages],
            layers_per_block=[stage.layers for stage in stages],
            stage_options=[dict(stage.options) for stage in stages],
            **config,
        )

    def _set_ports(self, layers: Sequence[int]) -> None:
        """Skips are added to behind the last stage of the encoder, stages within it."""
        skips, self.read_sites = [], []
        for stage, count in enumerate(layers):
            names = [f"down_blocks.{stage}.blocks.{number}" for number in range(count)] or [f"conv_in.{stage}"]
            self.read_sites += names if self.reads_every_block else names[-1:]
            if self.reads_every_block:
                skips += names
            elif stage < len(layers) - 1:
                skips.append(names[-1])
        self.ports = {
            "down_block_additional_residuals": skips,
            "down_intrablock_additional_residuals": [f"down_blocks.{stage}" for stage in range(len(layers))],
            "mid_block_additional_residual": ["mid_block"],
        }

    def residual_sites(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        strides = [stride for stride, _ in self.maps.values()]
        shapes = [(dim, -(-height // stride), -(-width // stride)) for dim, stride in zip(self.widths, strides)]
        sites = [site for argument in self.ports.values() for site in argument]
        return {site: shapes[-1] if site == "mid_block" else shapes[int(site.split(".")[1])] for site in sites}

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
        down_block_additional_residuals: Sequence[torch.Tensor | None] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[torch.Tensor | None] | None = None,
        additional_context_tokens: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> SampleOutput | tuple:
        """Estimate what the network was trained for.

        Any height and width will do whose smallest map holds a window of its blocks.

        Args beside those of `Denoiser`:
            cross_attention_kwargs: `{"scale": s}` scales the LoRA layers; diffusers' pipelines hand it on.
            added_cond_kwargs: what other UNets of diffusers read beside the text; must be empty here.
            down_block_additional_residuals: for each map that the neck reads of the encoder what is added to it behind
                the encoder, as ControlNet does; see `residual_sites` and `gen.ports`.
            mid_block_additional_residual: what is added behind the blocks in the middle.
            down_intrablock_additional_residuals: for each stage of the encoder what is added to its last block's
                output, before the next stage reads it, as T2I-Adapter does.
        """
        unread = {k: v for k, v in (cross_attention_kwargs or {}).items() if k != "scale"}
        for name, given in (("cross_attention_kwargs", unread), ("added_cond_kwargs", added_cond_kwargs)):
            if given:
                raise ValueError(f"`{name}` has {sorted(given)}, which this network does not read; leave them out.")
        self._find_subnet(subnet)
        tokens = (encoder_hidden_states, additional_context_tokens)
        passage = self.begin(sample, timestep, class_labels, *tokens, timestep_cond, augment_labels)
        stages = self.encode(sample, passage, down_intrablock_additional_residuals)
        output = self.decode(passage, stages, down_block_additional_residuals, mid_block_additional_residual)
        return SampleOutput(sample=output) if return_dict else (output,)

    def encode(
        self,
        sample: torch.Tensor,
        passage: Passage,
        down_intrablock_additional_residuals: Sequence[torch.Tensor | None] | None = None,
        begun: Sequence[list[torch.Tensor]] = (),
        stop: int | None = None,
    ) -> list[list[torch.Tensor]]:
        """The first half of `forward`: for each stage the outputs of its blocks, the last with what was added to it.

        Args beside those of `forward`:
            passage: what `begin` made of its other inputs.
            begun: for each of the first stages, if any, what its blocks are taken to have computed.
            stop: how many stages run; `None` for all.
        """
        inner = self._residuals("down_intrablock_additional_residuals", down_intrablock_additional_residuals)
        maps: Any = []
        if not begun or self.stem_levels > 1:
            maps = self.conv_in(sample.to(self.dtype, memory_format=torch.channels_last))
        maps, stages = [maps] if isinstance(maps, torch.Tensor) else list(maps), list(begun)
        for number in range(len(begun), len(self.down_blocks) if stop is None else stop):
            below = stages[-1][-1] if number and self.stem_levels == 1 else maps[number]
            stages.append(self._run_stage(number, below, passage, inner[number]))
        return stages

    def _run_stage(
        self, number: int, hidden_states: torch.Tensor, passage: Passage, residual: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """The outputs of a stage's blocks, from the stem's map or from what the stage above computed."""
        temb, context, outputs = passage.temb, passage.context, []
        down = self.down_blocks[number - 1].downsample if number else None
        if isinstance(down, Block):
            hidden_states = self._run(down, hidden_states, temb, context)
        elif down is not None:
            hidden_states = down(hidden_states)
        for block in self.down_blocks[number].blocks:
            hidden_states = self._run(block, hidden_states, temb, context)
            outputs.append(hidden_states)
        hidden_states = self._add(hidden_states, residual, "down_intrablock_additional_residuals", number)
        return [*outputs[:-1], hidden_states]

    def seam(self, layers: int) -> list[Site]:
        sites = [site for site in self.read_sites if int(site.split(".")[1]) < layers]
        return [Site(site, group, self.widths[group]) for site, group in ((s, int(s.split(".")[1])) for s in sites)]

    def run_front(self, layers: int, sample: torch.Tensor, timestep: torch.Tensor, **conditions) -> list[torch.Tensor]:
        return self._features(self.encode(sample, self.begin(sample, timestep, **conditions), stop=layers))

    def run_end(
        self, start: int, maps: Sequence[torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor, **conditions
    ) -> torch.Tensor:
        passage, begun = self.begin(sample, timestep, **conditions), [[] for _ in range(start)]
        for site, given in zip(self.seam(start), maps):
            begun[site.group].append(given.contiguous(memory_format=torch.channels_last))
        return self.decode(passage, self.encode(sample, passage, begun=begun))

    def _features(self, stages: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
        """What the neck reads of the stages."""
        return [feature for outputs in stages for feature in outputs[0 if self.reads_every_block else -1 :]]

    def family(self) -> dict[str, Any]:
        strides = [stride for stride, _ in self.maps.values()]
        return {"strides of the stages": strides}

    def decode(
        self,
        passage: Passage,
        stages: Sequence[list[torch.Tensor]],
        down_block_additional_residuals: Sequence[torch.Tensor | None] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The second half of `forward`: the estimate `(B, out_channels, H, W)`."""
        (size, temb, context), features = passage, self._features(stages)
        hidden_states = features[-1]
        for block in self.mid_block:
            hidden_states = self._run(block, hidden_states, temb, context)
        hidden_states = self._add(hidden_states, mid_block_additional_residual, "mid_block_additional_residual")
        name = "down_block_additional_residuals"
        outer = self._residuals(name, down_block_additional_residuals)
        skips = [
            self._add(feature, residual, name, number)
            for number, (feature, residual) in enumerate(zip(features, outer))
        ]
        hidden_states = self.up_blocks(
            [*skips, hidden_states], lambda block, map: self._run(block, map, temb, context)
        )
        output = self.conv_out(nn.functional.silu(self.norm_out(hidden_states)))
        if self.reduction > 1:
            output = nn.functional.pixel_shuffle(output, self.reduction)[..., : size[0], : size[1]]
        return output


def _stage_widths(block_types: str | Sequence[str], block_out_channels: Sequence[int] | None) -> list[int]:
    """Channels of each stage; where nothing says how many stages there are, three."""
    if block_out_channels is not None:
        widths = list(block_out_channels)
        if not widths or any(not isinstance(width, int) or width < 1 for width in widths):
            raise ValueError(f"`block_out_channels` is {widths}; give the channels of at least one stage.")
        return widths
    count = len(parse_block_types(block_types))
    return [BASE_CHANNELS * min(2**stage, 4) for stage in range(3 if count == 1 else count)]


def _layers(layers_per_block: int | Sequence[int], count: int, least: int) -> list[int]:
    layers = per_stage("layers_per_block", layers_per_block, count)
    if any(not isinstance(entry, int) or entry < least for entry in layers):
        raise ValueError(f"`layers_per_block` is {layers}; give at least {least} for each stage.")
    return layers


def _build_stem(name: str, in_channels: int, widths: Sequence[int], options: dict | None) -> nn.Module:
    stem = STEMS.find(name)(in_channels, widths, **STEMS.check_options(name, options, "stem_options"))
    _, levels = stem_shape(stem)
    if levels not in (1, len(widths)):
        raise ValueError(
            f"`stem` is {name!r}, which makes {levels} maps for {len(widths)} stages; give as many stages."
        )
    return stem
