"""The networks that `train_backbone.py` trains, by name, and the pipelines that sample from them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from brickwork import compat
from brickwork.errors import explained, no_unknown, one_of
from brickwork.eval.sampling.pipelines import pipeline_folder
from brickwork.gen.networks import NETWORKS, load_network_class
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.networks.parts import Parted
from brickwork.gen.networks.wrapped import load_denoiser
from brickwork.gen.parameterization import make_objective
from brickwork.gen.subnets import patch_of
from brickwork.hub import saved_variant
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.lego import LegoPipeline
from brickwork.training.config.model import ModelConfig
from brickwork.training.config.objective import ObjectiveConfig
from brickwork.training.tasks.brick_by_brick import freeze

PIPELINES = {pipeline.__name__: pipeline for pipeline in (ClassToImagePipeline, LegoPipeline)}
BACKBONES = {name: kind for name in NETWORKS if (kind := load_network_class(name)).pipeline in PIPELINES}


def pipeline_of(network: torch.nn.Module, objective: Any, vae: torch.nn.Module | None) -> ClassToImagePipeline:
    """The pipeline that samples from a network trained with an objective."""
    return PIPELINES[network.pipeline].from_objective(network, objective, vae)


@dataclass(frozen=True)
class TrainedOn:
    """What a network is trained on.

    Attributes:
        class_names: of the data set, none for unlabelled data.
        size: side of the pictures in pixels, or of latents.
        channels: of the same.
        crops: whether some of them are crops of larger canvases.
        augment_dim: numbers by which the network is told how pictures were augmented; `None` for none.
    """

    class_names: list[str]
    size: int
    channels: int
    crops: bool = False
    augment_dim: int | None = None


def build_model(settings: ModelConfig, objective: ObjectiveConfig, data: TrainedOn, seed: int = 0) -> torch.nn.Module:
    """The network that `model` describes: freshly initialised from the run's seed, or from saved weights, or with
    fresh bricks on saved ones; what does not learn is frozen.

    Raises:
        ValueError: for configuration values that the network does not take, or weights that do not fit the data.
    """
    kind = one_of("model.type", settings.type, BACKBONES)
    if issubclass(kind, Parted) and (settings.preset or settings.config or not settings.init_from):
        raise ValueError(
            f"`model.type` is {settings.type!r}, which is made of trained networks; make one in Python, save it, and "
            "name its folder in `model.init_from`, without `model.preset` and `model.config`."
        )
    known = compat.constructor_keys(kind)
    no_unknown("model.config", settings.config, known, settings.type)
    any_bricks, sigma_data = objective.brick_dropout > 0, objective.options.get("sigma_data", 0.5)
    values = _described(settings.config, known, data, any_bricks)
    build = partial(kind.from_preset, settings.preset) if settings.preset else kind
    torch.manual_seed(seed)
    if settings.wrap:
        model = _wrapping_model(settings, values, data, sigma_data)
    elif settings.init_from:
        model = _saved_model(kind, settings.init_from, data, any_bricks)
        if settings.preset or settings.config:
            if "pretrained_brick" in known:
                values.setdefault("pretrained_brick", model.config.pretrained_brick)
            with torch.device("meta"):
                described = build(**values)
            if getattr(described, "num_bricks", 0) > getattr(model, "num_bricks", 0):
                model = _grown(model, build(**values), settings.init_from)
            else:
                _check_same(model, described, settings.init_from)
    else:
        model = build(**values)
    check_patch(model, data.size)
    _check_augmented(model, data.augment_dim)
    _check_sigma_data(model, sigma_data)
    _check_out_channels(model, objective.type)
    freeze(objective, model, settings.comes_trained)
    return model


def check_patch(model: torch.nn.Module, size: int, key: str = "data.size") -> None:
    """Raise a `ValueError` for images (or latents) smaller than the network's largest patch."""
    patch = patch_of(model.config)
    if size < patch:
        raise ValueError(
            f"`{key}` makes images (or latents) of {size}x{size}, less than one patch of {patch}x{patch}; raise "
            "it, or give the network smaller patches."
        )


