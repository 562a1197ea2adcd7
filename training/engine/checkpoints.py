"""Checkpoints that are complete or absent: tensors in safetensors, everything else in one JSON manifest."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from brickwork.files import file_digest, follow_umask, put_in_place
from brickwork.training.engine.zero import is_zero, load_zero_tensors, zero_tensors

MANIFEST = "manifest.json"
_PREFIX = "images-"


def sync(path: Path) -> None:
    """Have a file or a folder's entries on the disk before going on; Windows has no such call for folders."""
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU; the shards of a distributed one are gathered, so all processes must call this alike."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().contiguous()


def assign(target: torch.Tensor, value: torch.Tensor) -> None:
    """Write a full tensor into one that may be sharded over processes."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    with torch.no_grad():
        target.copy_(value)


def frozen_names(model: torch.nn.Module) -> set[str]:
    """The parameters of a network that do not learn."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def trained_tensors(model: torch.nn.Module, frozen: set[str] | None = None) -> dict[str, torch.Tensor]:
    """What training changes in a network: parameters that are not frozen, and buffers that are saved with it.

    Args:
        model: the network.
        frozen: names of what does not learn, for a network that is frozen and thawed on the way.
    """
    frozen = frozen_names(model) if frozen is None else frozen
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in frozen}


def load_tensors(targets: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Write saved tensors into those of a network, such as its `trained_tensors`.

    Raises:
        ValueError: for tensors of another network.
    """
    different = sorted(set(targets) ^ set(tensors))
    different += [name for name in targets if name in tensors and targets[name].shape != tensors[name].shape]
    if different:
        raise ValueError(f"The saved weights belong to another network; they differ in {different[:5]}.")
    for name, target in targets.items():
        assign(target, tensors[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """An optimizer's state as `parameter name|state name` => tensor."""
    if is_zero(optimizer):
        return zero_tensors(optimizer, model)
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """The way back from `optimizer_tensors`, after that of the weights; states are sharded as their parameters are."""
    if is_zero(optimizer):
        return load_zero_tensors(optimizer, model, tensors)
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("|")
        parameter = parameters[parameter_name]
        if isinstance(parameter, DTensor) and value.shape == parameter.shape:
            value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        # Step counters belong beside the parameters for fused kernels, and on the CPU otherwise; those of bitsandbytes
        # are plain numbers.
        beside = value.ndim > 0 or optimizer.defaults.get("fused")
        counter = value.ndim == 0 and not value.is_floating_point()
        optimizer.state[parameter][key] = value.item() if counter else value.to(parameter.device) if beside else value


class CheckpointFolder:
    """The checkpoints of a run, one folder each, the newest few kept.

    A checkpoint is written under another name and gets its own, by renaming, when everything in it is on the disk. The
    manifest holds a checksum of each file; a damaged checkpoint is reported and the one before it is used.

    Args:
        path: the folder; made when needed.
        keep: how many undamaged ones to keep.
    """

    def __init__(self, path: str | Path, keep: int = 2):
        self.path, self.keep = Path(path), keep
        self._damaged: set[Path] = set()

    def list(self) -> list[Path]:
        """The checkpoints from the oldest to the newest, damaged ones among them."""
        return sorted(path for path in self.path.glob(f"{_PREFIX}*") if path.is_dir())

    def save(self, images: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict, write: bool = True) -> Path:
        """Write a checkpoint, and then delete what is older than the newest `keep` good ones.

        Args:
            images: images seen; names the checkpoint.
            tensors: file stem => tensors, each written as one safetensors file.
            state: everything else, as JSON.
            write: whether this process writes; the others only take part in gathering sharded tensors.

        Raises:
            ValueError: where the file system refuses; nothing that was saved before is touched.
        """
        target = self.path / f"{_PREFIX}{images:012d}"
        temporary = self.path / f".{target.name}.{os.getpid()}"
        if target.exists() and target not in self._damaged:
            return target  # the run has stopped where it had just been saved
        try:
            if write:
                self.path.mkdir(parents=True, exist_ok=True)
                for stale in self.path.glob(f".{_PREFIX}*"):
                    shutil.rmtree(stale)
                temporary.mkdir()
            checksums = {}
            for stem, content in tensors.items():
                content = {name: gathered(tensor) for name, tensor in content.items()}
                if write:
                    checksums |= _write_tensors(temporary / f"{stem}.safetensors", content)
            if not write:
                return target
            manifest = temporary / MANIFEST
            manifest.write_text(json.dumps({"images": images, "checksums": checksums, **state}, indent=1))
            sync(manifest)
            sync(temporary)
            put_in_place(temporary, target)  # of a damaged one, too
            self._damaged.discard(target)
            sync(self.path)
            self._delete_old()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = [path for path in self.list() if path not in self._damaged]
            remains = f"the last good one is {kept[-1]}" if kept else "there is none yet"
            raise ValueError(
                f"The checkpoint {target} could not be written ({error}); {remains}. Make room, or make "
                "`run.output_dir` writable, and run the same command again."
            ) from error
        return target

    def _delete_old(self) -> None:
        good = [path for path in self.list() if path not in self._damaged]
        for path in self.list():
            if path < good[-self.keep :][0]:
                going = path.with_name(f".{path.name}.old")
                path.rename(going)
                shutil.rmtree(going)

    def newest(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict] | None:
        """The newest undamaged checkpoint as `(tensors, state)`, or `None` where there is none.

        Raises:
            ValueError: where every checkpoint is damaged.
        """
        paths = self.list()
        for path in reversed(paths):
            try:
                return self._read(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                self._damaged.add(path)
                warnings.warn(f"The checkpoint {path} is damaged ({error}); the one before it is used.", stacklevel=2)
        if paths:
            raise ValueError(
                f"Every checkpoint in {self.path} is damaged; put a good copy there, or train into another "
                "`run.output_dir`."
            )
        return None

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
        state = json.loads((path / MANIFEST).read_text())
        for name, checksum in state["checksums"].items():
            if file_digest(path / name) != checksum:
                raise ValueError(f"{name} does not match its checksum")
        return {Path(name).stem: load_file(path / name) for name in state["checksums"]}, state


def _write_tensors(file: Path, content: dict[str, torch.Tensor]) -> dict[str, str]:
    """Write one safetensors file; returns its name and checksum."""
    save_file(_apart(content), file)
    follow_umask(file)
    sync(file)
    return {file.name: file_digest(file)}


def _apart(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, each with memory of its own, as safetensors wants it: 8-bit optimisers share their tables."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in content.items():
        address = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return apart
