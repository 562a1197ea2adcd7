"""The norms of a base model's ResNet blocks, read without loading the rest of the model.

A ResAdapter's file holds 0.4 MB of norms; the base it is compared with may be 7 GB. From safetensors files only the
tensors asked for are read, on the Hub by ranges of bytes.
"""

import json
import struct
from pathlib import Path

import torch
from torch import nn

from brickwork import compat
from brickwork.adapters.base import network_of
from brickwork.adapters.comfyui.names import module_path
from brickwork.adapters.comfyui.reading import ResAdapterWeights, listed, opened
from brickwork.adapters.resadapter.state import stored
from brickwork.files import digest, read_json
from brickwork.hub import check_name, shipped_folder, shipped_names

UNET_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_INDEXES = (f"{UNET_FILES[0]}.index.json", f"{UNET_FILES[0]}.index.fp16.json")

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit


def read_base_norms(base_model, keys: list[str], **options: str) -> dict[str, torch.Tensor]:
    """The tensors named by `keys` (`<path>.norm1.weight`, ...) of a base model, as stored, on the CPU.

    base_model: a loaded pipeline or UNet; the folder of a pipeline or of a UNet, or any folder with `unet/`; a
        single-file checkpoint (.safetensors, in the original or diffusers names); or a repository on the Hub.
    options: of the Hub, `revision`, `variant` and `token`.

    Raises:
        ValueError: nothing readable there, a pickle, or tensors missing.
    """
    if isinstance(base_model, nn.Module) or hasattr(base_model, "unet"):
        unet = inner_unet(base_model)
        return {key: own_norm(unet, key) for key in keys}
    path = shipped_folder() / base_model if base_model in shipped_names() else Path(base_model)
    if path.is_file():
        return _read_file(path, keys)
    if path.is_dir():
        return _read_folder(path, keys)
    if isinstance(base_model, str) and base_model.count("/") == 1 and not path.is_absolute():
        check_name(base_model, "base_model", "model")
        return _read_hub(base_model, keys, **options)
    raise ValueError(f"base_model={str(base_model)!r} is no file, no folder and no repository id (owner/name)")


def base_norms_for(adapter: ResAdapterWeights, base_model, **options: str) -> dict[str, torch.Tensor]:
    """The base model's norms under the adapter's keys, or a `ValueError` where shapes tell of another model."""
    base = read_base_norms(base_model, list(adapter.norms), **options)
    wrong = [key for key, value in base.items() if value.shape != adapter.norms[key].shape]
    if wrong:
        raise ValueError(f"base_model is no model that {adapter.source} fits: {listed(wrong)} have other shapes")
    return base


