"""`merge_resadapter`: an adapter baked into a checkpoint, for programs that load no adapters.

The result has the base's tensors, names, types and metadata; only the down- and upsampler convolutions and the ResNet
norms differ, in every copy of the network that the base holds (variants, shards, averaged weights). There is no way
back but the base itself.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file

from brickwork.adapters.base import checked_scale
from brickwork.adapters.comfyui.metadata import HASH_KEYS
from brickwork.adapters.comfyui.reading import ResAdapterWeights, check_fits, listed, opened, read_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.adapters.resadapter.base_norms import canonical_tensor, read_weight_map
from brickwork.adapters.resadapter.formats import hashes
from brickwork.errors import advice, count_and_name
from brickwork.files import new_folder, write_file
from brickwork.hub import shipped_folder, shipped_names

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Weights of other frameworks and of quantisers: the network once more, in a form that is not written here.
_OTHERS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".gguf", ".ot", ".tflite", ".xml", ".engine", ".npz")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_EMA = "model_ema."  # the averaged weights in original checkpoints: names without dots


def merge_resadapter(
    base: str | Path,
    adapter: str | Path,
    dst: str | Path,
    *,
    scale: float = 1.0,
    lora_scale: float | None = None,
    norm_scale: float | None = None,
) -> Path:
    """Writes `base` with a ResAdapter baked in at the given strength.

    Args:
        base: a single-file checkpoint (original or diffusers names), a UNet's folder or a pipeline's. Of a folder,
            every file that holds the network is merged: variants, shards, `.bin`, checkpoints beside `unet/`. Of
            pickles, plain tensors are read alone.
        adapter: a file, an authors' folder or a repository on the Hub, as for `load_resadapter`. Absolute norms
            replace the base's own by the scale; differences are added.
        dst: a file if `base` is one, else a folder; must not exist.
        scale: strength, a finite number; `lora_scale` and `norm_scale` go before it for one half.

    Raises:
        ValueError: something in the way at `dst`, a base or adapter that cannot be read, a pair that does not fit, a
            file of the network that cannot be merged, or values that the base's type cannot hold.
    """
    base, dst = shipped_folder() / base if base in shipped_names() else Path(base), Path(dst)
    strengths = {"scale": scale, "lora_scale": lora_scale, "norm_scale": norm_scale}
    numbers = {name: checked_scale(name, value) for name, value in strengths.items() if value is not None}
    lora, norm = (numbers.get(half, numbers["scale"]) for half in ("lora_scale", "norm_scale"))
    if dst.exists():
        raise ValueError(f"dst={str(dst)!r} exists already: choose another")
    if not base.exists():
        beside = [str(entry) for entry in base.parent.iterdir()] if base.parent.is_dir() else []
        raise ValueError(f"`base` is {str(base)!r}, which is not there; {advice(base, beside, 'there are')}")
    loaded = read_adapter(local_adapter(adapter, "adapter"))
    files = [file for copy in _fitting_copies(base, loaded) for file in copy]
    if base.is_file():
        return write_file(dst, lambda part: _merge_file(base, part, loaded, lora, norm))

    def merged(at: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(at, name) in files]

    with new_folder(dst, "merge", argument="dst") as part:
        shutil.copytree(base, part, dirs_exist_ok=True, ignore=merged)
        for file in files:
            _merge_file(file, part / file.relative_to(base), loaded, lora, norm)
    return dst


def _fitting_copies(base: Path, adapter: ResAdapterWeights) -> list[list[Path]]:
    """The files of each copy of the network in a checkpoint or folder; an adapter must fit them all."""
    found = []
    for copy in [[base]] if base.is_file() else _groups(base):
        shapes: dict[str, tuple[int, ...]] = {}
        for file in copy:
            shapes |= _shapes(file)
        if shapes or base.is_file() or copy[0].name.startswith("diffusion_pytorch_model"):
            check_fits(adapter, shapes, str(copy[0]))
            found.append(copy)
    if not found:
        raise ValueError(f"{base} has no weights of a UNet in .safetensors or {', '.join(_PICKLES)}")
    return found


def _groups(base: Path) -> list[list[Path]]:
    """Weight files of a UNet's folder, or of a pipeline's and of its `unet/`: shards together, others alone."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for folder in [base / "unet", base] if (base / "unet").is_dir() else [base]:
        for file in sorted(folder.iterdir()):
            if file.suffix in _OTHERS and folder.name != "onnx":
                raise ValueError(
                    f"{file} is the network in a form that cannot be merged; the result would hold it as it was. Copy "
                    "the base without it"
                )
            if file.suffix in (".safetensors", *_PICKLES):
                groups.setdefault((folder, _SHARD.sub("", file.name)), []).append(file)
            elif ".index." in file.name and file.suffix == ".json":
                shards = sorted(set(read_weight_map(file).values()))
                if missing := [name for name in shards if not (folder / name).is_file()]:
                    raise ValueError(f"{folder} lacks {count_and_name(missing)}, which {file.name} names; download it")
    return list(groups.values())


