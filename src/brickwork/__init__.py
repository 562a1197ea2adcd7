"""Brickwork: diffusion image generation with reconfigurable backbones, on 🤗 diffusers."""

import importlib
import sys
from pathlib import Path

__version__ = "0.1.0"

# Networks, pipelines and schedulers, which `DiffusionPipeline.from_pretrained` and `AutoModel.from_pretrained` find by
# name once they are registered.
_REGISTERED = {
    "LegoTransformer2DModel": "brickwork.gen.networks.lego",
    "BlockTransformer2DModel": "brickwork.gen.networks.transformer",
    "BlockUNet2DModel": "brickwork.gen.networks.unet",
    "MaxViTGenerator2DModel": "brickwork.gen.networks.gan",
    "LegoPipeline": "brickwork.pipelines.lego",
    "ClassToImagePipeline": "brickwork.pipelines.class_to_image",
    "OneStepPipeline": "brickwork.pipelines.one_step",
    "EDMHeunScheduler": "brickwork.pipelines.schedulers.edm_heun",
}
_MODULES = {
    "brickwork.gen.convbn": ["set_convbn_mode"],
    "brickwork.pipelines.schedules": ["BrickSchedule", "SubnetSchedule"],
    "brickwork.adapters.base": ["load_adapter"],
    "brickwork.adapters.resadapter.handle": ["ResAdapter"],
    "brickwork.adapters.resadapter.functions": [
        "load_resadapter",
        "set_resadapter_scale",
        "enable_resadapter",
        "disable_resadapter",
        "unload_resadapter",
        "fuse_resadapter",
        "unfuse_resadapter",
        "save_resadapter",
        "use_resadapter",
    ],
    "brickwork.eval.search.schedule_search": ["search_brick_schedule"],
    "brickwork.adapters.resadapter.convert": ["convert_resadapter"],
    "brickwork.adapters.resadapter.merge": ["merge_resadapter"],
}
_EXPORTS = _REGISTERED | {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["pretrained", "pretrained_names", *_EXPORTS]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'brickwork' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))


def _pretrained_folder() -> Path:
    return Path(importlib.import_module("brickwork.pipelines").__file__).parent / "pretrained"


def pretrained_names() -> list[str]:
    """The names of the weights that ship with the package."""
    return sorted(path.name for path in _pretrained_folder().glob("*") if path.is_dir())


def pretrained(name: str) -> Path:
    """The folder of weights that ship with the package, such as `"lego-emoji-64"`, for `from_pretrained`."""
    if name not in pretrained_names():
        raise ValueError(f"`name` is {name!r}; the weights that ship are {', '.join(pretrained_names())}.")
    return _pretrained_folder() / name


def register() -> None:
    """Make our classes attributes of `diffusers`, loaded when asked for."""
    from brickwork import compat

    compat.attributes_of_diffusers(set(_REGISTERED), __getattr__)


# The command answers `--help` without the seconds that diffusers takes to import, and registers before it runs.
if Path(sys.argv[0] if hasattr(sys, "argv") and sys.argv else "").name != "brickwork":
    register()
