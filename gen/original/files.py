"""Open a checkpoint of other authors, whatever its format, without running anything in it."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from brickwork.errors import explained
from brickwork.files import read_tensors
from brickwork.gen.conditioning import sincos_position_table
from brickwork.gen.original.pickles import LEGACY_MAGIC, load_pickled_module


def tensor_of(tensors: Mapping[str, torch.Tensor], name: str, ndim: int) -> torch.Tensor:
    """The tensor of a name that shows how the network is built, or a `ValueError`."""
    if name not in tensors or tensors[name].ndim != ndim or tensors[name].numel() == 0:
        raise ValueError(f"`{name}`, a tensor of {ndim} dimensions, is missing.")
    return tensors[name]


def check_shapes(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a `ValueError` unless there are floating point tensors of these names and shapes, and no others."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()}
    faults = [f"{name} is missing" for name in expected if name not in shapes]
    faults += [f"{name[:80]} does not belong" for name in tensors if name not in expected]
    faults += [
        f"{name} has the shape {shapes[name]}, not {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - 4} more faults" if len(faults) > 4 else ""
        raise ValueError(f"{'; '.join(faults[:4])}{more}.")


def check_position_table(name: str, table: torch.Tensor, side: int) -> None:
    """Raise a `ValueError` unless `table (side * side, width)` is the fixed one, which goes on at other sizes."""
    tolerance = 1e-5 if table.dtype.itemsize >= 4 else 4e-3
    exact = sincos_position_table(table.shape[1], side, side)
    if not torch.allclose(table.float(), exact, rtol=0, atol=tolerance):
        raise ValueError(f"{name} is not the fixed sine-cosine table; a trained table cannot be kept.")


def our_layout(layer: str, tensor: torch.Tensor, channels: int) -> torch.Tensor:
    """Rearrange what our networks keep in another order; all else stays the same tensor."""
    if tensor.ndim == 4:
        return tensor.flatten(1)  # a convolution of patches is a linear layer
    if layer.endswith("final_layer.linear"):
        # The authors' patch is (row, column, channel), ours (channel, row, column).
        return tensor.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1).contiguous()
    return tensor


_TORCH_FILES = (b"PK\x03\x04", pickle.dumps(LEGACY_MAGIC, protocol=2))


def load_original_file(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """The tensors of a checkpoint under the authors' names.

    Args:
        path: an EDM-style snapshot (`.pkl`), a `.safetensors` file, or a state dict saved by `torch.save`.

    Returns:
        The tensors by dotted name, in their stored dtype, and by dotted module name the modules' plain attributes
        (only snapshots have them).

    Raises:
        ValueError: naming the file and what is wrong with it. Nothing of the file was run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` is {str(path)!r}, which is not a file; give the checkpoint itself.")
    with path.open("rb") as file:
        head = file.read(16)
    if path.suffix != ".safetensors" and head.startswith(_TORCH_FILES):
        return read_tensors(path), {}
    with explained(f"{str(path)!r} cannot be read", SafetensorError, ValueError):
        if path.suffix == ".safetensors":
            return load_file(path), {}
        return load_pickled_module(path)
