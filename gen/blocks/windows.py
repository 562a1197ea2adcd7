"""Cutting feature maps into windows and putting them together again.

One pair of functions serves LEGO (`block`), MaxViT (`block`, then `grid`) and EMOv2 (both at once).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from brickwork.errors import one_of

WINDOW_MODES = ("block", "grid")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def static_size(sample: torch.Tensor) -> tuple[int, int]:
    """Height and width of `(…, H, W)`, as constants of a compiled graph.

    Under `torch.compile(dynamic=True)` a graph then serves any batch of one size. With symbolic sides, proving that
    windows fit takes the compiler minutes, and nothing runs faster for it.
    """
    height, width = sample.shape[-2:]
    return len(range(height)), len(range(width))


def pad_to_multiple(sample: torch.Tensor, multiple: int | tuple[int, int]) -> torch.Tensor:
    """Pad `(B, C, H, W)` with zeros below and to the right until its sides are multiples of `multiple`."""
    rows, columns = _pair(multiple)
    height, width = sample.shape[-2:]
    pad_bottom, pad_right = -height % rows, -width % columns
    if pad_bottom == 0 and pad_right == 0:
        return sample
    return F.pad(sample, (0, pad_right, 0, pad_bottom))


def window_partition(
    sample: torch.Tensor, size: int | tuple[int, int], mode: str = "block", patch_size: int = 1
) -> torch.Tensor:
    """Cut a feature map into windows of `size` tokens.

    Args:
        sample: `(B, C, H, W)`; `H` and `W` are multiples of the window (see `pad_to_multiple`).
        size: rows and columns of tokens in a window.
        mode: `"block"` for neighbouring tokens (MaxViT's block, EMOv2's "close"), `"grid"` for tokens spread evenly
            over the image (MaxViT's grid, EMOv2's "remote").
        patch_size: a token is a patch of `patch_size`² pixels, its features in the order `(C, row, column)`.

    Returns:
        `(B, windows, tokens, C * patch_size**2)`, windows and tokens in row-major order.
    """
    unfolded = _unfold(sample, _pair(size), mode, patch_size)
    batch, down, across, rows, columns = unfolded.shape[:5]
    return unfolded.reshape(batch, down * across, rows * columns, -1)


def head_partition(
    sample: torch.Tensor, size: int | tuple[int, int], num_heads: int, mode: str = "block"
) -> torch.Tensor:
    """Windows as attention takes them: `(B, heads * D, H, W)` => `(B * windows, tokens, heads, D)`.

    One copy, in memory `(B * windows, heads, tokens, D)`, so that no kernel has to copy again.
    """
    unfolded = _unfold(sample, _pair(size), mode, 1)
    batch, down, across, rows, columns = unfolded.shape[:5]
    heads = unfolded.flatten(5).unflatten(5, (num_heads, -1)).permute(0, 1, 2, 5, 3, 4, 6)
    return heads.reshape(batch * down * across, num_heads, rows * columns, -1).transpose(1, 2)


def _unfold(sample: torch.Tensor, size: tuple[int, int], mode: str, patch_size: int) -> torch.Tensor:
    """`(B, C, H, W)` => a view `(B, windows down, across, rows, columns, C, patch_size, patch_size)`."""
    one_of("mode", mode, WINDOW_MODES)
    rows, columns = size
    batch, channels, height, width = sample.shape
    if height % (rows * patch_size) or width % (columns * patch_size):
        raise ValueError(
            f"`sample` has height and width ({height}, {width}), which windows of ({rows * patch_size}, "
            f"{columns * patch_size}) pixels do not divide; pad it first with `pad_to_multiple`."
        )
    down, across = height // (rows * patch_size), width // (columns * patch_size)
    if mode == "block":
        sample = sample.reshape(batch, channels, down, rows, patch_size, across, columns, patch_size)
        return sample.permute(0, 2, 5, 3, 6, 1, 4, 7)
    sample = sample.reshape(batch, channels, rows, down, patch_size, columns, across, patch_size)
    return sample.permute(0, 3, 6, 2, 5, 1, 4, 7)


def window_reverse(
    windows: torch.Tensor,
    size: int | tuple[int, int],
    height: int,
    width: int,
    mode: str = "block",
    patch_size: int = 1,
) -> torch.Tensor:
    """The inverse of `window_partition`: `(B, windows, tokens, C * patch_size**2)` => `(B, C, height, width)`.

    Features may be split, `(B, windows, tokens, heads, D)`. Where a token is a pixel, the result stays channels-last
    in memory, as linear layers and depthwise convolutions want it.
    """
    one_of("mode", mode, WINDOW_MODES)
    rows, columns = _pair(size)
    down, across = height // (rows * patch_size), width // (columns * patch_size)
    tokens = windows.unflatten(2, (rows, columns)).unflatten(1, (down, across))
    order = (0, 1, 3, 2, 4) if mode == "block" else (0, 3, 1, 4, 2)
    if patch_size == 1:
        tokens = tokens.permute(*order, *range(5, tokens.ndim))
        return tokens.reshape(tokens.shape[0], height, width, -1).permute(0, 3, 1, 2)
    tokens = tokens.flatten(5).unflatten(5, (-1, patch_size, patch_size))
    batch, row, row_in_window, column, column_in_window = order
    tokens = tokens.permute(batch, 5, row, row_in_window, 6, column, column_in_window, 7)
    return tokens.reshape(tokens.shape[0], -1, height, width)


def window_mask(
    height: int,
    width: int,
    size: int | tuple[int, int],
    mode: str = "block",
    patch_size: int = 1,
    device: torch.device | None = None,
) -> torch.Tensor | None:
    """Which tokens of an image, padded to full windows, show any of the image.

    Returns:
        bool `(windows, tokens)`, true for real tokens, or `None` where all of them are.
    """
    rows, columns = _pair(size)
    down, across = -(-height // patch_size), -(-width // patch_size)
    if down % rows == 0 and across % columns == 0:
        return None
    real = torch.ones(1, 1, down, across, dtype=torch.bool, device=device)
    return window_partition(pad_to_multiple(real, (rows, columns)), (rows, columns), mode)[0, :, :, 0]


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