def norms_fingerprint(norms: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and float64 values: tells whether differences belong to this base."""
    entries = ((key, norms[key].double().contiguous().numpy().tobytes()) for key in sorted(norms))
    return digest(*(key.encode() + b"\0" + values for key, values in entries))


def inner_unet(target) -> nn.Module:
    """The UNet of a pipeline, or the UNet itself, out of torch.compile's and data-parallel wrappers."""
    unet = network_of(target) if isinstance(target, nn.Module) or hasattr(target, "unet") else target
    if not isinstance(unet, nn.Module) or not all(hasattr(unet, name) for name in ("down_blocks", "up_blocks")):
        raise ValueError(
            f"got {type(target).__name__}, need a StableDiffusion or StableDiffusionXL pipeline, or its UNet"
        )
    return unet


def base_layer(unet: nn.Module, path: str) -> nn.Module:
    """The module at `path`, out of the wrapper that PEFT puts around a layer with a LoRA."""
    try:
        module = unet.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the UNet has no module {path!r}") from error
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def own_tensor(module: nn.Module, name: str) -> torch.Tensor:
    """A module's parameter, also while accelerate keeps it elsewhere and leaves a stand-in on the meta device."""
    tensor = getattr(module, name)
    if tensor.device.type != "meta":
        return tensor
    weights = compat.offloaded_weights(module)
    if weights is not None:
        return weights[name]
    raise ValueError(f"the {name} of a {type(module).__name__} is on the meta device: load the model's weights first")


def own_norm(unet: nn.Module, key: str) -> torch.Tensor:
    """A copy of the UNet's own norm tensor, as it was before any ResAdapter was fused into it."""
    for fused in stored(unet).fused:
        if key in fused.kept:
            return fused.kept[key].clone()
    path, _, part = key.rpartition(".")
    return own_tensor(base_layer(unet, path), part).detach().cpu().clone()


def canonical_tensor(key: str) -> str | None:
    """A key of a base checkpoint as diffusers' key if a ResAdapter changes that tensor, or None for any other."""
    for prefix in _PREFIXES:
        name, _, part = key.removeprefix(prefix).rpartition(".")
        path = module_path(name) if key.startswith(prefix) else None
        if path is not None and (part == "weight" or (part == "bias" and ".norm" in path)):
            return f"{path}.{part}"
    return None


def _wanted(raw_keys, keys: list[str], where: str) -> dict[str, str]:
    """Which raw key holds each of `keys`; refuses if any is not there."""
    names = {canonical_tensor(raw): raw for raw in raw_keys}
    missing = [key for key in keys if key not in names]
    if missing:
        raise ValueError(f"{where} has no {listed(missing)}: it is no UNet that this adapter fits")
    return {key: names[key] for key in keys}


def _read_file(file: Path, keys: list[str]) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: only .safetensors checkpoints are read, as pickles can run code when opened")
    with opened(file) as found:
        return {key: found.get_tensor(raw) for key, raw in _wanted(found.keys(), keys, str(file)).items()}


def _read_folder(folder: Path, keys: list[str]) -> dict[str, torch.Tensor]:
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    file = next((unet / name for name in (*UNET_FILES, *_INDEXES) if (unet / name).is_file()), None)
    if file is None:
        there = listed(f.name for f in unet.iterdir()) or "nothing"
        raise ValueError(
            f"{unet} has neither {' nor '.join(UNET_FILES)}; found {there}. Pickled weights (.bin) are not read: save "
            "the model with safe_serialization=True"
        )
    if file.name in UNET_FILES:
        return _read_file(file, keys)
    shards, found = read_weight_map(file), {}
    files = {key: unet / shards[raw] for key, raw in _wanted(shards, keys, str(file)).items()}
    for shard in sorted(set(files.values())):
        found |= _read_file(shard, [key for key in keys if files[key] == shard])
    return found


def read_weight_map(index: Path) -> dict[str, str]:
    """Which shard holds each tensor, by an index beside the shards."""
    shards = read_json(index, "index of shards").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index} has no 'weight_map' from tensors to files; download it again")
    return shards


def _read_hub(
    repository: str, keys: list[str], revision: str | None = None, variant: str | None = None, token: str | None = None
) -> dict[str, torch.Tensor]:
    from huggingface_hub import HfFileSystem, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    files = UNET_FILES if variant is None else [UNET_FILES[0].replace(".safetensors", f".{variant}.safetensors")]
    names = [f"unet/{name}" for name in files]
    for name in names:
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return _read_file(Path(cached), keys)
    system = HfFileSystem(token=token)
    for name in names:
        try:
            with system.open(
                f"{repository}{f'@{revision}' if revision else ''}/{name}", "rb", block_size=2**20
            ) as stream:
                return read_stream(stream, keys, f"{repository}/{name}")
        except FileNotFoundError:
            continue
        except (OSError, HfHubHTTPError) as error:
            raise ValueError(f"base_model={repository!r} cannot be read from the Hub: {error}") from error
    raise ValueError(f"base_model={repository!r}: the Hub has no such repository with {' or '.join(names)}")


def read_stream(stream, keys: list[str], where: str) -> dict[str, torch.Tensor]:
    """The tensors named by `keys` from a seekable stream in safetensors form, reading their bytes and no others."""
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _HEADER_LIMIT:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(stream.read(length))
        found = {}
        for key, raw in _wanted(header, keys, where).items():
            start, end = header[raw]["data_offsets"]
            stream.seek(8 + length + start)
            data = torch.frombuffer(bytearray(stream.read(end - start)), dtype=_DTYPES[header[raw]["dtype"]])
            found[key] = data.reshape(header[raw]["shape"])
        return found
    except (struct.error, json.JSONDecodeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where} is no readable safetensors file: {error}") from error
