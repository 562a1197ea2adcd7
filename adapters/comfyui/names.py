"""The names a ResAdapter's tensors go by, and the way from each of them to one.

Everything else in the package speaks diffusers module paths, such as `down_blocks.0.downsamplers.0.conv` and
`mid_block.resnets.1.norm2`. The files also use kohya's flat names (`lora_unet_down_blocks_0_downsamplers_0_conv`),
PEFT's (`unet.down_blocks.0.downsamplers.0.conv.lora_A`) and the ones of the original Stable Diffusion code, here
called compvis (`input_blocks.3.0.op`). A ResAdapter touches two kinds of module, so a few patterns cover all.

This folder must run alone inside ComfyUI's `custom_nodes`: its files import each other relatively, and nothing beyond
torch and safetensors.
"""

import re
from dataclasses import dataclass
from functools import cache

LORA_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "alpha": "alpha",
}
NORM_PARTS = {
    "w_norm": "w_norm",
    "b_norm": "b_norm",
    "diff": "w_norm",  # what LyCORIS calls them where it changes a layer as one
    "diff_b": "b_norm",
    "weight": "weight",
    "bias": "bias",
}

_KEY_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "unet.", "lora_unet_")
_RESNETS_PER_DOWN_BLOCK = 2  # in every Stable Diffusion; compvis numbers count on it


def _pattern(text: str) -> re.Pattern:
    """`~` stands for the separator: a dot in diffusers names, an underscore in kohya's."""
    return re.compile(text.replace("~", "[._]"))


_DIFFUSERS = (
    (_pattern(r"down_blocks~(\d+)~downsamplers~0~conv"), "down_blocks.{}.downsamplers.0.conv"),
    (_pattern(r"up_blocks~(\d+)~upsamplers~0~conv"), "up_blocks.{}.upsamplers.0.conv"),
    (_pattern(r"(down|up)_blocks~(\d+)~resnets~(\d+)~norm([12])"), "{}_blocks.{}.resnets.{}.norm{}"),
    (_pattern(r"mid_block~resnets~(\d+)~norm([12])"), "mid_block.resnets.{}.norm{}"),
)


def module_path(name: str) -> str | None:
    """The diffusers path of a module named in any of the ways above, or None for one no ResAdapter touches."""
    for pattern, template in _DIFFUSERS:
        if match := pattern.fullmatch(name):
            return template.format(*match.groups())
    return _compvis_modules().get(name.replace(".", "_"))


def parse_key(key: str) -> tuple[str, str] | None:
    """A tensor's key, in any form, as (diffusers module path, part), or None if no ResAdapter has such a tensor.

    The part is one of `down`, `up`, `alpha` (convolutions) and `weight`, `bias` (absolute norms), `w_norm`, `b_norm`
    (norms as differences).
    """
    name = key
    for prefix in _KEY_PREFIXES:
        name = name.removeprefix(prefix)
    for parts, is_norm in ((LORA_PARTS, False), (NORM_PARTS, True)):
        for suffix, part in parts.items():
            path = module_path(name.removesuffix("." + suffix)) if name.endswith("." + suffix) else None
            if path is not None and is_norm == (".norm" in path):
                return path, part
    return None


def kohya_name(path: str) -> str:
    """`down_blocks.0.downsamplers.0.conv` as the LoRA name `lora_unet_down_blocks_0_downsamplers_0_conv`."""
    return "lora_unet_" + path.replace(".", "_")


# InvokeAI tells a LoRA's family by how wide the text is that a cross-attention's keys are made of, and refuses a file
# without such a layer: the layer in diffusers' names and in compvis's, that width, and the layer's channels.
TEXT_LAYERS = {
    "sd1": ("down_blocks.0.attentions.0", "input_blocks.1.1", 768, 320),
    "sd2": ("down_blocks.0.attentions.0", "input_blocks.1.1", 1024, 320),
    "sdxl": ("down_blocks.1.attentions.0", "input_blocks.4.1", 2048, 640),
}
_KEYS_OF_TEXT = "transformer_blocks.0.attn2.to_k"
_TEXT_KEYS = {
    f"{kohya_name(f'{layer}.{_KEYS_OF_TEXT}')}.lora_{part}.weight"
    for *layers, _, _ in TEXT_LAYERS.values()
    for layer in layers
    for part in ("down", "up")
}


