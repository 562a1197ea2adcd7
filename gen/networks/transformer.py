"""A stack of blocks at one resolution: DiT (Peebles & Xie, arXiv 2212.09748) and what replaces its blocks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from brickwork.gen.blocks.modulation import Modulation, modulate
from brickwork.gen.blocks.norms import LayerNorm, zeroed
from brickwork.gen.blocks.stages import resolve_stages, set_drop_path
from brickwork.gen.blocks.windows import pad_to_multiple, window_partition, window_reverse
from brickwork.gen.conditioning import ClassTimeEmbedding, sincos_position_table
from brickwork.gen.networks.base import Adaptable, Denoiser, Passage, SampleOutput, largest_window
from brickwork.gen.networks.cutting import Cuttable, Site
from brickwork.gen.original.dit_checkpoints import load_original_dit
from brickwork.gen.ports import ResidualPorts
from brickwork.gen.presets import TRANSFORMER_PRESETS


class BlockTransformer2DModel(Denoiser, ResidualPorts, Cuttable, ModelMixin, ConfigMixin, Adaptable):
    """Patches of an image go through a stack of blocks, any of `brickwork.gen.blocks.list_blocks()`.

    Positions are a fixed sine-cosine table of the patch's row and column, counted from the top left corner. A larger
    image continues the same formula with rows and columns that were not trained; nothing is stretched. The layers can
    be run one stretch after another (`begin`, `embed`, `run_layers`, `head`), so that another network takes over.

    Args beside those of `Denoiser` (DiT's presets have twice as many `out_channels`, half for the learned variance):
        patch_size: side of a patch.
        block_types: a block name for all layers, or one for each layer.
        num_layers: number of blocks.
        hidden_size: width, a multiple of 4.
        attention_head_dim: channels of a head; divides the width. One for all layers or one each; `None` for each
            block's own default, as the two that follow.
        mlp_ratio: hidden width of the blocks' MLPs over the width.
        window_size: side of the blocks' windows, in patches; an image is at least as large.
        norm_elementwise_affine: whether the last norm has a weight and a bias of its own.
        layer_options: further settings for each layer, which go before those of its kind of block.
    """

    presets = TRANSFORMER_PRESETS
    smallest = {
        "sample_size": 16, "in_channels": 3, "num_classes": 5, "block_types": "dit,resnet", "num_layers": 2,
        "hidden_size": 16, "attention_head_dim": 8, "cross_attention_dim": 8,
    }  # fmt: skip
    _skip_layerwise_casting_patterns = ["condition", "patch_embed", "norm", "modulation", "proj_out"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_classes: int | None = None,
        block_types: str | Sequence[str] = "dit",
        num_layers: int = 12,
        hidden_size: int = 384,
        attention_head_dim: int | Sequence[int] | None = None,
        mlp_ratio: float | Sequence[float] | None = None,
        window_size: int | Sequence[int] | None = None,
        block_options: dict[str, dict] | None = None,
        cross_attention_dim: int | None = None,
        norm_elementwise_affine: bool = False,
        freq_shift: int = 0,
        convbn_folded: bool = False,
        id2label: dict[int, str] | None = None,
        layer_options: Sequence[dict] | None = None,
        drop_path: float = 0.0,
        augment_dim: int | None = None,
    ):
        super().__init__()
        if patch_size < 1 or num_layers < 1 or sample_size < patch_size:
            raise ValueError(
                f"`sample_size`, `patch_size` and `num_layers` are {sample_size}, {patch_size} and {num_layers}; give "
                "a patch of at least 1, an image of at least one patch, and at least 1 layer."
            )
        shared = {
            "attention_head_dim": attention_head_dim,
            "mlp_ratio": mlp_ratio,
            "window_size": window_size,
            "cross_attention_dim": cross_attention_dim,
        }
        counts = ([hidden_size] * num_layers, [1] * num_layers)
        layers = resolve_stages(block_types, *counts, shared, block_options, layer_options, "layer")
        self.out_channels = out_channels or in_channels
        self.condition = ClassTimeEmbedding(hidden_size, num_classes, freq_shift, augment_dim=augment_dim)
        self.patch_embed = nn.Linear(in_channels * patch_size**2, hidden_size)
        # The training grid's part of the formula, stored as in the authors' checkpoints. Never trained.
        side = -(-sample_size // patch_size)
        self.pos_embed = nn.Parameter(sincos_position_table(hidden_size, side, side), requires_grad=False)
        self.blocks = nn.ModuleList(layer.build(hidden_size) for layer in layers)
        set_drop_path(self.blocks, drop_path)
        self.layer_names = [f"blocks.{number}" for number in range(num_layers)]
        self.ports = {"block_additional_residuals": self.layer_names}
        self.norm_out = LayerNorm(hidden_size, eps=1e-6, elementwise_affine=norm_elementwise_affine)
        self.final_modulation = Modulation(hidden_size, hidden_size, 2)
        self.proj_out = nn.Linear(hidden_size, self.out_channels * patch_size**2)
        self._set_maps({"the map of patches": (patch_size, largest_window(self.blocks))})
        self._init_weights()
        if convbn_folded:
            self._fold_norms()

    def _init_weights(self) -> None:
        # Other blocks than DiT's bring their own start.
        cores = [block.core for block in self.blocks if hasattr(block, "core")]
        for linear in (self.patch_embed, *(linear for core in cores for linear in core.linears())):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        zeroed(self.proj_out)

    @classmethod
    def from_preset(
        cls, name: str, in_channels: int = 4, num_classes: int | None = 1000, **overrides
    ) -> "BlockTransformer2DModel":
        """`Denoiser.from_preset`, with learned variance unless `out_channels=in_channels` leaves it away."""
        return super().from_preset(name, in_channels, num_classes, **{"out_channels": 2 * in_channels} | overrides)

    @classmethod
    def from_original(cls, path: str | Path, attention_head_dim: int | None = None) -> "BlockTransformer2DModel":
        """Load a checkpoint of DiT's authors, or of diffusers' `DiTTransformer2DModel`; see `load_original_dit`.

        The two compute the time's frequencies differently (see `freq_shift`); each gets those of its own code.
        """
        model = cls._from_tensors(*load_original_dit(path, attention_head_dim))
        model.pos_embed.requires_grad_(False)
        return model

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """The position table of a grid, `(rows * columns, hidden_size)`."""
        side = -(-self.config.sample_size // self.config.patch_size)
        if (rows, columns) == (side, side):
            return self.pos_embed
        return sincos_position_table(self.config.hidden_size, rows, columns).to(self.pos_embed)

    def residual_sites(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        patch = self.config.patch_size
        shape = (self.config.hidden_size, -(-height // patch), -(-width // patch))
        return dict.fromkeys(self.ports["block_additional_residuals"], shape)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        return_dict: bool = True,
        subnet: str | None = None,
        block_additional_residuals: Sequence[torch.Tensor | None] | None = None,
        additional_context_tokens: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> SampleOutput | tuple:
        """Estimate what the network was trained for (the noise, for DiT's weights).

        Any height and width will do of at least one patch and, in patches, one window. Sides that patches do not
        divide are padded with zeros at the bottom and the right.

        Args beside those of `Denoiser`:
            block_additional_residuals: for each block what is added to its output (see `gen.ports`), a map
                `(B, hidden_size, H / patch, W / patch)`, sides rounded up, or its tokens `(B, tokens, hidden_size)`.
        """
        self._find_subnet(subnet)
        tokens = (encoder_hidden_states, additional_context_tokens)
        passage = self.begin(sample, timestep, class_labels, *tokens, augment_labels=augment_labels)
        residuals = self._residuals("block_additional_residuals", block_additional_residuals)
        hidden_states = self.run_layers(self.embed(sample, passage), passage, residuals=residuals)
        output = self.head(hidden_states, passage)
        return SampleOutput(sample=output) if return_dict else (output,)

    def _grid(self, passage: Passage) -> tuple[int, int]:
        """Rows and columns of the map that the layers work on."""
        height, width = passage.size
        return -(-height // self.config.patch_size), -(-width // self.config.patch_size)

    def embed(self, sample: torch.Tensor, passage: Passage) -> torch.Tensor:
        """What the first layer reads, `(B, hidden_size, rows, columns)`."""
        patch, grid, dtype = self.config.patch_size, self._grid(passage), self.dtype
        patches = window_partition(pad_to_multiple(sample.to(dtype), patch), grid, patch_size=patch)
        tokens = self.patch_embed(patches)[:, 0] + self.positions(*grid).to(dtype)  # (B, tokens, D)
        return tokens.transpose(1, 2).unflatten(2, grid)

    def run_layers(
        self,
        hidden_states: torch.Tensor,
        passage: Passage,
        start: int = 0,
        stop: int | None = None,
        residuals: Sequence[torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """The map behind layer `stop - 1`, from the one before layer `start`."""
        residuals = residuals or [None] * len(self.blocks)
        for number in range(len(self.blocks))[start:stop]:
            hidden_states = self._run(self.blocks[number], hidden_states, passage.temb, passage.context)
            hidden_states = self._add(hidden_states, residuals[number], "block_additional_residuals", number)
        return hidden_states

    def seam(self, layers: int) -> list[Site]:
        return [Site(f"blocks.{layers - 1}", 0, self.config.hidden_size)]

    def run_front(self, layers: int, sample: torch.Tensor, timestep: torch.Tensor, **conditions) -> list[torch.Tensor]:
        passage = self.begin(sample, timestep, **conditions)
        return [self.run_layers(self.embed(sample, passage), passage, stop=layers)]

    def run_end(
        self, start: int, maps: Sequence[torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor, **conditions
    ) -> torch.Tensor:
        passage = self.begin(sample, timestep, **conditions)
        return self.head(self.run_layers(maps[0], passage, start=start), passage)

    def family(self) -> dict[str, Any]:
        return {"patch_size": self.config.patch_size}

    def head(self, hidden_states: torch.Tensor, passage: Passage) -> torch.Tensor:
        """The estimate `(B, out_channels, H, W)` from the map behind the last layer."""
        patch, grid, (height, width) = self.config.patch_size, self._grid(passage), passage.size
        padded = [side * patch for side in grid]
        shift, scale = self.final_modulation(passage.temb)
        tokens = self.norm_out(hidden_states.flatten(2).transpose(1, 2)[:, None])
        tokens = self.proj_out(modulate(tokens, shift, scale))
        output = window_reverse(tokens, grid, *padded, patch_size=patch)
        return output[..., :height, :width]
