"""Bridging visual representations: features of a grid attend to key points of objects (arXiv 2010.15831).

A query of the grid and a key point meet by what they are (a dot product) and by where they are: an additive logit
from one map over relative positions, the same for every layer and kind of key point (the paper's section 3.2, "shared
location embedding").
"""

import torch
from torch import nn

_LONGEST = 1000.0  # wave length over 2π, in cells
_LEAST = 1e-6  # the map is clamped here before its logarithm, as in the authors' code


class RelativePositionMap(nn.Module):
    """One logit a head for every relative position: a linear map of sines and cosines, looked up bilinearly.

    The paper tabulates the position features on a grid of `size + 1` by `size + 1`, with 256 numbers each. They are a
    part for x beside a part for y, so that the map is an outer sum of two lines, and bilinear reading of it is the sum
    of linear readings of both: the same numbers without the 165 MB, and without gradients of whole maps.

    Args:
        num_heads: heads of the attentions that read it.
        size: cells along a side of the map; even.
        dim: sines and cosines a position; divisible by four.
    """

    def __init__(self, num_heads: int, size: int = 400, dim: int = 256):
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(f"`size` is {size}; give an even number of cells, such as 400.")
        if dim < 4 or dim % 4:
            raise ValueError(f"`dim` is {dim}; give a multiple of four, such as 256.")
        self.size, self.dim = size, dim
        self.projection = nn.Linear(dim, num_heads)
        nn.init.normal_(self.projection.weight, std=0.01)
        nn.init.ones_(self.projection.bias)  # so that the logarithm starts near zero

    def lines(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The map along x and along y, `(size + 1, heads)` each; it is their outer sum."""
        weight = self.projection.weight
        cells = torch.arange(-(self.size // 2), self.size // 2 + 1, device=weight.device, dtype=weight.dtype)
        numbers = torch.arange(self.dim // 4, device=weight.device, dtype=weight.dtype)
        waves = _LONGEST ** (numbers * (4.0 / self.dim))
        angles = cells[:, None] / waves
        features = torch.cat([angles.sin(), angles.cos()], dim=1)  # (size + 1, dim / 2)
        along_x, along_y = (features @ half.T for half in weight.chunk(2, dim=1))
        return along_x, along_y + self.projection.bias

    def forward(self, offsets: torch.Tensor, lines: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits of relative positions.

        Args:
            offsets: `(B, queries, keys, 2)`, x then y of the key less the query, from -1 to 1 over the map; what lies
                beyond takes the border's.
            lines: `lines()`, where several look-ups share it.

        Returns:
            `(B, heads, queries, keys)`.
        """
        along = self.lines() if lines is None else lines
        logits = sum(_read(line, offset) for line, offset in zip(along, offsets.unbind(-1))).movedim(-1, 1)
        return logits.clamp(min=_LEAST).log()


def _read(line: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """A line `(cells, heads)` at offsets from -1 to 1 over it, linearly between middles of cells => `(…, heads)`."""
    last = len(line) - 1
    place = (((offsets + 1) * len(line) - 1) / 2).clamp(0, last)
    before = place.floor().clamp(max=last - 1).long()
    share = (place - before)[..., None].to(line)
    return torch.lerp(nn.functional.embedding(before, line), nn.functional.embedding(before + 1, line), share)


class KeyAttention(nn.Module):
    """Attention of the grid to one kind of key points, with logits of their relative positions added.

    Args:
        dim: channels of queries and keys.
        num_heads: divides `dim`.
        null_key: whether a key of zeros that says nothing stands beside the others (`add_zero_attn` of the authors'
            code). Without it the answer of a single key point would be the same everywhere.
    """

    def __init__(self, dim: int, num_heads: int, null_key: bool = False):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"`num_heads` is {num_heads}; give a number that divides the {dim} channels.")
        self.num_heads, self.null_key = num_heads, null_key
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, logits: torch.Tensor | None, mask: torch.Tensor
    ) -> torch.Tensor:
        """What the key points say to each query, `(B, queries, dim)`.

        Args:
            queries: `(B, queries, dim)`.
            keys: `(B, keys, dim)`.
            logits: `(B, heads, queries, keys)`, or `None`.
            mask: `(B, keys)`, true where there is a key point; in every row one at least.
        """
        q, k, v = (
            layer(given).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, given in ((self.to_q, queries), (self.to_k, keys), (self.to_v, keys))
        )
        bias = torch.zeros_like(q[..., :1]) if logits is None else logits.to(q.dtype)
        # Spelt out to every query: the fused kernels take no mask that is to be broadcast along them.
        bias = bias.expand(-1, -1, -1, k.shape[2]).masked_fill(~mask[:, None, None, :], torch.finfo(q.dtype).min)
        if self.null_key:
            k, v, bias = (
                nn.functional.pad(part, pad) for part, pad in ((k, (0, 0, 0, 1)), (v, (0, 0, 0, 1)), (bias, (0, 1)))
            )
        output = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.to_out(output.transpose(1, 2).flatten(2))


class BridgedRelation(nn.Module):
    """A grid that attends to several kinds of key points at once; their answers are added.

    The authors' `SimpleBVR_Transformer` is `relu(queries + this)`; here the caller adds it.

    Args beside those of `KeyAttention`:
        kinds: of key points, such as centres and two corners.
    """

    def __init__(self, dim: int, num_heads: int, kinds: int, null_key: bool = False):
        super().__init__()
        self.attentions = nn.ModuleList(KeyAttention(dim, num_heads, null_key) for _ in range(kinds))

    def forward(
        self,
        queries: torch.Tensor,
        query_positions: torch.Tensor,
        keys: torch.Tensor,
        key_positions: torch.Tensor,
        mask: torch.Tensor,
        positions: RelativePositionMap | None,
    ) -> torch.Tensor:
        """The sum of all kinds' answers `(B, queries, dim)`.

        Args beside those of `KeyAttention`, keys with an axis of kinds before the batch's:
            query_positions: `(queries, 2)`, x then y.
            key_positions: `(kinds, B, keys, 2)` on the scale of `query_positions`.
            positions: the map that all share, `None` for attention by appearance alone.
        """
        total, lines = torch.zeros_like(queries), None if positions is None else positions.lines()
        for attention, key, position in zip(self.attentions, keys, key_positions, strict=True):
            logits = None
            if positions is not None:
                logits = positions(position[:, None, :, :] - query_positions[None, :, None, :], lines)
            total = total + attention(queries, key, logits, mask)
        return total
