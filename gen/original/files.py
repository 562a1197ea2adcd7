"""Open a checkpoint of other authors, whatever its format, without running anything in it."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from brickwork.files import read_tensors
from brickwork.gen.original.pickles import LEGACY_MAGIC, load_pickled_module

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
    try:
        if path.suffix == ".safetensors":
            return load_file(path), {}
        return load_pickled_module(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from None
