"""Writing a ResAdapter in each of its forms, and changing its norms between absolute values and differences.

- `official`: a folder with `pytorch_lora_weights.safetensors` in kohya names and the absolute norms in
  `diffusion_pytorch_model.safetensors`, as the authors released it.
- `diffusers`: `<name>.safetensors` in PEFT names, which stock `load_lora_weights` takes, and the absolute norms in
  `<name>_norms.safetensors`, which it would refuse in the same file.
- `comfyui`: one file that the LoRA loaders of ComfyUI, Forge and A1111 take, in kohya names, with the norms as
  differences from a base model's in LyCORIS's `w_norm` and `b_norm`, or in `diff` and `diff_b`.

Every file says in its metadata that it is a ResAdapter and for which family; the LoRA has what trainers noted before,
and what kohya's own files have, by which programs sort: without it A1111 takes an SDXL file for one of SD 1 and hides
it.

Reading is in `comfyui/reading.py`, which the ComfyUI nodes share.
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save, save_file

from brickwork.adapters.base import KIND_KEY, read_metadata
from brickwork.adapters.comfyui.metadata import HASH_KEYS, INFO_KEY, PEFT_KEY
from brickwork.adapters.comfyui.names import TEXT_LAYERS, compvis_path, kohya_name, text_keys
from brickwork.adapters.comfyui.reading import LORA_FILES, NORM_FILES, NORMS_SUFFIX, ResAdapterWeights
from brickwork.adapters.resadapter.base_norms import norms_fingerprint
from brickwork.errors import one_of
from brickwork.files import check_file, digest, new_files

FORMS = ("official", "diffusers", "comfyui")
NAMINGS = ("diffusers", "compvis")
# How the differences of a norm's weight and bias are called in the `comfyui` form. ComfyUI, Forge and A1111 take
# both; stable-diffusion.cpp takes the second alone, and would leave out the first without a word.
NORM_KEYS = {"norm": ("w_norm", "b_norm"), "diff": ("diff", "diff_b")}
_FAMILY_NOTES = {  # as kohya's scripts and the ModelSpec call them
    "sd1": ("sd_v1", "stable-diffusion-v1"),
    "sd2": ("sd_v2", "stable-diffusion-v2"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
_BASE_HASH, _NORM_TYPES = "base_norms_sha256", "norm_types"


def to_differences(
    adapter: ResAdapterWeights, base: dict[str, torch.Tensor], dtype: torch.dtype = torch.float64
) -> ResAdapterWeights:
    """The adapter with its absolute norms as differences from `base`, which is noted by its fingerprint.

    In float64 the way back is exact; in float32 it is not.
    """
    norms = {key: (value.double() - base[key].double()).to(dtype) for key, value in adapter.norms.items()}
    types = sorted({str(value.dtype).removeprefix("torch.") for value in adapter.norms.values()})
    if len(types) > 1:
        raise ValueError(f"{adapter.source}: norms of several types ({', '.join(types)}); need one")
    info = adapter.info | ({_BASE_HASH: norms_fingerprint(base), _NORM_TYPES: types[0]} if norms else {})
    return dataclasses.replace(adapter, norms=norms, differences=bool(norms), info=info)


def to_absolute(adapter: ResAdapterWeights, base: dict[str, torch.Tensor]) -> ResAdapterWeights:
    """The adapter with its norm differences added to `base` again, in the type they first had.

    Raises:
        ValueError: the file says that its differences were taken from another base.
    """
    stated = adapter.info.get(_BASE_HASH)
    if stated is not None and stated != norms_fingerprint(base):
        raise ValueError(
            f"{adapter.source} holds differences from another base model than base_model: their norms' fingerprints "
            f"are {stated[:12]} and {norms_fingerprint(base)[:12]}. A half-precision copy of a model counts as another"
        )
    dtype = getattr(torch, adapter.info.get(_NORM_TYPES, "float32"))
    norms = {key: (base[key].double() + value.double()).to(dtype) for key, value in adapter.norms.items()}
    info = {key: value for key, value in adapter.info.items() if key not in (_BASE_HASH, _NORM_TYPES)}
    return dataclasses.replace(adapter, norms=norms, differences=False, info=info)


def write_adapter(
    adapter: ResAdapterWeights,
    dst: str | Path,
    to: str,
    *,
    naming: str | None = None,
    norm_keys: str | None = None,
    text_width: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Writes the adapter in the form `to`; its norms must be differences for `comfyui` and absolute otherwise.

    Arguments and result are those of `convert_resadapter`; each file appears complete or not at all.
    """
    one_of("to", to, FORMS)
    for argument, value, allowed in (("naming", naming, NAMINGS), ("norm_keys", norm_keys, NORM_KEYS)):
        if value is not None and one_of(argument, value, allowed) and to != "comfyui":
            raise ValueError(f"`{argument}` is {value!r}, which goes with to='comfyui' only; leave it out.")
    if text_width and (to != "comfyui" or len(adapter.families()) != 1):
        raise ValueError(
            f"text_width=True needs to='comfyui' and an adapter of one known family ({', '.join(TEXT_LAYERS)}); "
            f"{adapter.source} fits {' and '.join(adapter.families()) or 'none of them'}: leave it out, or state the "
            "family where the adapter is made"
        )
    if adapter.norms and adapter.differences != (to == "comfyui"):
        kind = "differences, need absolute values" if adapter.differences else "absolute values, need differences"
        raise ValueError(f"{adapter.source} has its norms as {kind} for to={to!r}: give base_model")
    dst = Path(dst)
    if (dst.suffix == ".safetensors") == (to == "official") or (to == "official" and dst.is_file()):
        raise ValueError(
            f"dst={str(dst)!r}: to={to!r} needs {'a folder' if to == 'official' else 'a .safetensors path'}"
        )
    if to == "comfyui":
        files = _comfyui(adapter, dst, naming, norm_keys or "norm", text_width)
    else:
        files = {"official": _official, "diffusers": _diffusers}[to](adapter, dst)
    for path in files:
        check_file(path, _is_ours, overwrite=overwrite, argument="dst")
    with new_files(*files) as parts:
        for part, (tensors, metadata) in zip(parts, files.values()):
            save_file({key: value.contiguous() for key, value in tensors.items()}, part, metadata)
    return list(files)


