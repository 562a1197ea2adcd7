"""Brickwork: diffusion image generation with reconfigurable backbones, on 🤗 diffusers."""

import importlib
import sys
from pathlib import Path

from brickwork import hub
from brickwork.errors import one_of
from brickwork.gen.networks import NETWORKS

__version__ = "0.2.0"

# Networks, pipelines and schedulers, which `DiffusionPipeline.from_pretrained` and `AutoModel.from_pretrained` find by
# name once they are registered.
_REGISTERED = NETWORKS | {
    "UnequalAutoencoderKL": "brickwork.gen.networks.autoencoder",
    "LegoPipeline": "brickwork.pipelines.lego",
    "ClassToImagePipeline": "brickwork.pipelines.class_to_image",
    "OneStepPipeline": "brickwork.pipelines.one_step",
    "VideoPipeline": "brickwork.pipelines.video",
    "LayoutPipeline": "brickwork.pipelines.layout",
    "RegionHead": "brickwork.eval.judge.region_head",
    "LabelHead": "brickwork.eval.judge.label_head",
    "SeriesDenoiser": "brickwork.gen.networks.series",
    "TimeSeriesPipeline": "brickwork.pipelines.series",
    "EDMHeunScheduler": "brickwork.pipelines.schedulers.edm_heun",
}
_MODULES = {
    "brickwork.gen.convbn": ["set_convbn_mode"],
    "brickwork.gen.networks.video": ["inflate"],
    "brickwork.gen.delay_fold": ["DelayFold"],
    "brickwork.gen.period_fold": ["PeriodFold"],
    "brickwork.gen.networks.pretrained_encoder": ["from_pretrained_encoder"],
    "brickwork.pipelines.schedules": ["BrickSchedule", "SubnetSchedule"],
    "brickwork.pipelines.trajectory": ["stitch_trajectory"],
    "brickwork.adapters.base": ["load_adapter"],
    "brickwork.adapters.control.adapter": ["ControlAdapter"],
    "brickwork.adapters.dino.adapter": ["DinoAdapter"],
    "brickwork.adapters.layout.adapter": ["LayoutAdapter"],
    "brickwork.adapters.resadapter.handle": ["ResAdapter"],
    "brickwork.adapters.kv_compression.handle": ["KVCompression"],
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
        "resadapter_at",
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


def pretrained_names() -> list[str]:
    """The names of the weights that ship with the package."""
    return hub.shipped_names()


def pretrained(name: str) -> Path:
    """The folder of weights that ship with the package, such as `"lego-avatars-64"`, for `from_pretrained`."""
    return hub.shipped_folder() / one_of("name", name, pretrained_names())


def register() -> None:
    """Make our classes attributes of `diffusers`, loaded when asked for."""
    from brickwork import compat

    compat.attributes_of_diffusers(set(_REGISTERED), __getattr__)


def _is_the_command() -> bool:
    started = Path(sys.argv[0] if hasattr(sys, "argv") and sys.argv else "").name
    module = getattr(sys, "orig_argv", [])[1:3]
    return started == "brickwork" or module in (["-m", "brickwork"], ["-m", "brickwork.cli"])


# The command answers `--help` without the seconds that diffusers takes to import, and registers before it runs.
if not _is_the_command():
    register()
