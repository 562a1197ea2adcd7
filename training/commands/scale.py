"""Propose depth, width and size of a network for a budget of operations, and stochastic depth, weight decay and
averages for its run, after ResNet-RS (arXiv 2103.07579): depth where a run is long enough to overfit, width otherwise,
resolution slowly, more regularisation for larger networks and longer runs. Says why, and writes a configuration for
`brickwork train --config`.

examples:
  brickwork scale resnet-s --budget 2x
  brickwork scale tiny-resnet --budget 1.5G --images 500000 --pictures 24000 --max-size 96 -o grown.yaml
"""

import argparse
import re
from pathlib import Path

from brickwork import options

HEADING = "# Written by `brickwork scale"
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", help="the network to start from, as `brickwork train --preset` takes it")
    parser.add_argument(
        "--budget",
        required=True,
        help="operations of a forward pass of one image, such as 20G, or 2x for twice the preset's",
    )
    parser.add_argument("--images", type=int, help="images that the run sees (default: the preset's recipe)")
    parser.add_argument("--pictures", type=int, default=1_000_000, help="of the training set (default: 1000000)")
    parser.add_argument("--classes", type=int, default=10, help="of the data, 0 for none (default: 10)")
    parser.add_argument("--max-size", type=int, help="side that the images may grow to (default: they stay)")
    options.add_yaml_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Propose, say why, and write.

    Raises:
        ValueError: for an unknown preset, a budget that is none or too small, and an output that is something else.
    """
    from brickwork.files import check_text, write_file

    if args.output is not None:
        check_text(args.output, HEADING, overwrite=args.overwrite, argument="--output")
    text, told = propose(args)
    print(told)
    if args.output is not None:
        write_file(args.output, text)
        print(f"wrote {args.output}; train with it: brickwork train --config {args.output}")
    return 0


def read_budget(text: str, start: int) -> float:
    """`"20G"`, `"1.5e9"`, or `"2x"` for twice the operations of the start."""
    found = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?)([kmgtx]?)", text.lower())
    value = float(found[1]) if found else 0.0
    if value <= 0:
        raise ValueError(f"`--budget` is {text!r}; give operations, such as 500M or 20G, or a multiple, such as 2x.")
    return value * (start if found[2] == "x" else _UNITS[found[2]])


def propose(args: argparse.Namespace) -> tuple[str, str]:
    """The configuration as YAML, and the proposal in words."""
    import yaml

    from brickwork.eval.report.blocks import Table
    from brickwork.eval.report.numbers import in_units
    from brickwork.files import plain
    from brickwork.gen.presets import PRESETS
    from brickwork.training.config.config import load_config
    from brickwork.training.config.recipes import recipe
    from brickwork.training.config.scaling import SETTINGS, grow, regularisation

    options.check_at_least(args, 1, "images", "pictures", "max_size")
    path, values = recipe(args.preset)
    given = load_config(path, ["run.mixed_precision=no", *values])
    kind, size, images = given.model.type, given.data.size, args.images or given.run.total_images
    config = {**(PRESETS[kind][given.model.preset] if given.model.preset else {}), **given.model.config}
    config.pop("sample_size", None)

    def count(config: dict, side: int) -> tuple[int, int]:
        return count_network(kind, config, side, args.classes or None)

    start, parameters = count(config, size)
    grown = grow(kind, config, size, read_budget(args.budget, start), images / args.pictures, count, args.max_size)
    held = regularisation(grown.parameters, images, args.pictures)
    layers, channels, _ = SETTINGS[kind]
    rows = [
        [what, one[layers], one[channels], side, f"{weights / 1e6:.2f} M", in_units(operations, "FLOP")]
        for what, one, side, weights, operations in (
            (args.preset, config, size, parameters, start),
            ("proposed", grown.config, grown.size, grown.parameters, grown.operations),
        )
    ]
    table = Table(["", "layers", "width", "px", "parameters", "operations"], rows).text()
    told = [
        table, "", *grown.reasons,
        f"Stochastic depth {held['drop_path']:g}, weight decay {held['weight_decay']:g}: they grow from 10 to "
        "100 epochs and from 1M to 100M parameters, and decay falls to 0.4 of itself beside stochastic depth.",
        f"Averages with a half-life of {held['half_life_images']:,} of {images:,} images: the larger the network, "
        "the shorter.",
    ]  # fmt: skip
    network = {**grown.config, "drop_path": held["drop_path"]}
    if kind == "LegoTransformer2DModel":  # whose bricks are dropped in another way (objective.brick_dropout)
        del network["drop_path"]
    chosen = {
        "model": {"type": kind, "preset": None, "config": network},
        "data": {"size": grown.size},
        "optimizer": {"weight_decay": held["weight_decay"]},
        "ema": {"half_life_images": held["half_life_images"]},
        "run": {"total_images": images, "output_dir": f"runs/{args.preset}-scaled"},
    }
    kept = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    merged = {
        section: {**(kept.get(section) or {}), **(chosen.get(section) or {})}
        if isinstance(chosen.get(section, kept.get(section)), dict)
        else kept.get(section)
        for section in dict.fromkeys([*chosen, *kept])
    }
    command = " ".join(["scale", args.preset, "--budget", args.budget])
    heading = f"{HEADING} {command.removeprefix('scale ')}`: over the defaults, as the recipe of {args.preset} is."
    return f"{heading}\n{yaml.safe_dump(plain(merged), sort_keys=False)}", "\n".join(told)


def count_network(kind: str, config: dict, side: int, classes: int | None) -> tuple[int, int]:
    """Operations of a forward pass of one image, and parameters."""
    import torch

    from brickwork.training.tasks.backbones import BACKBONES

    with torch.device("meta"):
        network = BACKBONES[kind](**{**config, "sample_size": side, "num_classes": classes})
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return network.subnets(side, side)["full"], parameters