def _read_pickle(file: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """What a pickled checkpoint holds, plain tensors and numbers alone, and the table of its weights."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an odd file raises
        raise ValueError(
            f"{file} is not merged: of pickles, which can run code when opened, plain tensors are read alone "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Save the base as safetensors"
        ) from None
    table = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {key: value for key, value in table.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    return content, tensors


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The checkpoint's convolutions and norms, as `check_fits` takes them."""
    if file.suffix in _PICKLES:
        found = {key: tuple(tensor.shape) for key, tensor in _read_pickle(file)[1].items()}
    else:
        with opened(file) as stored:
            found = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}
    shapes = {}
    for key, shape in found.items():
        name = canonical_tensor(key)
        if name is not None:
            conv = "samplers" in name
            shapes[name.removesuffix(".weight") if conv else name] = shape[: 1 + conv]
    return shapes


def _merge_file(src: Path, dst: Path, adapter: ResAdapterWeights, lora: float, norm: float) -> None:
    if src.suffix in _PICKLES:
        content, tensors = _read_pickle(src)
        table = content["state_dict"] if "state_dict" in content else content
        table.update(_merged(src, tensors, adapter, lora, norm))
        torch.save(content, dst)
        return
    with opened(src) as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}
        metadata = stored.metadata()
    merged = {key: tensor.contiguous() for key, tensor in _merged(src, tensors, adapter, lora, norm).items()}
    if metadata and any(key in metadata for key in HASH_KEYS):
        fresh = hashes(save(merged))
        metadata |= {key: value for key, value in fresh.items() if key in metadata}
    save_file(merged, str(dst), metadata)


def _merged(
    file: Path, tensors: dict[str, torch.Tensor], adapter: ResAdapterWeights, lora: float, norm: float
) -> dict[str, torch.Tensor]:
    """All tensors, those that the adapter changes with its effect; each keeps its type."""
    scaled = [key for key in tensors if key.endswith(("scaled_fp8", ".scale_weight", ".weight_scale"))]
    if scaled:
        raise ValueError(
            f"{file} holds 8-bit weights with scales ({listed(scaled)}), which cannot be merged; take one of 16 bits"
        )
    names = {key: canonical_tensor(key) for key in tensors}
    averaged = {_EMA + key.removeprefix("model.").replace(".", ""): name for key, name in names.items() if name}
    names |= {key: averaged[key] for key in tensors if key.startswith(_EMA) and key in averaged}
    result = {}
    for key, tensor in tensors.items():
        name = names[key]
        path = (name or "").removesuffix(".weight")
        new = None
        if path in adapter.convs and lora != 0:
            new = tensor.float() + adapter.convs[path].delta() * lora
        elif name in adapter.norms and norm != 0:
            value = adapter.norms[name].double()
            change = value if adapter.differences else value - tensor.double()
            new = tensor.double() + change * norm
        result[key] = tensor if new is None else new.to(tensor.dtype)
        if new is not None and not torch.isfinite(result[key].float()).all():
            raise ValueError(
                f"{file}: merged, {key!r} has values that {tensor.dtype} cannot hold; lower the strength, or take a "
                "base of another type"
            )
    return result
