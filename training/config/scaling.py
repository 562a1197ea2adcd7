"""How a network and its training grow with a budget: the rules of ResNet-RS (Bello et al., arXiv 2103.07579).

1. Depth where a run is long enough to overfit, width where it is not. The paper compares 10, 100 and 350 epochs: width
   wins at 10, depth from 100 on. Between, the share of depth here goes with the logarithm of the epochs.
2. Resolution grows slowly: from ResNet-RS-50 at 160 (4.6 GFLOP) to ResNet-RS-420 at 320 (128 GFLOP) the side doubles
   while the operations grow 28-fold, so that it goes with their power of ln 2 / ln 27.8 = 0.21.
3. Regularisation grows with the model and the epochs: there, stochastic depth is 0 up to ResNet-RS-152 and 0.1 from
   ResNet-RS-200 (93M parameters) on, at 350 epochs. Weight decay falls by 0.4 (1e-4 to 4e-5) where other regularisers
   are on.
4. Averages: EDM2 (arXiv 2312.02696) finds widths of 13.5% of the run best for 125M parameters and 7.0% for 1,523M: a
   power of -0.26. An exponential average of standard deviation s has a half-life of s · ln 2.

What lies between the papers' points, and below their sizes, is ours, and no result.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brickwork.gen.blocks.registry import find_block, parse_block_types

SHORT_RUN, LONG_RUN = 10, 100  # epochs: width alone, depth alone
RESOLUTION_POWER = math.log(320 / 160) / math.log(128 / 4.6)
DROP_PATH, DROP_PATH_PARAMETERS = 0.1, (1e6, 1e8)  # from none to all of it
LESS_DECAY = 0.4
AVERAGE_WIDTH, AVERAGE_POWER, AVERAGE_PARAMETERS, WIDEST_AVERAGE = 0.135, -0.26, 125e6, 0.15
_TRIES = 8  # halvings of the range that growths are looked for in
_LEAST = 1e-6

# Of each network: its settings of depth and of width, and of the condition's width.
SETTINGS = {
    "LegoTransformer2DModel": ("num_layers", "hidden_sizes", None),
    "BlockTransformer2DModel": ("num_layers", "hidden_size", None),
    "BlockUNet2DModel": ("layers_per_block", "block_out_channels", "time_embed_dim"),
}
FIXED_SIZE = ("LegoTransformer2DModel",)  # whose windows belong to the size


@dataclass(frozen=True)
class Growth:
    """A network within a budget.

    Attributes:
        config: of the network.
        size: side of the images.
        operations: of a forward pass of one image.
        parameters: of the network.
        reasons: why so, one line each.
    """

    config: dict[str, Any]
    size: int
    operations: int
    parameters: int
    reasons: list[str]


def depth_share(epochs: float) -> float:
    """How much of the growth goes into depth, 0 to 1, by the epochs of a run; see rule 1."""
    return _between(epochs, SHORT_RUN, LONG_RUN)


def grown_size(size: int, growth: float, largest: int, multiple: int) -> int:
    """The side of the images when operations grow so many times, at most `largest`; see rule 2."""
    wanted = min(largest, size * growth**RESOLUTION_POWER) if growth > 1 else size
    return max(size, int(wanted / multiple) * multiple)


def grow(
    kind: str,
    config: Mapping[str, Any],
    size: int,
    budget: float,
    epochs: float,
    count: Callable[[dict[str, Any], int], tuple[int, int]],
    largest: int | None = None,
) -> Growth:
    """The largest network of a shape that a budget allows.

    Args:
        kind: name of the network's class.
        config: of the network to start from.
        size: side of its images.
        budget: operations of a forward pass of one image.
        epochs: of the run.
        count: `(config, size)` => operations and parameters.
        largest: side that the images may grow to; `None` for `size`.

    Raises:
        ValueError: for a budget below the smallest such network.
    """
    start, _ = count(dict(config), size)
    growth, stages = budget / start, len(config.get("block_out_channels") or [0, 0, 0])
    share = depth_share(epochs) if growth > 1 else 0.0  # of the few layers of a small network none can go
    side = size if kind in FIXED_SIZE or largest is None else grown_size(size, growth, largest, 2**stages)
    # Operations go about with depth, with the square of the width, and with the pixels.
    near = math.log(growth * (size / side) ** 2)
    low, high, best = near - math.log(4), near + math.log(2), None
    for _ in range(_TRIES):
        middle = (low + high) / 2
        candidate = scaled(kind, config, math.exp(middle * share), math.exp(middle * (1 - share) / 2))
        operations, parameters = count(candidate, side)
        if operations <= budget:
            low, best = middle, (candidate, operations, parameters, middle)
        else:
            high = middle
    if best is None:
        smallest, _ = count(scaled(kind, config, _LEAST, _LEAST), side)
        raise ValueError(
            f"`--budget` is {budget:,.0f} operations, and the smallest network of this shape at {side} px needs "
            f"{smallest:,}; give at least that, or start from a smaller preset."
        )
    grown, operations, parameters, used = best
    depth, width = math.exp(used * share), math.exp(used * (1 - share) / 2)
    regime = (
        "narrower, as it shrinks"
        if growth < 1
        else "depth"
        if share == 1
        else "width"
        if share == 0
        else f"{share:.0%} depth, the rest width"
    )
    reasons = [
        f"{growth:.3g} times the operations of the start ({start:,}).",
        f"{epochs:,.0f} epochs: {regime} (width up to {SHORT_RUN} epochs, depth from {LONG_RUN}, where a run can "
        f"overfit): depth × {depth:.3g}, width × {width:.3g}, rounded to what fits.",
        f"Side {side} px: " + _why_size(kind, size, side, growth, largest),
    ]
    return Growth(grown, side, operations, parameters, reasons)


def _why_size(kind: str, size: int, side: int, growth: float, largest: int | None) -> str:
    if kind in FIXED_SIZE:
        return "a LEGO stack's windows belong to its size."
    if largest is None:
        return "as it is; --max-size lets it grow."
    wanted = size * max(1.0, growth) ** RESOLUTION_POWER
    return f"{size} × growth^{RESOLUTION_POWER:.2f} = {wanted:.0f}, at most {largest}, in steps of the network's."


def scaled(kind: str, config: Mapping[str, Any], depth: float, width: float) -> dict[str, Any]:
    """A network's configuration with so many times the layers and the width; a stage without layers stays so."""
    layers, channels, condition = SETTINGS[kind]
    step = math.lcm(8, *_head_dims(kind, config))
    grown = dict(config)
    grown[layers] = _each(config[layers], lambda count: max(1, round(count * depth)) if count else 0)
    grown[channels] = _each(config[channels], lambda dim: max(step, round(dim * width / step) * step))
    if condition and config.get(condition):
        grown[condition] = max(8, round(config[condition] * width / 8) * 8)
    if config.get("num_attention_heads"):  # heads keep their width
        grown["num_attention_heads"] = _heads(config["num_attention_heads"], config[channels], grown[channels])
    return grown


