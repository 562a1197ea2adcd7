"""Options that several commands share. Imports nothing of ours."""

import argparse
from pathlib import Path

_HUB = ("revision", "variant", "token")


def add_hub(parser: argparse.ArgumentParser) -> None:
    """What a command that loads a model may be told of the hub."""
    group = parser.add_argument_group("models of the hub")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    group.add_argument("--variant", metavar="NAME", help="which of several sets of weights, such as fp16")
    group.add_argument("--token", help="of the hub, for private models (default: the one that `hf auth login` keeps)")


def of_hub(args: argparse.Namespace) -> dict[str, str]:
    """What was given of them, as `from_pretrained` takes it."""
    return {name: value for name in _HUB if (value := getattr(args, name, None)) is not None}


def add_target(parser: argparse.ArgumentParser, name: str, help: str, metavar: str | None = None) -> None:
    """Where to write: the last word, or behind -o or --output; read it with `target`."""
    parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar=metavar, help=help)
    parser.add_argument("-o", "--output", dest=name, metavar=metavar or name.upper(), help="the same, as an option")


def target(args: argparse.Namespace, name: str) -> Path:
    """The path that `add_target` read.

    Raises:
        ValueError: where none was given.
    """
    value = getattr(args, name, None)
    if value is None:
        raise ValueError(f"{name.upper()} is missing; say where to write as the last word, or with -o.")
    return Path(value)
