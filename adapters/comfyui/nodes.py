"""The node: a model goes in, a model with a ResAdapter on it comes out, and the one that went in stays as it was.

ComfyUI's own parts are imported inside the functions, as they exist inside ComfyUI only. What is used of them has kept
its form from 2024 on: `comfy.lora.model_lora_keys_unet` and `load_lora`, a model patcher's `clone`, `add_patches` and
`get_key_patches`, and `folder_paths`.
"""

import logging
import os

import torch

from .names import kohya_name, module_path, parse_key
from .reading import (
    LORA_FILES,
    NORM_FILES,
    NORMS_SUFFIX,
    ResAdapterWeights,
    adapter_files,
    check_fits,
    opened,
    read_adapter,
)
from .strength import auto_strength, range_warning

_PIXELS_PER_LATENT = 8
_TRAIN_SIZES = {768: 512, 1024: 512, 2048: 1024}  # by the width of the text context: SD 1, SD 2, SDXL
_SD2_VELOCITY_SIZE = 768  # SD 2's v-prediction models were trained on larger images than its others
_LISTED: dict[str, tuple[str, bool]] = {}  # path => stamp, whether it can be a ResAdapter


class BrickworkResAdapter:
    """Applies a ResAdapter file or folder from ComfyUI's LoRA folder to a model."""

    RETURN_TYPES = ("MODEL", "FLOAT")
    RETURN_NAMES = ("model", "auto_strength")
    OUTPUT_TOOLTIPS = (
        "The model with the ResAdapter on it.",
        "What the automatic strength came to; 1 where it is off.",
    )
    FUNCTION = "apply"
    CATEGORY = "loaders/brickwork"
    DESCRIPTION = "Lets a Stable Diffusion or SDXL model draw at sizes it was not trained for."

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        strength = {"default": 1.0, "min": -2.0, "max": 2.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to adapt; it is not changed."}),
                "resadapter": (resadapter_names(), {"tooltip": "A file in ComfyUI's models/loras folder."}),
                "strength_lora": ("FLOAT", {**strength, "tooltip": "Of the part that serves small images most."}),
                "strength_norms": ("FLOAT", {**strength, "tooltip": "Of the part that large images need too."}),
            },
            "optional": {
                "latent": (
                    "LATENT",
                    {"tooltip": "Connect the empty latent to have both strengths multiplied by what suits its size."},
                )
            },
        }

    @classmethod
    def IS_CHANGED(cls, resadapter: str, **inputs) -> str:
        """Changes with either of the files, and when the second one comes or goes."""
        return " ".join(f"{file.name} {_stamp(file)}" for file in adapter_files(_full_path(resadapter)))

    @classmethod
    def read(cls, path: str) -> ResAdapterWeights:
        """The complete adapter; half of one is an error that names what is missing."""
        adapter = read_adapter(path)
        if missing := missing_half(adapter):
            raise ValueError(missing)
        return adapter

    def apply(self, model, resadapter: str, strength_lora: float, strength_norms: float, latent=None):
        """The patched clone of the model, and the factor that the latent's size gave (1.0 without a latent)."""
        adapter = self.read(_full_path(resadapter))
        automatic = _automatic(model, adapter, resadapter, latent)
        return patch_model(model, adapter, strength_lora * automatic, strength_norms * automatic), automatic


class BrickworkResAdapterLoraAlone(BrickworkResAdapter):
    """Applies the LoRA of a ResAdapter and leaves out its norms, whether their file is there or not."""

    DESCRIPTION = "The LoRA of a ResAdapter without its norms, which large images need: a part of its effect."

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        inputs = super().INPUT_TYPES()
        del inputs["required"]["strength_norms"]
        return inputs

    @classmethod
    def read(cls, path: str) -> ResAdapterWeights:
        """The LoRA alone."""
        adapter = read_adapter(path)
        if not adapter.convs:
            raise ValueError(f"{adapter.source} has no LoRA; take the node 'ResAdapter (Brickwork)'")
        adapter.norms.clear()
        return adapter

    def apply(self, model, resadapter: str, strength_lora: float, latent=None):
        """The patched clone of the model, and the factor that the latent's size gave (1.0 without a latent)."""
        return super().apply(model, resadapter, strength_lora, 0.0, latent)


def _automatic(model, adapter: ResAdapterWeights, name: str, latent) -> float:
    """The factor that suits the latent's size; sizes that the adapter was not trained for are logged."""
    if latent is None:
        return 1.0
    height, width = (side * _PIXELS_PER_LATENT for side in latent["samples"].shape[-2:])
    if message := range_warning(height, width, adapter.training_range()):
        logging.warning("ResAdapter %s: %s", name, message)
    return auto_strength(height, width, train_size(model))


def missing_half(adapter: ResAdapterWeights) -> str | None:
    """What to say of an adapter of which one of two files is missing; None for a complete one.

    One half is all of an adapter that says so: trained with `kind` "interpolation" (LoRA) or "extrapolation"
    (norms).
    """
    directory, name = os.path.split(adapter.source)
    if not adapter.norms and adapter.info.get("kind") != "interpolation":
        stem = os.path.splitext(name)[0]
        wanted = NORM_FILES[LORA_FILES.index(name)] if name in LORA_FILES else stem + NORMS_SUFFIX
        return (
            f"{name} is the first of a ResAdapter's two files, and the second, {wanted}, is not beside it in "
            f"{directory}: with the first alone most of the effect would be missing. Put the second there and run "
            "again; to use the first alone, take the node 'ResAdapter, LoRA alone (Brickwork)'"
        )
    if not adapter.convs and adapter.info.get("kind") != "extrapolation":
        stem = name.removesuffix(NORMS_SUFFIX) + ".safetensors"
        wanted = LORA_FILES[NORM_FILES.index(name)] if name in NORM_FILES else stem
        return (
            f"{name} is the second of a ResAdapter's two files, and the first, {wanted}, is not beside it in "
            f"{directory}: put it there, press R and choose it"
        )
    return None


