"""Options that several commands share."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brickwork.errors import explained, whole_number


def _token(text: str) -> str:
    """A token as it may stand in a request; what is wrong with one is said without it."""
    text = text.strip()
    if not re.fullmatch(r"[!-~]+", text):
        raise argparse.ArgumentTypeError("this is no token of the hub; give the one that its settings show (hf_…).")
    return text


_HUB: dict[str, dict[str, Any]] = {
    "revision": {"metavar": "NAME", "help": "branch, tag or commit on the hub"},
    "variant": {"metavar": "NAME", "help": "which of several sets of weights, such as fp16"},
    "token": {"type": _token, "help": "of the hub, for private models (default: the one that `hf auth login` keeps)"},
}
_BASE = {  # of a base beside an adapter, whose own revision is `--revision`
    "base-revision": {"metavar": "NAME", "help": "branch, tag or commit of the base"},
    "revision": {"metavar": "NAME", "help": "branch, tag or commit of the adapter"},
    "variant": {"metavar": "NAME", "help": "which of the base's several sets of weights, such as fp16"},
    "token": _HUB["token"],
}
_SIDE = "in pixels (default: the training size)"
# What argparse is told of the options that several commands have; a command may change single entries.
COMMON: dict[str, dict[str, Any]] = {
    "model": {"help": "weights that ship (lego-avatars-64), a pipeline folder, or a name on the hub"},
    "overrides": {"nargs": "*", "metavar": "section.key=value", "help": "values over the file"},
    "pipeline": {"help": "weights that ship, a pipeline folder or a hub id, ours or any of diffusers"},
    "--batch-size": {"type": int, "default": 16, "help": "pictures at once (default: %(default)s)"},
    "--compile": {
        "action": "store_true",
        "help": "compile the network's blocks: seconds the first time, kept for the next",
    },
    "--config": {"help": "the run's YAML file, or the name of one that ships"},
    "--device": {"help": "cpu, cuda, … (default: the best there is)"},
    "--dry-run": {"action": "store_true", "help": "check everything, print the plan, train nothing"},
    "--dtype": {"default": "float32", "help": "float32 (default), bfloat16 or float16"},
    "--guidance": {"type": float, "help": "scale of classifier-free guidance (default: %(default)s)"},
    "--height": {"type": int, "help": f"height {_SIDE}"},
    "--jobs": {"type": int, "default": 1, "help": "cells at a time (default: %(default)s)"},
    "--overwrite": {"action": "store_true", "help": "replace what this command wrote there before"},
    "--schedule": {
        "default": "saved",
        "help": "which subnets run: saved (the pipeline's own, default), full, fast (of LEGO), or a JSON file",
    },
    "--seed": {"type": int, "default": 0, "help": "seed of the first picture; the next has the next (default: 0)"},
    "--steps": {"type": int, "default": 18, "help": "steps of the sampler (default: %(default)s)"},
    "--width": {"type": int, "help": f"width {_SIDE}"},
}
_FURTHER = {"--batch-size": ["--batch"], "--guidance": ["--guidance-scale"]}  # the same by another name


def add_common(parser: argparse.ArgumentParser, *names: str, **changed: Any) -> None:
    """Add options that several commands have.

    Args:
        parser: or a group of one.
        names: keys of `COMMON`.
        changed: for all of them, what differs from `COMMON`, as `add_argument` takes it.
    """
    for name in names:
        parser.add_argument(name, *_FURTHER.get(name, ()), **COMMON[name] | changed)


def check_at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """Refuse anything but whole numbers from the least up, of options that were given.

    Raises:
        ValueError: naming the option.
    """
    for name in names:
        if (value := getattr(args, name)) is not None:
            whole_number(f"--{name.replace('_', '-')}", value, least)


def as_overrides(values: dict[str, Any]) -> list[str]:
    """`{"run.seed": 1}` => `["run.seed=1"]`, as a command line gives values of a configuration."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Further networks that share a sampler's steps; see `networks_of`."""
    how = "a further network, or a pipeline's, to share the steps of the model's own, which is then `full`"
    parser.add_argument("--with", dest="networks", action="append", metavar="NAME=MODEL", help=how)


def networks_of(args: argparse.Namespace) -> dict[str, str]:
    """What `--with` was given as, by name.

    Raises:
        ValueError: for anything but names, each once, and models.
    """
    found: dict[str, str] = {}
    for given in args.networks or []:
        name, equals, model = given.partition("=")
        if not (name and equals and model) or name in (*found, "full"):
            raise ValueError(f"`--with` is {given!r}; give NAME=MODEL, each name once and none `full`.")
        found[name] = model
    return found


def add_hub(parser: argparse.ArgumentParser, of: str = "models", beside_adapter: bool = False) -> None:
    """What a command that loads from the hub may be told of it.

    Args:
        parser: to add to.
        of: what the options speak of, where a command loads several things.
        beside_adapter: of a command that takes an adapter and its base; see `of_base`.
    """
    group = parser.add_argument_group(f"{of} of the hub")
    for name, how in (_BASE if beside_adapter else _HUB).items():
        group.add_argument(f"--{name}", **how)


def without_token(words: Sequence[str]) -> list[str]:
    """The words of a command line as they may be kept: without the token of the hub."""
    kept: list[str] = []
    for word in words:
        name, equals, _ = word.partition("=")
        behind = bool(kept) and _is_token(kept[-1])
        kept.append("…" if behind else f"{name}=…" if equals and _is_token(name) else word)
    return kept


def _is_token(word: str) -> bool:
    """Whether a word is the option, whole or as short as argparse takes it."""
    return len(word) > 2 and "--token".startswith(word)


def of_hub(args: argparse.Namespace, *names: str) -> dict[str, str]:
    """What was given of them, all or those named, as `from_pretrained` takes it."""
    return {name: value for name in names or _HUB if (value := getattr(args, name, None)) is not None}


def of_base(args: argparse.Namespace) -> dict[str, str]:
    """The same of the base, of a command that takes an adapter beside it."""
    revision = {} if args.base_revision is None else {"revision": args.base_revision}
    return of_hub(args, "variant", "token") | revision


def add_yaml_output(parser: argparse.ArgumentParser, otherwise: str = "") -> None:
    """Where to write a configuration; `otherwise` says what happens without."""
    parser.add_argument("-o", "--output", type=Path, help=f"YAML file to write{otherwise}")
    add_common(parser, "--overwrite")


def json_object(option: str, text: str) -> dict[str, Any]:
    """The JSON object that an option was given as.

    Raises:
        ValueError: naming the option, for anything else.
    """
    with explained(f"`{option}` is {text!r}; give a JSON object", ValueError):
        value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"`{option}` is {text!r}; give a JSON object such as '{{\"eta\": 0.5}}'.")
    return value


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
