"""The networks that `train_backbone.py` trains, by name, and the pipelines that sample from them."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from brickwork.gen.lego import LegoTransformer2DModel
from brickwork.gen.transformer import BlockTransformer2DModel
from brickwork.gen.unet import BlockUNet2DModel
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.edm_heun import EDMHeunScheduler
from brickwork.pipelines.lego import LegoPipeline
from brickwork.training.config import TrainConfig


def lego_pipeline(network: torch.nn.Module, objective, vae: torch.nn.Module | None = None) -> LegoPipeline:
    """The pipeline that samples from a LEGO network."""
    return LegoPipeline(transformer=network, scheduler=EDMHeunScheduler(sigma_data=objective.sigma_data), vae=vae)


@dataclass(frozen=True)
class Backbone:
    """A network's class, and `(network, objective, vae)` => the pipeline that samples from it."""

    model: type
    pipeline: Callable


BACKBONES = {
    "LegoTransformer2DModel": Backbone(LegoTransformer2DModel, lego_pipeline),
    "BlockTransformer2DModel": Backbone(BlockTransformer2DModel, ClassToImagePipeline.from_objective),
    "BlockUNet2DModel": Backbone(BlockUNet2DModel, ClassToImagePipeline.from_objective),
}


def choose(kinds: dict, name: str, key: str):
    """One of several by name.

    Raises:
        ValueError: naming the key, what it can be, and what comes near.
    """
    if name in kinds:
        return kinds[name]
    near = difflib.get_close_matches(str(name), kinds, n=1)
    mend = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(kinds)}."
    raise ValueError(f"`{key}` is {name!r}; {mend}")


def build_model(config: TrainConfig, class_names: list[str], size: int, channels: int) -> torch.nn.Module:
    """The network that a configuration describes, freshly initialised from the run's seed, or from saved weights.

    Args:
        config: of the run.
        class_names: of the data set, none for unlabelled data.
        size: side of what the network trains on, in pixels, or of latents.
        channels: of the same.

    Raises:
        ValueError: for configuration values that the network does not take, or weights that do not fit the data.
    """
    kind = choose(BACKBONES, config.model.type, "model.type").model
    subsets = "any" if config.objective.brick_dropout > 0 else "prefix"
    if config.model.init_from:
        return _saved_model(kind, config, class_names, subsets)
    known = set(kind._get_init_keys(kind))
    unknown = sorted(set(config.model.config) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}."
        raise ValueError(f"`model.config` has {unknown}, which {config.model.type} does not take; {mend}")
    values = {
        "sample_size": size,
        "in_channels": channels,
        "num_classes": len(class_names) or None,
        "id2label": dict(enumerate(class_names)) or None,
        "trained_subsets": subsets,
    }
    values = {key: value for key, value in values.items() if key in known} | config.model.config
    torch.manual_seed(config.run.seed)
    if config.model.preset:
        return kind.from_preset(config.model.preset, **values)
    return kind(**values)


def _saved_model(kind: type, config: TrainConfig, class_names: list[str], subsets: str) -> torch.nn.Module:
    source = config.model.init_from
    inside = Path(source) / "transformer"  # a pipeline's folder
    try:
        model = kind.from_pretrained(inside if inside.is_dir() else source)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model.init_from` is {source!r}, which holds no {kind.__name__}: {error}") from error
    if (model.config.num_classes or 0) != len(class_names):
        raise ValueError(
            f"`model.init_from` is {source!r}, a network of {model.config.num_classes or 'no'} classes; the data have "
            f"{len(class_names) or 'none'} ({', '.join(class_names[:8])}). Set `data.classes` or `data.label_column`."
        )
    if hasattr(model, "num_bricks") and subsets == "any":
        model.register_to_config(trained_subsets=subsets)
    return model.float()


def plan(
    config: TrainConfig, model: torch.nn.Module, train_images: int, held_out: int, classes: int, processes: int
) -> str:
    """The figures that follow from a configuration, to be read before the first step."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run = config.run
    micro = run.batch_size // (run.gradient_accumulation_steps * processes)
    # Weights, gradients, two moments and the average, in float32; activations come on top.
    memory = 4 * (parameters + trained * 4) / 2**30
    return (
        f"{config.model.type}: {parameters:,} parameters, {trained:,} of them trained; about {memory:.2f} GiB of "
        "weights and optimiser state, before activations.\n"
        f"{train_images:,} images of {classes or 'no'} classes to train on, {held_out:,} held out; "
        f"{run.total_images:,} images are {run.total_images / train_images:,.1f} epochs, "
        f"{-(-run.total_images // run.batch_size):,} steps.\n"
        f"{run.batch_size} images a step = {micro} × {run.gradient_accumulation_steps} accumulated × {processes} "
        f"process(es); precision {run.mixed_precision}."
    )
