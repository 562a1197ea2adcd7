"""Opening pipelines by what a person types: the name of weights that ship, a folder, or a name on the hub."""

import json
from pathlib import Path

import torch
from diffusers.utils import logging


def best_device() -> str:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def pipeline_folder(name: str) -> str | Path:
    """The folder of weights that ship; a folder or a hub id as it is."""
    import brickwork

    return brickwork.pretrained(name) if name in brickwork.pretrained_names() else name


def load_lego_pipeline(name: str, device: str | None = None):
    """A `LegoPipeline` for a command, on `device` (by default the best there is)."""
    import brickwork

    logging.disable_progress_bar()  # two components load in no time; the bar that matters comes later
    return _on_device(brickwork.LegoPipeline.from_pretrained(pipeline_folder(name)), device)


def load_class_pipeline(name: str, device: str | None = None):
    """A folder's `ClassToImagePipeline` for a command, on `device`; anything else is a `LegoPipeline`'s name."""
    import brickwork

    try:
        saved = json.loads(Path(name, "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, LookupError, TypeError):
        saved = None
    if saved != "ClassToImagePipeline":
        return load_lego_pipeline(name, device)  # which also says what is wrong
    logging.disable_progress_bar()
    return _on_device(brickwork.ClassToImagePipeline.from_pretrained(name), device)


def _on_device(pipe, device: str | None):
    try:
        return pipe.to(device or best_device())
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` is {device!r}, which torch cannot use here: {error}.") from None


def load_pipeline(name: str, dtype: torch.dtype | None = None, device: str | torch.device | None = None):
    """A pipeline of any class by the name of weights that ship, a folder or a hub id, on `device`."""
    from accelerate import PartialState
    from diffusers import DiffusionPipeline

    import brickwork  # noqa: F401  our classes become attributes of diffusers

    try:
        pipeline = DiffusionPipeline.from_pretrained(pipeline_folder(name))
    except OSError as error:
        raise ValueError(f"pipeline: {name!r} could not be loaded: {error}") from error
    pipeline = pipeline.to(device or PartialState().device)
    return pipeline if dtype in (None, pipeline.dtype) else pipeline.to(dtype)
