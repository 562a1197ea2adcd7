"""Feature maps of any size, worked on in windows: padding, cutting, masking, joining, cropping."""

from collections.abc import Mapping

import torch

from brickwork.gen.blocks.windows import (
    head_partition,
    pad_to_multiple,
    static_size,
    window_mask,
    window_partition,
    window_reverse,
)


class Windowing:
    """How maps of one size are cut into windows.

    Args:
        hidden_states: `(B, C, H, W)`, a map of that size, at least as large as a window.
        window_size: side of a window in pixels of the map.
        mode: `"block"` or `"grid"`, see `window_partition`.

    Attributes:
        window: rows and columns of a window.
        count: number of windows.
        mask: bool `(windows, tokens)`, true for real pixels; `None` where nothing is padded.
    """

    def __init__(self, hidden_states: torch.Tensor, window_size: int, mode: str):
        self.mode = mode
        self.height, self.width = static_size(hidden_states)
        check_maps(self.height, self.width, {"the map": (1, window_size)}, "`hidden_states` has")
        self.window = (window_size, window_size)
        self.count = -(-self.height // window_size) * -(-self.width // window_size)
        self.mask = window_mask(self.height, self.width, self.window, mode, device=hidden_states.device)

    def cut(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` => `(B, windows, tokens, C)`."""
        return window_partition(pad_to_multiple(hidden_states, self.window), self.window, self.mode)

    def cut_heads(self, hidden_states: torch.Tensor, num_heads: int) -> torch.Tensor:
        """`(B, heads * D, H, W)` => `(B * windows, tokens, heads, D)`."""
        return head_partition(pad_to_multiple(hidden_states, self.window), self.window, num_heads, self.mode)

    def join(self, windows: torch.Tensor) -> torch.Tensor:
        """`(B, windows, tokens, C)`, or `(B, windows, tokens, heads, D)`, => `(B, C, H, W)`."""
        rows, columns = self.window
        padded = (self.height + -self.height % rows, self.width + -self.width % columns)
        return window_reverse(windows, self.window, *padded, self.mode)[..., : self.height, : self.width]


def check_maps(height: int, width: int, maps: Mapping[str, tuple[int, int]], subject: str) -> None:
    """Raise a `ValueError` unless every map of an image holds a full window.

    Args:
        height: of the image.
        width: of the image.
        maps: name => pixels of the image along one of the map, rounded up, and the side of the map's window.
        subject: whose height and width they are, such as "`sample` has".
    """
    sides = {name: (-(-height // stride), -(-width // stride)) for name, (stride, _) in maps.items()}
    small = [name for name, (_, window) in maps.items() if min(sides[name]) < window]
    if not small:
        return
    name, window = small[0], maps[small[0]][1]
    rows, columns = sides[name]
    smallest = max((window - 1) * stride + 1 for stride, window in maps.values())
    raise ValueError(
        f"{subject} height and width ({height}, {width}), where {name} is {rows} × {columns}, below its window of "
        f"{window} × {window}; make both sides at least {smallest}, or build the network with a `window_size` of at "
        f"most {max(1, min(min(sides[name]) for name in small))}."
    )