def resadapter_names() -> list[str]:
    """The names in ComfyUI's LoRA folders that can be ResAdapters: no other LoRAs, and no second files of a pair."""
    import folder_paths

    names = folder_paths.get_filename_list("loras")
    found = [name for name in names if _can_be_one(folder_paths.get_full_path("loras", name))]
    return [name for name in found if not any(first in found for first in _first_files(name))]


def _first_files(name: str) -> list[str]:
    """The names that the first file has where `name` is a pair's second."""
    directory, file = os.path.split(name)
    if file in NORM_FILES:
        return [os.path.join(directory, first) for first in LORA_FILES]
    return [name.removesuffix(NORMS_SUFFIX) + ".safetensors"] if name.endswith(NORMS_SUFFIX) else []


def _can_be_one(path: str | None) -> bool:
    """Whether a file's header has a ResAdapter's tensors and no others; read once for each state of the file."""
    if path is None or not path.endswith(".safetensors"):
        return False
    try:
        stamp = _stamp(path)
        if _LISTED.get(path, ("",))[0] != stamp:
            _LISTED[path] = (stamp, _has_tensors_of_one(path))
        return _LISTED[path][1]
    except OSError:
        return False


def _has_tensors_of_one(path: str) -> bool:
    try:
        with opened(path) as file:
            keys = list(file.keys())
    except ValueError:
        keys = []
    # a download that broke off is shown under the names by which it is known, to be told of when it is used
    return all(map(parse_key, keys)) if keys else os.path.basename(path) in LORA_FILES


def _stamp(path) -> str:
    stat = os.stat(path)
    return f"{stat.st_mtime_ns} {stat.st_size}"


def _full_path(name: str) -> str:
    import folder_paths

    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise ValueError(f"{name!r} is no longer in ComfyUI's models/loras folder: press R to refresh the list")
    return path


def train_size(model) -> int:
    """The side in pixels of the images the model was trained on, by its kind."""
    context = model.model.model_config.unet_config.get("context_dim")
    if context not in _TRAIN_SIZES:
        raise ValueError(
            f"the model is no Stable Diffusion 1, 2 or SDXL (text context {context}): ResAdapter needs one"
        )
    velocity = getattr(getattr(model.model, "model_type", None), "name", "") == "V_PREDICTION"
    return _SD2_VELOCITY_SIZE if context == 1024 and velocity else _TRAIN_SIZES[context]


def patch_model(model, adapter: ResAdapterWeights, strength_lora: float, strength_norms: float):
    """A clone of a ComfyUI model patcher with the adapter's patches; refuses an adapter that does not fit.

    Absolute norms become differences from the model's own, so that two adapters, or an adapter and a LoRA on the
    norms, add up in any order.
    """
    import comfy.lora

    tensors = model.model.state_dict()
    keys = {}
    for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        path = module_path(name.removeprefix("lora_unet_")) if name.startswith("lora_unet_") else None
        if path is not None and key in tensors:  # the map also names layers that smaller models lack
            keys[path] = key
    check_fits(adapter, _shapes(tensors, keys), "this model")
    lora = adapter.kohya_tensors()
    targets = {kohya_name(path): keys[path] for path in adapter.convs}
    patched = model.clone()
    if lora and strength_lora != 0:
        _add(patched, comfy.lora.load_lora(lora, targets), strength_lora)
    if adapter.norms and strength_norms != 0:
        _add(patched, _norm_patches(model, adapter, keys), strength_norms)
    return patched


def _add(patcher, patches: dict, strength: float) -> None:
    missing = set(patches) - set(patcher.add_patches(patches, strength))
    if missing:
        raise ValueError(f"ComfyUI did not take the patches of {sorted(missing)[:4]}")


def _shapes(tensors: dict[str, torch.Tensor], keys: dict[str, str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for path, key in keys.items():
        shape = tuple(tensors[key].shape)
        shapes |= {path: shape[:2]} if len(shape) == 4 else {f"{path}.{part}": shape for part in ("weight", "bias")}
    return shapes


def _norm_patches(model, adapter: ResAdapterWeights, keys: dict[str, str]) -> dict:
    own = {} if adapter.differences else model.get_key_patches("diffusion_model.")
    patches = {}
    for norm_key, value in adapter.norms.items():
        path, _, part = norm_key.rpartition(".")
        key = keys[path].removesuffix("weight") + part
        difference = value.double()
        if not adapter.differences:
            difference = difference - _own_weight(model, key, own[key][0]).to("cpu", torch.float64)
        patches[key] = (difference.float(),)  # a lone tensor is added, in every version
    return patches


def _own_weight(model, key: str, first) -> torch.Tensor:
    """The unpatched weight: the one put by while the model is patched, else the first entry of `get_key_patches`.

    Older ComfyUI gives tensors, newer ones the tensor with something beside it.
    """
    kept = getattr(model, "backup", {}).get(key)
    if kept is not None:
        return getattr(kept, "weight", kept)
    if isinstance(first, tuple):
        weight, convert = first
        return convert(weight.clone(), inplace=False)
    return first


NODE_CLASS_MAPPINGS = {
    "BrickworkResAdapter": BrickworkResAdapter,
    "BrickworkResAdapterLoraAlone": BrickworkResAdapterLoraAlone,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "BrickworkResAdapter": "ResAdapter (Brickwork)",
    "BrickworkResAdapterLoraAlone": "ResAdapter, LoRA alone (Brickwork)",
}
