"""Cutting feature maps into windows and putting them together again.

One pair of functions serves LEGO (`block`), MaxViT (`block`, then `grid`) and EMOv2 (both at once).
"""

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
