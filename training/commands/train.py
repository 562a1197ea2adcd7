"""The arguments of a training run, for `brickwork train` and the entry scripts; light, so that `--help` is quick.

Train a backbone in one process. With PICTURES alone (a folder of pictures, with a sub-folder for each class or
without; a Parquet file) network, size, batch and length are chosen for this machine, and said. Pictures with captions
and no classes, or with model.base=…, go to a Stable Diffusion (text to image).

examples:
  brickwork train my-pictures
  brickwork train my-pictures run.total_images=100000 data.size=64
  brickwork train my-pictures --preset d-emo-s-2
  brickwork train my-captioned-pictures model.base=stable-diffusion-v1-5/stable-diffusion-v1-5
  brickwork train --preset tiny-lego run.total_images=40000
  brickwork train --config lego_emoji_64_eight_groups
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from brickwork import options

if TYPE_CHECKING:
    from brickwork.training.task import Task


def add_run_options(parser: argparse.ArgumentParser, values: str = "values over the file") -> None:
    """What everything that trains by a configuration takes; `values` says what is given behind the options."""
    options.add_common(parser, "--dry-run")
    parser.add_argument(
        "--accept-changes", action="store_true", help="go on with a configuration or data other than the run's so far"
    )
    options.add_common(parser, "overrides", help=values)


def add_run_arguments(parser: argparse.ArgumentParser, defaults: str = "training/configs/defaults.yaml") -> None:
    """Add what every training script takes; `defaults` is the file that names every value."""
    parser.add_argument("--config", type=Path, help=f"YAML file over {defaults}, or the name of one that ships")
    add_run_options(parser)


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; running them trains in this process."""
    add_run_arguments(parser)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="in place of --config, a network's preset (dit-s-2, d-emo-b-2, maxvit-s, lego-l-pg-64 …) with its "
        "family's recipe, or one for a CPU: tiny-lego, tiny-dit, tiny-d-emo, tiny-u-emo, tiny-maxvit, "
        "tiny-resnet, tiny-pvt-u, tiny-osa-u, tiny-resnet-rs-u, tiny-ffnet, tiny-giraffe, tiny-mixed",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.preset is not None:
        from brickwork.training.config.recipes import recipe

        if args.config is not None:
            raise ValueError(
                "`--preset` and `--config` were given; a file says `model.preset` itself. Give one of them."
            )
        args.config, overrides = recipe(args.preset)
        args.overrides = [*overrides, *args.overrides]
    take_pictures(args)
    return train_as_asked(args, _task(args))


def _task(args: argparse.Namespace) -> type["Task"]:
    """Text to image where the configuration has `model.base`, a pipeline; else a backbone."""
    from brickwork.training.config.config import given_values

    if "model.base" in given_values(args.overrides, args.config):
        from brickwork.training.tasks.latent.text_to_image import TextToImageTask

        return TextToImageTask
    from brickwork.training.tasks.backbone import BackboneTask

    return BackboneTask


def take_pictures(args: argparse.Namespace) -> None:
    """Turn PICTURES among the words of a command line into values, and say what they are.

    Raises:
        ValueError: for two of them, or on several processes, which would each choose for itself.
    """
    from brickwork.training.config.config import TrainConfig
    from brickwork.training.config.latent import TextToImageConfig

    known = {*TrainConfig.model_fields, *TextToImageConfig.model_fields}

    def is_value(word: str) -> bool:
        section = word.partition("=")[0].split(".")[0]
        return section in known and ("=" in word or not Path(word).exists()) or "=" in word and not Path(word).exists()

    pictures = [word for word in args.overrides if not is_value(word)]
    if not pictures:
        return
    if len(pictures) > 1:
        raise ValueError(f"PICTURES are {pictures}; name one folder or file, and values as section.key=value.")
    from brickwork.training.commands import own_pictures

    (source,), values = pictures, [word for word in args.overrides if is_value(word)]
    if args.config is not None:
        args.overrides = [*own_pictures.described(source, values), *values]
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "PICTURES alone is for one process, which measures what it chooses by; write a configuration with "
            "`brickwork new-config`, and give it as --config."
        )
    args.config = own_pictures.begun(source, values)
    if args.config is not None:
        print(f"Going on as {args.config} says; remove its folder to begin anew.")
        args.overrides = [f"run.output_dir={args.config.parent}", *values]
    else:
        args.overrides, said = own_pictures.choose(source, values)
        print("\n".join(said))


def train_as_asked(args: argparse.Namespace, kind: type["Task"]) -> int:
    """Train, or say what would be trained.

    Args:
        args: those of `add_run_arguments`.
        kind: the task.
    """
    from brickwork.training.config.config import load_config
    from brickwork.training.config.precision import precision_warning
    from brickwork.training.engine.guards import check_folder
    from brickwork.training.engine.loop import prepare, train

    config = load_config(args.config, args.overrides, kind.configuration)
    check_folder(Path(config.run.output_dir))
    run = prepare(kind, config, args.accept_changes, args.dry_run)
    if warning := precision_warning(config.run.mixed_precision, run.accelerator.device.type == "cpu"):
        run.accelerator.print(warning)
    if args.dry_run:
        run.accelerator.print(config.to_yaml())
    else:
        train(run)
    return 0


def task_script(file: str, description: str | None, kind: type["Task"]) -> Callable[..., int]:
    """The `main(arguments=None)` of a script that trains one kind of task; see `script`."""

    def configure(parser: argparse.ArgumentParser) -> None:
        add_run_arguments(parser, f"training/configs/{kind.configuration.defaults[-1].name}")
        parser.set_defaults(run=partial(train_as_asked, kind=kind))

    return script(file, description, configure)


def script(file: str, description: str | None, configure: Callable) -> Callable[..., int]:
    """The `main(arguments=None)` of the entry script `file`; see `run_script`."""
    return partial(run_script, Path(file).name, description, configure)


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