def _is_ours(path: Path) -> bool:
    stated = read_metadata(path)
    return stated.get(KIND_KEY) == "resadapter" or INFO_KEY in stated


def _metadata(adapter: ResAdapterWeights) -> dict[str, str]:
    own = {INFO_KEY: json.dumps(adapter.info, sort_keys=True)} if adapter.info else {}
    return {KIND_KEY: "resadapter"} | own


def _lora_metadata(adapter: ResAdapterWeights, title: str, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """What kohya's scripts and the ModelSpec say of a LoRA; what was noted before goes first, but for the hashes."""
    facts = {"modelspec.sai_model_spec": "1.0.0", "modelspec.implementation": "diffusers", "modelspec.title": title}
    families = adapter.families()
    if len(families) == 1:
        version, architecture = _FAMILY_NOTES[families[0]]
        facts |= {"ss_base_model_version": version, "ss_v2": str(families[0] == "sd2")}
        facts["modelspec.architecture"] = f"{architecture}/lora"
    if adapter.convs:
        pair = next(iter(adapter.convs.values()))
        facts |= {"ss_network_module": "networks.lora", "ss_network_dim": str(pair.rank)}
        facts["ss_network_alpha"] = f"{pair.factor * pair.rank:g}"
    return _metadata(adapter) | facts | adapter.notes | hashes(save(tensors))


def hashes(data: bytes) -> dict[str, str]:
    """What kohya's scripts and the ModelSpec call the hash of a safetensors file: of all behind its header."""
    hashed = digest(data[8 + int.from_bytes(data[:8], "little") :])
    return dict(zip(HASH_KEYS, (hashed, hashed[:8], f"0x{hashed}")))


def _official(adapter: ResAdapterWeights, dst: Path) -> dict[Path, tuple]:
    files = {}
    if adapter.convs:
        tensors = adapter.kohya_tensors()
        files[dst / LORA_FILES[0]] = (tensors, _lora_metadata(adapter, dst.name, tensors))
    if adapter.norms:
        files[dst / NORM_FILES[0]] = (adapter.norms, _metadata(adapter))
    return files


def _diffusers(adapter: ResAdapterWeights, dst: Path) -> dict[Path, tuple]:
    files = {}
    if adapter.convs:
        tensors = {}
        for path, pair in adapter.convs.items():
            tensors |= {f"unet.{path}.lora_A.weight": pair.down, f"unet.{path}.lora_B.weight": pair.up}
        ranks = {path: pair.rank for path, pair in adapter.convs.items()}
        alphas = {path: pair.factor * pair.rank for path, pair in adapter.convs.items()}
        first = next(iter(ranks))
        peft = {
            "r": ranks[first],
            "lora_alpha": alphas[first],
            "rank_pattern": {path: rank for path, rank in ranks.items() if rank != ranks[first]},
            "alpha_pattern": {path: alpha for path, alpha in alphas.items() if alpha != alphas[first]},
            "target_modules": sorted(ranks),
        }
        stated = {
            path: [float(pair.alpha), str(pair.alpha.dtype).removeprefix("torch.")]
            for path, pair in adapter.convs.items()
            if pair.alpha is not None
        }
        noted = dataclasses.replace(adapter, info=adapter.info | ({"alphas": stated} if stated else {}))
        metadata = _lora_metadata(noted, dst.stem, tensors)
        metadata[PEFT_KEY] = json.dumps({f"unet.{key}": value for key, value in peft.items()}, sort_keys=True)
        files[dst] = (tensors, metadata)
    if adapter.norms:
        files[dst.with_name(dst.stem + NORMS_SUFFIX)] = (adapter.norms, _metadata(adapter))
    return files


def _comfyui(
    adapter: ResAdapterWeights, dst: Path, naming: str | None, norm_keys: str, text_width: bool
) -> dict[Path, tuple]:
    # A1111 finds SDXL's first upsampler under its compvis name only.
    naming = naming or ("compvis" if adapter.families() == ["sdxl"] else "diffusers")
    if adapter.convs:
        levels = 1 + sum(path.startswith("down_blocks") for path in adapter.convs)
    else:
        levels = 1 + max((int(key.split(".")[1]) for key in adapter.norms if key.startswith("down_blocks")), default=0)
    rename = (lambda path: compvis_path(path, levels)) if naming == "compvis" else str
    tensors = adapter.kohya_tensors(rename)
    for key, value in adapter.norms.items():
        path, _, part = key.rpartition(".")
        tensors[f"{kohya_name(rename(path))}.{NORM_KEYS[norm_keys][part == 'bias']}"] = value
    if text_width:
        tensors |= {key: torch.zeros(shape) for key, shape in text_keys(adapter.families()[0], naming).items()}
    return {dst: (tensors, _lora_metadata(adapter, dst.stem, tensors))}
