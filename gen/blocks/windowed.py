"""Feature maps of any size, worked on in windows: padding, cutting, masking, joining, cropping."""

import torch

from brickwork.gen.blocks.windows import head_partition, pad_to_multiple, window_mask, window_partition, window_reverse


def fixed_sides(hidden_states: torch.Tensor) -> tuple[int, int]:
    """Height and width of `(B, C, H, W)` as plain numbers, in a compiled graph as well.

    A graph then holds for one size and any batch. With sides left symbolic, the padding, shrinking and cutting of
    windows becomes arithmetic that takes the compiler minutes.
    """
    height, width = (len(range(side)) for side in hidden_states.shape[-2:])
    return height, width


class Windowing:
    """How maps of one size are cut into windows.

    A window larger than the map shrinks to it: its missing part would be padding, masked out of the softmax.

    Args:
        hidden_states: `(B, C, H, W)`, a map of that size.
        window_size: side of a window in pixels of the map.
        mode: `"block"` or `"grid"`, see `window_partition`.

    Attributes:
        window: rows and columns of a window.
        mask: bool `(windows, tokens)`, true for real pixels; `None` where nothing is padded.
    """

    def __init__(self, hidden_states: torch.Tensor, window_size: int, mode: str):
        self.mode = mode
        self.height, self.width = fixed_sides(hidden_states)
        self.window = (min(window_size, self.height), min(window_size, self.width))
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


def check_window(window_size: int) -> None:
    """Raise a `ValueError` unless the side of a window is a whole number of at least one."""
    if not isinstance(window_size, int) or window_size < 1:
        raise ValueError(f"`window_size` is {window_size!r}; give a whole number from 1 up.")
