"""What a building block is, and where to find one by name.

A new block is one file in this folder: a subclass of `Block` under `@register_block("name")`, and the name of that
file in `__init__.py`.
"""

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import nn

from brickwork.gen.blocks.attention import TextAttention, heads_of

_BLOCKS: dict[str, type["Block"]] = {}


class Block(nn.Module, ABC):
    """A block keeps the shape of a feature map: `forward(hidden_states, temb, encoder_hidden_states=None)`.

    A subclass writes `mix`. Attention to a text is the same for all of them and comes after it.

    Args:
        dim: channels of the feature map.
        cond_dim: width of the condition.
        cross_attention_dim: width of the text's tokens, `None` for a block that reads no text.
        attention_head_dim: channels of a head of the attention to the text.

    Attributes:
        window_size: side of the windows that a map is cut into and must hold one of; `None` for a block without.
    """

    window_size: int | None = None

    def __init__(
        self, dim: int, cond_dim: int, *, cross_attention_dim: int | None = None, attention_head_dim: int = 32
    ):
        super().__init__()
        self.text_attn = None
        if cross_attention_dim is not None:
            self.text_attn = TextAttention(dim, cross_attention_dim, heads_of(dim, attention_head_dim))

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
        hidden_states = self.mix(hidden_states, temb)
        if self.text_attn is not None and encoder_hidden_states is not None:
            hidden_states = hidden_states + self.text_attn(hidden_states, encoder_hidden_states)
        return hidden_states


def register_block(name: str) -> Callable[[type[Block]], type[Block]]:
    """Class decorator that makes a block known under a name."""

    def register(block_class: type[Block]) -> type[Block]:
        if name in _BLOCKS:
            raise ValueError(f"`name` is {name!r}, which {_BLOCKS[name].__name__} has already; choose another.")
        _BLOCKS[name] = block_class
        return block_class

    return register


def list_blocks() -> list[str]:
    """The names of all blocks, sorted."""
    return sorted(_BLOCKS)


def find_block(name: str) -> type[Block]:
    """The block of a name, or a `ValueError` with the names that come near."""
    if name in _BLOCKS:
        return _BLOCKS[name]
    near = difflib.get_close_matches(str(name), _BLOCKS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"There is no block {name!r}; {hint}All: {', '.join(list_blocks())}.")


def build_block(name: str, dim: int, cond_dim: int, shared: dict | None = None, own: dict | None = None) -> Block:
    """A block from its name.

    Args:
        name: one of `list_blocks()`.
        dim: channels.
        cond_dim: width of the condition.
        shared: settings of the whole network; a block takes those it knows, and its default where one is `None`.
        own: settings of this kind of block; one that it does not know is an error.
    """
    block_class = find_block(name)
    known = _keywords(block_class)
    unknown = sorted(set(own or {}) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"`block_options` has {unknown[0]!r}, which the block {name!r} does not take; {hint}It takes "
            f"{', '.join(sorted(known))}."
        )
    settings = {key: value for key, value in (shared or {}).items() if key in known and value is not None}
    return block_class(dim, cond_dim, **(settings | (own or {})))


def check_block_options(block_options: dict[str, dict] | None, names: Sequence[str]) -> dict[str, dict]:
    """The settings by kind of block, each kind being one of `names`."""
    block_options = block_options or {}
    for name in block_options:
        if name not in names:
            raise ValueError(
                f"`block_options` has settings for {name!r}, but the network's blocks are {sorted(set(names))}; "
                "leave them out."
            )
    return block_options


def parse_block_types(block_types: str | Sequence[str], count: int | None = None, places: str = "stages") -> list[str]:
    """One block name for each place.

    Args:
        block_types: one name, names separated by commas, or a sequence of names.
        count: number of places; one name stands for all of them. `None` for as many as there are names.
        places: what the places are called in an error.
    """
    names = block_types.replace(" ", "").split(",") if isinstance(block_types, str) else list(block_types)
    for name in names:
        find_block(name)
    if count is not None and len(names) == 1:
        names = names * count
    if count is not None and len(names) != count:
        raise ValueError(f"`block_types` has {len(names)} entries for {count} {places}; give one name, or one each.")
    return names


def _keywords(block_class: type[Block]) -> set[str]:
    """Keyword-only arguments of a block's constructor and of those that it hands them on to."""
    known: set[str] = set()
    for cls in block_class.__mro__:
        if cls is nn.Module:
            break
        parameters = inspect.signature(cls.__init__).parameters.values()
        known |= {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return known
