"""The arguments of a training run, for `brickwork train` and the entry script; light, so that `--help` is quick."""

import argparse
from pathlib import Path


def add_run_arguments(parser: argparse.ArgumentParser, defaults: str = "training/configs/defaults.yaml") -> None:
    """Add what every training script takes; `defaults` is the file that names every value."""
    parser.add_argument("--config", type=Path, help=f"YAML file over {defaults}")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    parser.add_argument(
        "--accept-changes", action="store_true", help="go on with a configuration or data other than the run's so far"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values over the file")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; running them trains in this process."""
    add_run_arguments(parser)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="in place of --config, a network's preset (dit-s-2, d-emo-b-2, maxvit-s, lego-l-pg-64 …) with its "
        "family's recipe, or one for a CPU: tiny-dit, tiny-d-emo, tiny-u-emo, tiny-maxvit, tiny-resnet, tiny-mixed",
    )
    parser.epilog = (
        "examples:\n  brickwork train --config training/configs/lego_emoji_64.yaml run.total_images=200000\n"
        "  brickwork train --preset tiny-d-emo"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from brickwork.training.train_backbone import run_training

    if args.preset is None:
        return run_training(args.config, args.overrides, args.dry_run, args.accept_changes)
    from brickwork.training.recipes import recipe

    if args.config is not None:
        raise ValueError("`--preset` and `--config` were given; a file says `model.preset` itself. Give one of them.")
    path, overrides = recipe(args.preset)
    return run_training(path, [*overrides, *args.overrides], args.dry_run, args.accept_changes)
