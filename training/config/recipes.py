"""`--preset NAME`: how each preset is trained.

Presets of one family differ in size alone, so a family has one file, `configs/recipes/*.yaml`, and this table
says which.
"""

import json
from pathlib import Path

from brickwork.errors import near_names
from brickwork.gen.presets import PRESETS, network_of_preset

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"

_FILES = {"LegoTransformer2DModel": "lego", "BlockTransformer2DModel": "dit", "BlockUNet2DModel": "unet"}

# Networks of each family of blocks that train on a CPU: class, configuration.
_SMALL = {"attention_head_dim": 32, "window_size": 8}
_LEGO = {"window_sizes": (32, 8), "patch_sizes": (4, 2), "num_layers": (4, 2), "hidden_sizes": (128, 64)}
_UNET = _SMALL | {"block_out_channels": (32, 64, 128), "layers_per_block": 1}
_GIRAFFE = {"stem": "s2d", "neck": "gfpn", "layers_per_block": 0}
TINY = {
    "tiny-lego": ("LegoTransformer2DModel", _LEGO | {"num_attention_heads": (4, 2)}),
    "tiny-dit": ("BlockTransformer2DModel", {"num_layers": 4, "hidden_size": 128, "patch_size": 4}),
    "tiny-d-emo": ("BlockTransformer2DModel", _SMALL | {"block_types": "i2rmb", "num_layers": 4, "hidden_size": 96}),
    "tiny-u-emo": ("BlockUNet2DModel", _UNET | {"block_types": "i2rmb"}),
    "tiny-maxvit": ("BlockUNet2DModel", _UNET | {"block_types": "maxvit"}),
    "tiny-resnet": ("BlockUNet2DModel", _UNET | {"block_types": "resnet"}),
    "tiny-pvt-u": ("BlockUNet2DModel", _UNET | {"block_types": "sra"}),
    "tiny-osa-u": ("BlockUNet2DModel", _UNET | {"block_types": "osa"}),
    "tiny-resnet-rs-u": ("BlockUNet2DModel", _UNET | {"block_types": "resnet_rs"}),
    "tiny-ffnet": ("BlockUNet2DModel", _UNET | {"block_types": "basic", "neck": "ffnet_up", "layers_per_block": 2}),
    "tiny-giraffe": ("BlockUNet2DModel", _UNET | {"block_types": "basic"} | _GIRAFFE),
    "tiny-mixed": ("BlockUNet2DModel", _UNET | {"block_types": "resnet,i2rmb,maxvit"}),
}


def list_recipes() -> list[str]:
    """The names that `--preset` takes."""
    return [*TINY, *(name for presets in PRESETS.values() for name in presets)]


def recipe(name: str) -> tuple[Path, list[str]]:
    """The configuration of a preset: a file, and what goes over it.

    Raises:
        ValueError: with the names that come near.
    """
    overrides = [f"run.output_dir=runs/{name}"]
    if name in TINY:
        model, values = TINY[name]
        return RECIPES / "tiny.yaml", [f"model.type={model}", f"model.config={json.dumps(values)}", *overrides]
    model = network_of_preset(name)
    if model is not None:
        size = PRESETS[model][name].get("sample_size")
        overrides += [f"data.size={size}"] if size else []
        return RECIPES / f"{_FILES[model]}.yaml", [f"model.type={model}", f"model.preset={name}", *overrides]
    near = near_names(name, list_recipes(), 3) or list_recipes()
    raise ValueError(f"`--preset` is {name!r}; did you mean {', '.join(near)}?")
