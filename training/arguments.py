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
    parser.epilog = "example: brickwork train --config training/configs/lego_emoji_64.yaml run.total_images=200000"
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from brickwork.training.train_backbone import run_training

    return run_training(args.config, args.overrides, args.dry_run, args.accept_changes)
