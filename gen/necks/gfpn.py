"""The generalised feature pyramid with queen fusion of GiraffeDet (Jiang et al., arXiv 2202.04256)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from brickwork.errors import one_of, whole_number
from brickwork.gen.blocks.stages import StageSpec
from brickwork.gen.blocks.windows import static_size
from brickwork.gen.necks.registry import Neck, RunBlock, register_neck

SKIPS = ("log2n", "dense")


@dataclass(frozen=True)
class PyramidNode:
    """A map of the pyramid, and what it is made of.

    Attributes:
        layer: 1 for the first; 0 is the encoder's map.
        level: 0 for the highest resolution.
        inputs: (layer, level) of what it reads.
    """

    layer: int
    level: int
    inputs: tuple[tuple[int, int], ...]


def queen_fusion(levels: int, depth: int, skips: str = "log2n") -> list[PyramidNode]:
    """The nodes of a pyramid in the order in which they are computed.

    Odd layers go from the lowest resolution up, even ones down again, and each node reads
    - its own level in earlier layers: those 1, 2, 4, 8, … layers before (`"log2n"`) or all (`"dense"`), the encoder's
      map in the first;
    - both neighbours of its level in the layer before: like a queen in chess;
    - the node before it in its own layer.

    Args:
        levels: of the pyramid.
        depth: layers.
        skips: see above.
    """
    one_of("skips", skips, SKIPS)
    nodes = []
    for layer in range(1, depth + 1):
        earlier = range(1, layer) if skips == "dense" else sorted(layer - 2**n for n in range(layer.bit_length()))
        own = [layer_before for layer_before in earlier if layer_before >= 1] or [0]
        order = range(levels - 1, -1, -1) if layer % 2 else range(levels)
        for level in order:
            inputs = [(layer_before, level) for layer_before in own]
            inputs += [(layer - 1, near) for near in (level - 1, level + 1) if 0 <= near < levels]
            if level != order[0]:
                inputs.append((layer, level - order.step))
            nodes.append(PyramidNode(layer, level, tuple(inputs)))
    return nodes


def leading_to(nodes: Sequence[PyramidNode], layer: int, level: int) -> list[PyramidNode]:
    """Those of the nodes, in their order, that the one at (`layer`, `level`) is made of, and itself."""
    wanted, found = {(layer, level)}, []
    for node in reversed(nodes):
        if (node.layer, node.level) in wanted:
            wanted.update(node.inputs)
            found.insert(0, node)
    return found


class FusionNode(nn.Module):
    """Maps of any levels at the size of one, concatenated, 1×1, and a block."""

    def __init__(self, channels: Sequence[int], block: nn.Module, dim: int):
        super().__init__()
        self.fuse = nn.Conv2d(sum(channels), dim, 1)
        self.block = block

    def forward(self, maps: Sequence[torch.Tensor], height: int, width: int) -> torch.Tensor:
        """`(B, channels, …)` each => `(B, dim, height, width)`, what the block reads."""
        return self.fuse(torch.cat([to_size(one, height, width) for one in maps], dim=1))


def to_size(hidden_states: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A map at another level's size: the largest of neighbours on the way down, the nearest on the way up."""
    size = static_size(hidden_states)
    if size[0] > height or size[1] > width:
        return nn.functional.max_pool2d(hidden_states, 3, stride=2, padding=1)
    if size == (height, width):
        return hidden_states
    return nn.functional.interpolate(hidden_states, size=(height, width), mode="nearest")


@register_neck("gfpn")
class GFPNNeck(Neck):
    """A pyramid of blocks, each of which reads all its neighbours. Concatenation takes memory.

    The nodes that the highest resolution of the last layer does not read, directly or through others, are not built.
    A stage gives its level the channels, and the block unless `node` names one.

    Args beside those of `Neck`:
        depth: layers of the pyramid; odd ones end at the highest resolution.
        skips: `"log2n"` or `"dense"`, see `queen_fusion`.
        node: the block at every node, one of `brickwork.gen.blocks.list_blocks()` with its own defaults; `None` for
            each stage's.
    """

    def __init__(
        self,
        stages: Sequence[StageSpec],
        cond_dim: int,
        *,
        depth: int = 3,
        skips: str = "log2n",
        node: str | None = None,
    ):
        super().__init__()
        whole_number("neck_options.depth", depth, of="layers")
        one_of("neck_options.skips", skips, SKIPS)
        channels = [stage.channels for stage in stages]
        self.graph = leading_to(queen_fusion(len(stages), depth, skips), depth, 0)
        self.nodes = nn.ModuleList()
        for position in self.graph:
            block = stages[position.level].build(cond_dim, block=node)
            inputs = [channels[level] for _, level in position.inputs]
            self.nodes.append(FusionNode(inputs, block, channels[position.level]))

    def forward(self, features: list[torch.Tensor], run: RunBlock) -> torch.Tensor:
        sizes = [static_size(feature) for feature in features]
        maps = {(0, level): feature for level, feature in enumerate(features)}
        hidden_states = features[0]
        for position, node in zip(self.graph, self.nodes):
            hidden_states = node([maps[key] for key in position.inputs], *sizes[position.level])
            hidden_states = run(node.block, hidden_states)
            maps[position.layer, position.level] = hidden_states
        return hidden_states
