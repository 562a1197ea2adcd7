"""The arguments of a training run, for `brickwork train` and the entry scripts; light, so that `--help` is quick."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def add_run_arguments(parser: argparse.ArgumentParser, defaults: str = "training/configs/defaults.yaml") -> None:
    """Add what every training script takes; `defaults` is the file that names every value."""
    parser.add_argument("--config", type=Path, help=f"YAML file over {defaults}, or the name of one that ships")
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
        "family's recipe, or one for a CPU: tiny-lego, tiny-dit, tiny-d-emo, tiny-u-emo, tiny-maxvit, "
        "tiny-resnet, tiny-mixed",
    )
    parser.epilog = (
        "examples:\n  brickwork train --preset tiny-lego run.total_images=40000\n"
        "  brickwork train --config training/configs/lego_emoji_64_eight_groups.yaml"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from brickwork.training.train_backbone import prepare

    if args.preset is not None:
        from brickwork.training.config.recipes import recipe

        if args.config is not None:
            raise ValueError(
                "`--preset` and `--config` were given; a file says `model.preset` itself. Give one of them."
            )
        args.config, overrides = recipe(args.preset)
        args.overrides = [*overrides, *args.overrides]
    return train_as_asked(args, prepare)


def train_as_asked(args: argparse.Namespace, prepare: Callable, kind: type | None = None) -> int:
    """Train, or say what would be trained.

    Args:
        args: those of `add_run_arguments`.
        prepare: `(config, accept_changes)` => the `Run`.
        kind: the task's configuration, by default `TrainConfig`.
    """
    from brickwork.training.config.config import TrainConfig, load_config
    from brickwork.training.config.precision import precision_warning
    from brickwork.training.engine.guards import check_folder
    from brickwork.training.engine.loop import train

    config = load_config(args.config, args.overrides, kind or TrainConfig)
    check_folder(Path(config.run.output_dir))
    run = prepare(config, args.accept_changes)
    if warning := precision_warning(config.run.mixed_precision, run.accelerator.device.type == "cpu"):
        run.accelerator.print(warning)
    if args.dry_run:
        run.accelerator.print(config.to_yaml())
    else:
        train(run)
    return 0


def run_script(name: str, description: str | None, configure: Callable, arguments: list[str] | None = None) -> int:
    """The command line of an entry script; bad input becomes one line and the exit status 2.

    Args:
        name: of the script.
        description: its docstring.
        configure: adds arguments to a parser, and what runs them as its default `run`.
        arguments: in place of the command line's.
    """
    parser = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    configure(parser)
    args = parser.parse_intermixed_args(arguments)  # options may follow values
    try:
        return args.run(args) or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
