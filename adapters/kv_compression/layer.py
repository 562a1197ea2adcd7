"""The layer that shortens keys and values, and the hooks that put it before them."""

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import nn

from brickwork import compat
from brickwork.adapters.modules import ModuleHook

# Rows and columns of the maps that are under way in a thread, by the `id` of their `MapSize`.
_SIZES: ContextVar[Mapping[int, tuple[int, int]]] = ContextVar("sizes", default=MappingProxyType({}))


class Compression(nn.Module):
    """A depthwise strided convolution of a map of tokens, which starts as the average over patches of `ratio`².

    PixArt-Sigma (arXiv 2403.04692, section 3.3) shortens keys and values so, and starts so; it adds a LayerNorm, which
    would not start as the average.

    Args:
        dim: width of a token.
        ratio: tokens along one of the shorter map.
        like: a tensor whose device and type of numbers it takes.
    """

    def __init__(self, dim: int, ratio: int, like: torch.Tensor | None = None):
        super().__init__()
        self.ratio = ratio
        how = {} if like is None else {"device": like.device, "dtype": like.dtype}
        self.weight = nn.Parameter(torch.full((dim, 1, ratio, ratio), ratio**-2.0, **how))
        self.bias = nn.Parameter(torch.zeros(dim, **how))

    def forward(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """`(B, height * width, D)` => `(B, ⌈height / ratio⌉ * ⌈width / ratio⌉, D)`.

        A patch that a border cuts is weighted up to a full one, so that the average is over the tokens that are there.
        """
        if tokens.shape[1] != height * width:
            raise ValueError(
                f"the attention has {tokens.shape[1]} tokens for a map of {height} × {width}; a compression of keys "
                "and values needs the tokens of one map, row by row."
            )
        ratio, weight, bias = self.ratio, self.weight.to(tokens.dtype), self.bias.to(tokens.dtype)
        maps = tokens.transpose(1, 2).unflatten(2, (height, width))
        below, beside = -height % ratio, -width % ratio
        if below or beside:
            maps = nn.functional.pad(maps, (0, beside, 0, below))
        shorter = nn.functional.conv2d(maps, weight, stride=ratio, groups=len(weight))
        if below or beside:
            rows, columns = (_covered(side, ratio, tokens) for side in (height, width))
            shorter = shorter / (rows[:, None] * columns)
        return shorter.flatten(2).transpose(1, 2) + bias

    def faded(self, tokens: torch.Tensor, height: int, width: int, strength: float) -> torch.Tensor:
        """What keys and values are made of: at strength 1 the shorter map, between 0 and 1 a blend of full length.

        The blend is with the shorter map enlarged again; attention to that is attention to the shorter map, each of
        whose tokens is there equally often (but at cut borders, and beside a text in the same softmax).
        """
        shorter = self(tokens, height, width)
        if strength == 1:
            return shorter
        maps = shorter.transpose(1, 2).unflatten(2, (-(-height // self.ratio), -(-width // self.ratio)))
        for dim in (2, 3):
            maps = maps.repeat_interleave(self.ratio, dim=dim)
        return tokens.lerp(maps[..., :height, :width].flatten(2).transpose(1, 2), strength)


def _covered(side: int, ratio: int, like: torch.Tensor) -> torch.Tensor:
    """The share of each patch along a side that lies on the map."""
    shares = torch.ones(-(-side // ratio), device=like.device, dtype=like.dtype)
    shares[-1] = (side - 1) % ratio / ratio + 1 / ratio
    return shares


class MapSize(ModuleHook):
    """Before a module that is called with a map `(B, C, H, W)`: remembers its rows and columns.

    Args:
        adapter: whose hook it is.
        patch: pixels of the map along a token.
    """

    def __init__(self, adapter, patch: int):
        super().__init__(adapter)
        self.patch, self.latest = patch, (0, 0)

    def act(self, strength: float, module: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        self.latest = tuple(side // self.patch for side in hidden_states.shape[-2:])
        if not torch.compiler.is_compiling():
            _SIZES.set({**_SIZES.get(), id(self): self.latest})

    def current(self) -> tuple[int, int]:
        """Rows and columns of this thread's map; the latest in a backward pass, which may have its own thread."""
        if torch.compiler.is_compiling() or compat.in_backward():
            return self.latest
        return _SIZES.get().get(id(self), self.latest)


class Compress(ModuleHook):
    """Before an attention, which then makes keys and values of a shorter map.

    Args:
        adapter: whose hook it is.
        part: key of the `Compression` among the adapter's parts.
        size: of the map.
    """

    def __init__(self, adapter, part: str, size: MapSize):
        super().__init__(adapter)
        self.part, self.size = part, size

    def shorten(self, tokens: torch.Tensor, strength: float, reduced_by: int = 1) -> torch.Tensor:
        """`(B, …, tokens, D)` => fewer tokens; `reduced_by`: how much smaller their map is already."""
        height, width = (-(-side // reduced_by) for side in self.size.current())
        flat = tokens.reshape(-1, *tokens.shape[-2:])
        found = self.adapter.parts[self.part].faded(flat, height, width, strength)
        return found.unflatten(0, tokens.shape[:-2])


class CompressInput(Compress):
    """Before an attention that takes `encoder_hidden_states` for keys and values.

    Of one that reduces these by `sr_ratio` itself (`sra`), what it makes is made shorter.
    """

    def act(self, strength: float, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if kwargs.get("encoder_hidden_states") is not None:
            return None
        tokens, ratio = args[0] if args else kwargs["hidden_states"], getattr(module, "sr_ratio", 1)
        tokens = module.reduce(tokens) if ratio > 1 else tokens
        return args, kwargs | {"encoder_hidden_states": self.shorten(tokens, strength, ratio)}


class CompressProjection(Compress):
    """Before the layer that makes keys, or values, of the map alone (SD3, whose attention reads a text as well).

    The text's tokens stay as many, so that they weigh more beside a shorter map; the fine-tune has to make up for it.
    """

    def act(self, strength: float, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (self.shorten(args[0], strength), *args[1:]), kwargs
