"""Opening pipelines by what a person types: the name of weights that ship, a folder, or a name on the hub."""

from pathlib import Path

import torch


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
    from diffusers.utils import logging

    import brickwork

    logging.disable_progress_bar()  # two components load in no time; the bar that matters comes later
    pipe = brickwork.LegoPipeline.from_pretrained(pipeline_folder(name))
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