def text_keys(family: str, naming: str) -> dict[str, tuple[int, int]]:
    """The keys of a LoRA of rank 1 on the layer by which InvokeAI tells a family, and their shapes."""
    diffusers, compvis, width, channels = TEXT_LAYERS[family]
    name = kohya_name(f"{compvis if naming == 'compvis' else diffusers}.{_KEYS_OF_TEXT}")
    return {f"{name}.lora_down.weight": (1, width), f"{name}.lora_up.weight": (channels, 1)}


def is_text_key(key: str) -> bool:
    """Whether a key is one of those that `text_keys` gives."""
    return key in _TEXT_KEYS


def compvis_path(path: str, levels: int) -> str:
    """A diffusers path as the original code's module path, for a UNet of 4 levels (SD 1 and 2) or 3 (SDXL).

    The number of levels matters once: the upsampler follows the attention layer where the block has one, and
    only the first up block of SD 1 and 2 has none.
    """
    if levels not in (3, 4):
        raise ValueError(f"compvis names exist for UNets of 4 levels (SD 1, SD 2) and 3 (SDXL), not of {levels}")
    stride = _RESNETS_PER_DOWN_BLOCK + 1
    parts = path.split(".")
    level = int(parts[1]) if parts[0] != "mid_block" else 0
    if parts[-1] == "conv":
        if parts[0] == "down_blocks":
            return f"input_blocks.{stride * (level + 1)}.0.op"
        return f"output_blocks.{stride * level + stride - 1}.{1 if levels == 4 and level == 0 else 2}.conv"
    layer = "in_layers.0" if parts[-1] == "norm1" else "out_layers.0"
    if parts[0] == "mid_block":
        return f"middle_block.{2 * int(parts[2])}.{layer}"
    number = stride * level + int(parts[3])
    return f"input_blocks.{number + 1}.0.{layer}" if parts[0] == "down_blocks" else f"output_blocks.{number}.0.{layer}"


@cache
def _compvis_modules() -> dict[str, str]:
    """The diffusers path of every module by its compvis name, with underscores in place of dots."""
    layouts = {levels: [*unet_layout((1,) * levels)[0], *unet_layout((1,) * levels)[1]] for levels in (3, 4)}
    return {compvis_path(path, levels).replace(".", "_"): path for levels, paths in layouts.items() for path in paths}


@dataclass(frozen=True)
class Family:
    """One Stable Diffusion generation: the key stored in files, its title, and the channels of its UNet's levels."""

    key: str
    title: str
    channels: tuple[int, ...]


FAMILIES = (
    Family("sd1", "Stable Diffusion 1.x", (320, 640, 1280, 1280)),
    Family("sd2", "Stable Diffusion 2.x", (320, 640, 1280, 1280)),
    Family("sdxl", "SDXL", (320, 640, 1280)),
)


def unet_layout(channels: tuple[int, ...]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """What an adapter for a UNet of these channels consists of.

    Returns the down- and upsampler convolutions with (out, in) channels, and the ResNet norms with their width.
    """
    last = len(channels) - 1
    convs = {f"down_blocks.{i}.downsamplers.0.conv": (channels[i],) * 2 for i in range(last)}
    norms: dict[str, int] = {}
    for i, width in enumerate(channels):
        for j in range(_RESNETS_PER_DOWN_BLOCK):
            norms[f"down_blocks.{i}.resnets.{j}.norm1"] = width if j else channels[max(i - 1, 0)]
            norms[f"down_blocks.{i}.resnets.{j}.norm2"] = width
    for j in range(2):
        norms[f"mid_block.resnets.{j}.norm1"] = norms[f"mid_block.resnets.{j}.norm2"] = channels[-1]
    upward = channels[::-1]
    for i, width in enumerate(upward):
        if i < last:
            convs[f"up_blocks.{i}.upsamplers.0.conv"] = (width,) * 2
        for j in range(_RESNETS_PER_DOWN_BLOCK + 1):
            below = width if j else upward[max(i - 1, 0)]
            skip = upward[min(i + 1, last)] if j == _RESNETS_PER_DOWN_BLOCK else width
            norms[f"up_blocks.{i}.resnets.{j}.norm1"] = below + skip
            norms[f"up_blocks.{i}.resnets.{j}.norm2"] = width
    return convs, norms
