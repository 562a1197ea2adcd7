"""What a checkpoint is: classes, parameters, counted operations at a size, every subnet, and the schedule saved with
it; of LEGO every brick, of other networks their maps and windows; of any other pipeline its components.

examples:
  brickwork info lego-avatars-64 --height 64 --width 192
  brickwork info lego-xl-u-64
"""

import argparse
import math
from pathlib import Path
from types import SimpleNamespace

from brickwork import options
from brickwork.errors import explained, near_names
from brickwork.hub import saved_variant


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="weights that ship, a preset, a pipeline or model folder, or an authors' .pkl file"
    )
    options.add_common(parser, "--height", "--width")
    options.add_hub(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from brickwork.eval.sampling.pipelines import local_pipeline

    if "/" in args.model and not Path(args.model).exists():
        args.model = local_pipeline(args.model, **options.of_hub(args))
    if _is_of_others(args.model):
        if (args.height, args.width) != (None, None):
            raise ValueError(
                "`--height` and `--width` are for the operations of our networks, and "
                f"{args.model!r} holds none; leave them out."
            )
        print(describe_pipeline(args.model))
        return
    from brickwork.pipelines.latents import sample_size

    model, schedule, factor = _open(args.model)
    side, patch = model.config.sample_size, max(model.config.get("patch_sizes") or [1])
    size = sample_size(args.height, args.width, (side, side), factor, patch)
    print(describe(model, *size, factor))
    if schedule is not None:
        kind = "brick" if hasattr(model, "bricks") else "subnet"
        print(f"\n{kind} schedule saved with it:\n{schedule}")


def _open(name: str):
    """The network behind a name, the schedule saved with it, if any, and pixels of a picture along one of its own."""
    import torch

    import brickwork
    from brickwork.gen.networks import NETWORKS, load_network_class
    from brickwork.gen.presets import PRESETS, network_of_preset
    from brickwork.pipelines.latents import pixels_per_latent

    if (kind := network_of_preset(name)) is not None:
        with torch.device("meta"):
            return load_network_class(kind).from_preset(name), None, 1
    if name.endswith(".pkl"):
        return brickwork.LegoTransformer2DModel.from_original(name), None, 1
    shipped = brickwork.pretrained_names()
    if name not in shipped and (kind := _class_of(Path(name))) in NETWORKS:
        return load_network_class(kind).from_pretrained(name, **saved_variant(name)), None, 1
    kind = _class_of(Path(name, "transformer"))
    if kind in NETWORKS and kind != "LegoTransformer2DModel":
        network = load_network_class(kind).from_pretrained(name, subfolder="transformer", **saved_variant(name))
        return network, _schedule_in(Path(name)), _pixels_per_latent(Path(name, "vae"))
    near = near_names(name, [*(preset for names in PRESETS.values() for preset in names), *shipped], 3)
    if name not in shipped and near and "/" not in name and not Path(name).exists():
        raise ValueError(f"`model` is {name!r}; did you mean {' or '.join(near)}?")
    from brickwork.eval.sampling.pipelines import load_lego_pipeline

    pipe = load_lego_pipeline(name, "cpu")
    return pipe.transformer, pipe.schedule, pixels_per_latent(pipe.vae)


def _pixels_per_latent(vae: Path) -> int:
    """As of a loaded VAE, by its folder; 1 where there is none."""
    from brickwork.eval.sampling.pipelines import saved_config
    from brickwork.pipelines.latents import pixels_per_latent

    config = saved_config(vae / "config.json")
    return pixels_per_latent(SimpleNamespace(config=config) if config else None)


def _schedule_in(folder: Path):
    """The schedule saved with a pipeline whose class may be anyone's."""
    from brickwork.eval.sampling.pipelines import saved_config
    from brickwork.pipelines.schedules import read_schedule

    saved = saved_config(folder / "model_index.json").get("subnet_schedule")
    return None if saved is None else read_schedule(saved)


def _is_of_others(name: str) -> bool:
    """Whether a name is of a saved pipeline without a network of ours."""
    from brickwork.eval.sampling.pipelines import pipeline_class, pipeline_folder
    from brickwork.gen.networks import NETWORKS

    network = _class_of(Path(pipeline_folder(name), "transformer"))
    return pipeline_class(name) not in (None, "LegoPipeline") and network not in NETWORKS


def _class_of(folder: Path) -> str:
    """The class of the network that a folder holds, or no name."""
    from brickwork.eval.sampling.pipelines import saved_config

    return saved_config(folder / "config.json").get("_class_name") or ""


def describe_pipeline(name: str) -> str:
    """A saved pipeline of any class as text: its components, their parameters, and what draws with it."""
    from brickwork.eval.report.blocks import Table
    from brickwork.eval.sampling.pipelines import drawn_with, pipeline_folder, pipeline_parts

    folder, index = Path(pipeline_folder(name)), pipeline_parts(name)
    parts = {part: value[1] for part, value in index.items() if isinstance(value, list) and any(value)}
    counts = {part: _count_parameters(folder / part) for part in parts}
    rows = [(part, kind, f"{counts[part]:,}" if counts[part] else "-") for part, kind in parts.items()]
    lines = [f"{index['_class_name']}: {sum(counts.values()):,} parameters", ""]
    lines.append(Table(["component", "class", "parameters"], rows).text(left=2))
    return "\n".join([*lines, "", f"draw with {drawn_with(name)}"])


def _count_parameters(folder: Path) -> int:
    """Of the safetensors files in a folder, by their headers; a tensor that several variants hold counts once."""
    from safetensors import SafetensorError, safe_open

    sizes = {}
    for file in folder.glob("*.safetensors"):
        with explained(f"`model` has {file}, which cannot be read as safetensors", SafetensorError):
            with safe_open(file, "pt") as tensors:
                sizes |= {key: math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys()}
    return sum(sizes.values())


def describe(model, height: int, width: int, factor: int = 1) -> str:
    """The network as text: what it reads, its bricks or maps, and what each subnet costs.

    Args:
        model: the network.
        height: of what it sees.
        width: likewise.
        factor: pixels of the picture along one of those.
    """
    from brickwork.eval.report.blocks import Table

    config = model.config
    names, side = list((config.get("id2label") or {}).values()), config.sample_size * factor
    classes = f"{config.num_classes} classes" if config.get("num_classes") else "no classes"
    channels = config["in_channels" if "in_channels" in config else "out_channels"]
    lines = [
        f"{type(model).__name__}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{channels} channels, {classes}, trained at {side} × {side}"
        + (f" ({factor} × {factor} pixels a latent)" if factor > 1 else ""),
    ]
    if names:
        lines.append("classes: " + ", ".join(names[:12]) + (f", … ({len(names)})" if len(names) > 12 else ""))
    subnets = model.subnets(height, width)
    described = _describe_bricks if hasattr(model, "bricks") else _describe_maps
    at = f"{height * factor} × {width * factor}"
    lines += ["", *described(model, height, width, at, max(subnets.values()))]
    if len(subnets) > 1:
        most = max(subnets.values())
        rows = [(name, f"{cost / 1e9:.3f}", f"{cost / most:.0%}") for name, cost in subnets.items()]
        lines += ["", Table(["subnet", "GFLOP", "share"], rows).text()]
    return "\n".join(lines)


def _describe_bricks(model, height: int, width: int, at: str, operations: int) -> list[str]:
    """The bricks of a LEGO stack, and what each costs."""
    from brickwork.eval.report.blocks import Table

    rows = [
        (number, brick.window_size, brick.patch_size, len(brick.blocks),
         brick.patch_embed.out_features if len(brick.blocks) else "-",
         f"{sum(p.numel() for p in brick.parameters()):,}", f"{brick.operations(height, width) / 1e9:.3f}")
        for number, brick in enumerate(model.bricks)
    ]  # fmt: skip
    columns = ["brick", "window", "patch", "layers", "width", "parameters", f"GFLOP at {at}"]
    pretrained = model.config.pretrained_brick
    further = [] if pretrained is None else [f"brick 0 is a pretrained {pretrained['class_name']}"]
    return [Table(columns, rows).text(), *further]


def _describe_maps(model, height: int, width: int, at: str, operations: int) -> list[str]:
    """The feature maps of a network of blocks, their windows, and what one pass costs."""
    lines = [f"at {at}: {operations / 1e9:.3f} GFLOP an image"]
    for name, (stride, window) in getattr(model, "maps", {}).items():
        windows = f"windows of {window} × {window}" if window > 1 else "no windows"
        lines.append(f"{name}: {-(-height // stride)} × {-(-width // stride)}, {windows}")
    return lines