def _check_augmented(model: torch.nn.Module, augment_dim: int | None) -> None:
    """Raise a `ValueError` for a network that cannot be told what was done to pictures, which samples would show."""
    has = model.config.get("augment_dim")
    if augment_dim not in (None, has):
        raise ValueError(
            f"`data.augment` is set, with labels of {augment_dim} numbers, and the {type(model).__name__} reads "
            f"{has or 'none'}; set `data.augment` to 0, or name the `data.augmentations` that it was trained with."
        )


def _described(given: dict[str, Any], known: set[str], data: TrainedOn, any_bricks: bool) -> dict[str, Any]:
    """What the data say of a network, and over it what `model.config` does."""
    values = {
        "sample_size": data.size,
        "in_channels": data.channels,
        "num_classes": len(data.class_names) or None,
        "id2label": dict(enumerate(data.class_names)) or None,
        "trained_subsets": "any" if any_bricks else "prefix",
        "trained_crops": data.crops,
    } | ({} if data.augment_dim is None else {"augment_dim": data.augment_dim})
    for key in ("in_channels", "num_classes"):
        if given.get(key, values[key]) != values[key]:
            raise ValueError(f"`model.config.{key}` is {given[key]}, but the data have {values[key]}; leave it out.")
    return {key: value for key, value in values.items() if key in known} | given


def _check_same(saved: torch.nn.Module, described: torch.nn.Module, source: str) -> None:
    """Raise a `ValueError` unless the saved network is the one that `model.preset` and `model.config` describe."""
    shapes, wanted = ({name: p.shape for name, p in network.named_parameters()} for network in (saved, described))
    different = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
    if different:
        raise ValueError(
            f"`model.init_from` is {source!r}, which holds another network than `model.preset` and `model.config` "
            f"describe: they differ in {', '.join(different[:3])}. Leave both out to take the saved one as it is."
        )


def _grown(saved: torch.nn.Module, described: torch.nn.Module, source: str) -> torch.nn.Module:
    """The stack described, with the weights of a saved one that has its lowest bricks alone."""
    for key in ("window_sizes", "patch_sizes"):
        has, wanted = list(saved.config[key]), list(described.config[key])
        if wanted[: len(has)] != has:
            raise ValueError(
                f"`model.config.{key}` is {wanted}, but the stack in `model.init_from`, {source!r}, has {has}; a "
                "stack grows on top, so begin with those."
            )
    weights, shapes = saved.state_dict(), {name: tensor.shape for name, tensor in described.state_dict().items()}
    different = sorted(name for name, tensor in weights.items() if shapes.get(name) != tensor.shape)
    below = {f"bricks.{brick}." for brick in range(saved.num_bricks)}
    different += sorted(name for name in shapes if name.startswith(tuple(below)) and name not in weights)
    if different:
        raise ValueError(
            f"`model.init_from` is {source!r}, whose bricks differ from the lowest that `model.config` describes in "
            f"{', '.join(different[:3])}; describe them as they are. The condition is as wide as the widest brick, so "
            "a brick on top may not be wider than those below."
        )
    described.load_state_dict(weights, strict=False)
    return described


def _wrapping_model(settings: ModelConfig, values: dict, data: TrainedOn, sigma_data: float) -> torch.nn.Module:
    """A stack whose lowest brick is the pretrained denoiser that `model.wrap` names."""
    source = settings.wrap
    if settings.type != "LegoTransformer2DModel" or settings.init_from or settings.preset:
        raise ValueError(
            f"`model.wrap` is {source!r}, which is for a LegoTransformer2DModel whose further bricks are those in "
            "`model.config`; leave out `model.preset` and `model.init_from`."
        )
    with explained(f"`model.wrap` is {source!r}", ValueError):
        denoiser, scheduler, names = load_denoiser(source)
    values = {key: value for key, value in values.items() if key not in ("in_channels", "pretrained_brick")}
    if values.get("id2label") is None:
        values["id2label"] = names
    model = LegoTransformer2DModel.from_denoiser(denoiser, scheduler, sigma_data=sigma_data, **values)
    check_fits_data(model, "model.wrap", source, data.class_names, data.channels)
    return model.train()


