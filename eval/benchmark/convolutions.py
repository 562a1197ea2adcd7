"""The benchmark suite `convolutions`: ways of aggregating their maps, and what a processor makes of their layout.

- **Aggregation** (Lee et al., arXiv 1904.09730): one-shot aggregation reads its maps once, a dense block in every
  layer, a residual block adds them. At one map and equal parameters, which for 3×3 convolutions are equal operations.
- **Layout**: networks of convolutions alone as they are, with channels last, and with `--compile` by blocks.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import nn

from brickwork.eval.benchmark.costs import traffic
from brickwork.eval.benchmark.networks import Settings, forward_of, ours
from brickwork.eval.benchmark.suites import counted, time_cases
from brickwork.eval.report.numbers import spread
from brickwork.gen.blocks.conv_norm import ConvNorm
from brickwork.gen.blocks.modulation import gated_residual_map, modulate_map
from brickwork.gen.blocks.osa import OSABlock
from brickwork.gen.blocks.resnet import ResNetBlock
from brickwork.gen.compiling import compile_blocks
from brickwork.gen.operations import weights_of

NETWORKS = ("resnet-s", "osa-u-s", "resnet-rs-u-s", "ffnet-s", "giraffe-s")
CHANNELS, CONDITION, SIDE, LAYERS = 256, 64, 32, 5


class DenseBlock(OSABlock):
    """As one-shot aggregation, but every convolution reads all maps before it (Huang et al., arXiv 1608.06993)."""

    def __init__(self, dim: int, cond_dim: int, **settings):
        super().__init__(dim, cond_dim, **settings)
        width = self.convs[0].conv.out_channels
        self.convs = nn.ModuleList(ConvNorm(dim + n * width, width, 3) for n in range(len(self.convs)))

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        ((shift, scale, gate),) = self.modulation(temb)
        maps = modulate_map(hidden_states, shift, scale)
        for conv in self.convs:
            maps = torch.cat([maps, conv(maps)], dim=1)
        return gated_residual_map(hidden_states, gate, self.squeeze(self.concat(maps)))


def of_equal_size(channels: int = CHANNELS) -> dict[str, nn.Module]:
    """A residual block, and blocks of both kinds with as many parameters, as near as their widths allow."""
    residual = ResNetBlock(channels, CONDITION)
    wanted, found = weights_of(residual), {"residual": residual}
    for name, kind in (("one-shot", OSABlock), ("dense", DenseBlock)):
        with torch.device("meta"):
            sizes = {
                width: weights_of(kind(channels, CONDITION, mid_ratio=(width + 0.5) / channels, num_convs=LAYERS))
                for width in range(4, channels + 1)
            }
        width = min(sizes, key=lambda width: abs(sizes[width] - wanted))
        found[name] = kind(channels, CONDITION, mid_ratio=(width + 0.5) / channels, num_convs=LAYERS)
    return found


def bench_convolutions(
    settings: Settings, names: Sequence[str] = NETWORKS, channels: int = CHANNELS, side: int = SIDE
) -> dict:
    """Both tables, everything in turn."""
    probe, like = settings.probe(), {"device": settings.torch_device, "dtype": settings.torch_dtype}
    blocks = {name: settings.ready(block) for name, block in of_equal_size(channels).items()}
    maps, condition = torch.randn(settings.batch, channels, side, side, **like), torch.randn(1, CONDITION, **like)
    condition = condition.expand(settings.batch, -1)
    still = torch.no_grad()
    cases = [
        counted("aggregation", name, still(partial(block, maps, condition)), probe) for name, block in blocks.items()
    ]
    bases = {"aggregation": "residual"}
    for name in names:
        cases += [counted(name, way, function, probe) for way, function in _layouts(name, settings).items()]
        bases[name] = "as it is"
    rows = time_cases(cases, settings, bases, warm=not settings.compile)
    moved = {
        name: traffic(lambda block=block: still(partial(deepcopy(block), maps.clone(), condition.clone())))
        for name, block in blocks.items()
    }
    aggregated = [
        (
            row["case"], f"{weights_of(blocks[row['case']]) / 1e6:.2f}", f"{row['operations'] / 1e9:.1f}",
            f"{moved[row['case']][0] / 2**20:.0f}", f"{moved[row['case']][1] / 2**20:.0f}", spread(row["ratio"]),
        )
        for row in rows
        if row["group"] == "aggregation"
    ]  # fmt: skip
    ways = {row["case"]: None for row in rows if row["group"] != "aggregation"}
    ratios = {(row["group"], row["case"]): spread(row["ratio"]) for row in rows}
    first = {row["group"]: row["seconds"] for row in rows if row["case"] == "as it is"}
    layouts = [
        (name, f"{sorted(first[name])[len(first[name]) // 2]:.3f}", *(ratios.get((name, way), "–") for way in ways))
        for name in names
    ]
    columns = ("block", "parameters, M", "GFLOP", "MiB moved", "MiB alive", "time, to residual")
    return {
        "kind": "convolutions", "rows": rows, "moved": moved,
        "tables": [
            {"columns": columns, "rows": aggregated}, {"columns": ("network", "s", *ways), "rows": layouts},
        ],
    }  # fmt: skip


def _layouts(name: str, settings: Settings) -> dict[str, Callable]:
    """A network's forward pass as it is, with channels last, and where asked for compiled by blocks."""
    subject = ours(name, settings)
    ways = {"as it is": {}, "channels last": {"memory_format": torch.channels_last}}
    functions = {}
    for way, layout in (ways | ({"compiled": {}} if settings.compile else {})).items():
        network = settings.ready(subject.build().to(**layout) if layout else subject.build())
        if way == "compiled" and not compile_blocks(network):
            continue
        functions[way] = forward_of(subject, network, settings)
    return functions
