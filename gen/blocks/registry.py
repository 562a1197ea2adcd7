"""What a building block is, and where to find one by name.

A new block is one file in this folder: a subclass of `Block` under `@register_block("name")`, and the name of that
file in `__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from brickwork.gen.blocks.attention import TextAttention, heads_of
from brickwork.gen.blocks.norms import constant
from brickwork.gen.registry import Registry

BLOCKS = Registry("block")
register_block = BLOCKS.register
list_blocks = BLOCKS.names
find_block = BLOCKS.find


class Block(nn.Module, ABC):
    """A block works on a feature map: `forward(hidden_states, temb, encoder_hidden_states=None)`.

    A subclass writes `mix`. Attention to a text is the same for all of them and comes after it. A block keeps the
    shape of its map; one that can change it takes `out_dim` and `stride` by keyword and hands them on. Settings of one
    name mean the same in all blocks: `conv_norm` is the norm of convolutions (see `make_norm`), `modulation` how the
    condition steers the block (see `BlockModulation`), `mlp_ratio` the hidden width of MLPs over `dim`.

    Args:
        dim: channels of the feature map.
        cond_dim: width of the condition.
        out_dim: channels of the output, `None` for `dim`.
        stride: pixels of the input along one of the output, rounded up.
        cross_attention_dim: width of the text's tokens, `None` for a block that reads no text.
        attention_head_dim: channels of a head, in the block's own attention and in that to the text; divides `dim`.

    Attributes:
        window_size: side of the windows that a map is cut into and must hold one of; `None` for a block without.
        map_attentions: names of the submodules in which every pixel of the map attends to all; called with
            `encoder_hidden_states`, keys and values come from those.
        drop_path: share of the images for which training leaves the block out; 0 for none.
    """

    window_size: int | None = None
    map_attentions: tuple[str, ...] = ()
    drop_path = constant("drop_path")

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        out_dim: int | None = None,
        stride: int = 1,
        *,
        cross_attention_dim: int | None = None,
        attention_head_dim: int = 32,
    ):
        super().__init__()
        self.out_dim, self.stride, self.drop_path = out_dim or dim, stride, 0.0
        self.text_attn = None
        if cross_attention_dim is not None:
            heads = heads_of(self.out_dim, attention_head_dim)
            self.text_attn = TextAttention(self.out_dim, cross_attention_dim, heads)

    @abstractmethod
    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """`hidden_states (B, C, H, W)`, `temb (B, cond_dim)` => `(B, C, H, W)`."""

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the block.

        Args:
            hidden_states: `(B, C, H, W)`, any height and width.
            temb: `(B, cond_dim)`, time and class.
            encoder_hidden_states: `(B, length, cross_attention_dim)`, a text; `None` runs the block without one.

        Returns:
            `(B, C, H, W)`.
        """
        updated = self.mix(hidden_states, temb)
        if self.text_attn is not None and encoder_hidden_states is not None:
            updated = updated + self.text_attn(updated, encoder_hidden_states)
        if self.training and self.drop_path and updated.shape == hidden_states.shape:
            kept = torch.rand(len(updated), 1, 1, 1, device=updated.device) >= self.drop_path
            return hidden_states + (updated - hidden_states) * (kept / (1 - self.drop_path)).to(updated.dtype)
        return updated


def build_block(name: str, dim: int, cond_dim: int, shared: dict | None = None, own: dict | None = None) -> Block:
    """A block from its name.

    Args:
        name: one of `list_blocks()`.
        dim: channels.
        cond_dim: width of the condition.
        shared: settings of all stages; a block takes those it knows, and its default where one is `None`.
        own: settings of this kind of block; one that it does not know is an error.
    """
    options = BLOCKS.known_options(name, shared or {}) | BLOCKS.check_options(name, own, "block_options")
    return find_block(name)(dim, cond_dim, **options)


def parse_block_types(block_types: str | Sequence[str], count: int | None = None, unit: str = "stage") -> list[str]:
    """One block name for each stage, or layer.

    Args:
        block_types: one name, names separated by commas, or a sequence of names.
        count: number of stages; one name stands for all of them. `None` for as many as there are names.
        unit: what a stage is called in an error.
    """
    names = block_types.replace(" ", "").split(",") if isinstance(block_types, str) else list(block_types)
    for name in names:
        find_block(name)
    if count is not None and len(names) == 1:
        names = names * count
    if count is not None and len(names) != count:
        raise ValueError(f"`block_types` has {len(names)} entries for {count} {unit}s; give one name, or one each.")
    return names
