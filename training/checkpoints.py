"""Checkpoints that are whole or absent: tensors in safetensors, everything else in one JSON manifest."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MANIFEST = "manifest.json"
_PREFIX = "images-"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """An optimizer's state as `parameter name|state name` => tensor."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """The way back from `optimizer_tensors`; states stay on the device where the optimizer keeps them."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("|")
        parameter = parameters[parameter_name]
        fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        device = parameter.device if key != "step" or fused else "cpu"
        optimizer.state[parameter][key] = value.to(device)


class CheckpointFolder:
    """The checkpoints of one run, the newest last.

    Each is a folder `images-000012345` that appears at once, by renaming, when everything in it is on the disk. The
    manifest holds a checksum of each file; a damaged checkpoint is reported and the one before it is used.

    Args:
        path: the folder; made when needed.
        keep: how many to keep.
    """

    def __init__(self, path: str | Path, keep: int = 2):
        self.path, self.keep = Path(path), keep

    def list(self) -> list[Path]:
        return sorted(path for path in self.path.glob(f"{_PREFIX}*") if path.is_dir())

    def save(self, images: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> Path:
        """Write a checkpoint.

        Args:
            images: images seen; names the checkpoint.
            tensors: file stem => tensors, each written as one safetensors file.
            state: everything else, as JSON.
        """
        target = self.path / f"{_PREFIX}{images:012d}"
        temporary = self.path / f".{target.name}.{os.getpid()}"
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in self.path.glob(f".{_PREFIX}*"):
            shutil.rmtree(stale)
        temporary.mkdir()
        checksums = {}
        for stem, content in tensors.items():
            file = temporary / f"{stem}.safetensors"
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in content.items()}, file)
            _sync(file)
            checksums[file.name] = _digest(file)
        manifest = temporary / MANIFEST
        manifest.write_text(json.dumps({"images": images, "checksums": checksums, **state}, indent=1))
        _sync(manifest)
        _sync(temporary)
        if target.exists():  # from an earlier run that stopped right here
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(self.path)
        for old in self.list()[: -self.keep]:
            shutil.rmtree(old)
        return target

    def newest(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict] | None:
        """The newest undamaged checkpoint as `(tensors, state)`, or `None` where there is none."""
        for path in reversed(self.list()):
            try:
                return self._read(path)
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(f"The checkpoint {path} is damaged ({error}); the one before it is used.", stacklevel=2)
        return None

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
        state = json.loads((path / MANIFEST).read_text())
        for name, checksum in state["checksums"].items():
            if _digest(path / name) != checksum:
                raise ValueError(f"{name} does not match its checksum")
        return {Path(name).stem: load_file(path / name) for name in state["checksums"]}, state