def _head_dims(kind: str, config: Mapping[str, Any]) -> list[int]:
    """Channels of a head, which divide the widths: as configured, or else each kind of block's own."""
    given = config.get("attention_head_dim")
    if given is not None:
        return list(given) if isinstance(given, Sequence) else [given]
    default = "dit" if kind == "BlockTransformer2DModel" else "resnet"
    kinds = parse_block_types(config.get("block_types", default))
    own = [inspect.signature(find_block(kind).__init__).parameters.get("attention_head_dim") for kind in kinds]
    return [parameter.default for parameter in own if parameter is not None]


def _heads(heads: int | Sequence[int], before: int | Sequence[int], after: int | Sequence[int]) -> int | list[int]:
    """About as many heads as keep their width, of numbers that divide the new one."""
    one = [value for value in (heads, before, after) if not isinstance(value, Sequence)]
    if len(one) == 3:
        return max(count for count in range(1, max(1, round(heads * after / before)) + 1) if after % count == 0)
    length = max(len(value) for value in (heads, before, after) if isinstance(value, Sequence))
    lists = [list(value) if isinstance(value, Sequence) else [value] * length for value in (heads, before, after)]
    return [_heads(*entries) for entries in zip(*lists)]


def _each(value: Any, change: Callable[[int], int]) -> Any:
    return [change(entry) for entry in value] if isinstance(value, Sequence) else change(value)


def regularisation(parameters: int, images: int, pictures: int, weight_decay: float = 0.01) -> dict[str, float]:
    """How hard to hold a run back: rules 3 and 4.

    Args:
        parameters: of the network.
        images: seen in the run.
        pictures: of the training set.
        weight_decay: of AdamW where nothing else holds the run back.

    Returns:
        `model.config.drop_path`, `optimizer.weight_decay`, `ema.half_life_images`.
    """
    length = _between(images / pictures, SHORT_RUN, LONG_RUN)
    drop_path = round(DROP_PATH * length * _between(parameters, *DROP_PATH_PARAMETERS), 3)
    width = min(WIDEST_AVERAGE, AVERAGE_WIDTH * (parameters / AVERAGE_PARAMETERS) ** AVERAGE_POWER)
    return {
        "drop_path": drop_path,
        "weight_decay": round(weight_decay * length * (LESS_DECAY if drop_path else 1.0), 5),
        "half_life_images": max(1, round(width * math.log(2) * images)),
    }


def _between(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, between by the logarithm."""
    return min(1.0, max(0.0, math.log(value / low) / math.log(high / low)))