def _check_sigma_data(model: torch.nn.Module, wanted: float) -> None:
    described = model.config.get("pretrained_brick")
    if described is not None and described.get("sigma_data", 0.5) != wanted:
        raise ValueError(
            f"`objective.options.sigma_data` is {wanted}, but the pretrained brick is translated for "
            f"{described.get('sigma_data', 0.5)}; make them the same."
        )


def _check_out_channels(model: torch.nn.Module, objective: str) -> None:
    """Raise a `ValueError` for an estimate of other channels than the objective compares it with."""
    channels = model.config.in_channels
    estimated = model.config.get("out_channels") or channels
    learned = estimated == 2 * channels
    if estimated == channels or (learned and objective == "epsilon"):
        return
    fix = f"build the network with `model.config.out_channels={channels}`"
    if learned:
        fix = f"a learned variance goes with epsilon alone. Set `objective.type=epsilon`, or {fix}"
    raise ValueError(
        f"`objective.type` is {objective!r}, but the network estimates {estimated} channels for {channels}; {fix}."
    )


def build_objective(settings: ObjectiveConfig) -> Any:
    """The parameterization that `objective` describes.

    Raises:
        ValueError: for options that it does not take.
    """
    return make_objective(settings.type, settings.options, "objective.type")


def _saved_model(kind: type, source: str, data: TrainedOn, any_bricks: bool) -> torch.nn.Module:
    with explained(f"`model.init_from` is {source!r}, which holds no {kind.__name__}"):
        folder = Path(pipeline_folder(source))
        inside = folder / "transformer"
        model = kind.from_pretrained(inside if inside.is_dir() else str(folder), **saved_variant(folder))
    model = _told_of_augmentation(_of_classes(model, data.class_names), data.augment_dim)
    check_fits_data(model, "model.init_from", source, data.class_names, data.channels)
    if hasattr(model, "num_bricks"):
        learned = {"trained_subsets": "any"} if any_bricks else {}
        model.register_to_config(**learned, **({"trained_crops": True} if data.crops else {}))
    return model.float()


def _of_classes(model: torch.nn.Module, class_names: list[str]) -> torch.nn.Module:
    """A LEGO stack that knows the data's classes by name, without the others; any other network as it is.

    As many classes of other names take the places of those that were there.
    """
    known = {name: int(number) for number, name in (model.config.id2label or {}).items()}
    if sorted(known, key=known.get) == class_names or not class_names:
        return model
    by_name = isinstance(model, LegoTransformer2DModel) and model.config.pretrained_brick is None
    if not by_name or not set(class_names) <= set(known):
        if model.config.num_classes == len(class_names):
            model.register_to_config(id2label=dict(enumerate(class_names)))
        return model
    settings = {"num_classes": len(class_names), "id2label": dict(enumerate(class_names))}
    fewer = LegoTransformer2DModel.from_config(model.config, **settings)
    state, key = model.state_dict(), "condition.label_embed.weight"
    state[key] = state[key][:, [known[name] for name in class_names]]
    fewer.load_state_dict(state)
    return fewer


def _told_of_augmentation(model: torch.nn.Module, augment_dim: int | None) -> torch.nn.Module:
    """A network that reads augmentation labels, which say nothing yet, if it can and did not."""
    if augment_dim is None or model.config.get("augment_dim", 0) is not None:
        return model
    told = type(model).from_config(model.config, augment_dim=augment_dim)
    told.load_state_dict(model.state_dict(), strict=False)
    return told


def check_fits_data(model: torch.nn.Module, key: str, source: str, names: list[str], channels: int) -> None:
    """Raise a `ValueError` for a network of other numbers of classes or channels than the data have."""
    if (model.config.num_classes or 0) != len(names):
        raise ValueError(
            f"`{key}` is {source!r}, a network of {model.config.num_classes or 'no'} classes; the data have "
            f"{len(names) or 'none'} ({', '.join(names[:8])}). Set `data.classes` or `data.label_column`."
        )
    if model.config.in_channels != channels:
        raise ValueError(
            f"`{key}` is {source!r}, a network of {model.config.in_channels} channels; the data have {channels}."
        )
