"""The `brickwork` command: a table of commands, each imported when it is called."""

import argparse
import importlib
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import brickwork
from brickwork.errors import near_names

# command: (module of this package with `configure_parser(parser)`, or `configure_NAME` behind a colon; what it does)
COMMANDS = {
    "demo": ("eval.commands.demo", "draw one picture with the weights that ship: full, fast and wide"),
    "demo resadapter": ("eval.commands.demo_resadapter", "the miniature Stable Diffusion at sizes it never saw"),
    "generate": ("eval.commands.generate", "draw pictures with a pipeline"),
    "app": ("app.command", "a studio in the browser: draw, compare, watch runs, sweep, look back"),
    "forecast": ("eval.commands.forecast", "go on with the series of a table, or fill in their gaps"),
    "info": ("eval.commands.info", "what a checkpoint is: its bricks, their costs, its schedule"),
    "benchmark": ("eval.commands.benchmark", "time and memory beside a plain reference and diffusers' own networks"),
    "env": ("training.commands.env", "versions, processor, GPUs and what is fast here, for bug reports"),
    "new-config": ("training.commands.new_config", "every value of a training run, commented, as a file to change"),
    "train": ("training.commands.train", "train a backbone, on pictures of one's own too"),
    "distill": ("training.commands.distill", "a student of a pipeline: few steps, or a smaller network"),
    "scale": ("training.commands.scale", "depth, width and size for a budget of operations, and how to train it"),
    "plan": ("training.commands.plan", "what a run would need on many GPUs: memory, traffic, checkpoints, data"),
    "publish": ("training.commands.publish", "a run as a folder to share, with a model card"),
    "ablation": (
        "training.studies.commands:ablation",
        "one training run, changed one thing at a time, over several seeds",
    ),
    "battle": ("training.studies.commands:battle", "backbones of one size under equal conditions: tables and a plot"),
    "evaluate ref": ("eval.commands.evaluate:ref", "real pictures, measured once: statistics, features, hashes"),
    "evaluate gen": ("eval.commands.evaluate:gen", "many pictures of a pipeline, each with its own seed"),
    "evaluate reconstruct": (
        "eval.commands.evaluate:reconstruct",
        "pictures coded and decoded by an autoencoder: the ceiling of what works on its latents",
    ),
    "evaluate calc": ("eval.commands.evaluate:calc", "metrics of samples against a reference"),
    "evaluate compare": ("eval.commands.evaluate:compare", "results side by side"),
    "judge": ("eval.commands.judge", "objects, numbers, colours and positions in pictures, against their prompts"),
    "sweep": ("eval.studies.sweep", "a pipeline over sizes, ratios and adapter strengths: contact sheet and table"),
    "search": ("eval.commands.search", "the best brick schedules within budgets of operations"),
    "search-blocks": (
        "training.studies.commands:search_blocks",
        "blocks, widths and depths for a UNet, within a budget",
    ),
    "convbn": ("training.studies.commands:convbn", "a convolution and its BatchNorm: memory, time, stability by mode"),
    "report": ("eval.commands.report", "results as one page: samples, neighbours, tables, curves"),
    "seams": ("eval.studies.seams", "edges at window borders against edges elsewhere, above the training size"),
    "convert lego": ("eval.commands.convert:lego", "the LEGO authors' checkpoint => a model folder"),
    "convert dit": ("eval.commands.convert:dit", "the DiT authors' checkpoint => a model folder"),
    "convert resadapter": (
        "adapters.resadapter.commands:convert",
        "between the authors' folder, diffusers and ComfyUI",
    ),
    "export": ("eval.commands.export", "a network as ONNX graphs, which run faster on a CPU"),
    "merge": ("adapters.resadapter.commands:merge", "bake a ResAdapter into a checkpoint"),
    "data build emoji": ("training.data.build.emoji", "build the emoji data set from its public packages"),
    "data build avatars": ("training.data.build.avatars", "build avatars of known attributes with DiceBear"),
    "data select": ("training.commands.data_select", "some rows of a data set as a Parquet file"),
    "data split": ("training.commands.data_split", "training and held-out pictures of a run as image folders"),
    "data check": ("training.commands.data_check", "what is in a data set, and what is wrong with it"),
    "data cache": ("training.commands.data_cache", "latents or captions of a data set, encoded once"),
    "completion": ("completion", "a script that lets bash, zsh or fish complete these commands"),
}
# What an argument in Python is called on the command line, where the two names differ.
_OTHER_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "brick_schedule": "schedule",
    "subnet_schedule": "schedule",
    "class_labels": "classes",
    "pretrained_model_name_or_path": "model",
}


def overview(group: str = "") -> str:
    """The list of commands, or of those of a group such as `convert`."""
    rows = {name: text for name, (_, text) in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, rows)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in rows.items()]
    return "\n".join(
        [f"usage: brickwork {group + ' ' if group else ''}COMMAND …", "", *lines, "", "brickwork COMMAND --help"]
    )


def _find(words: list[str]) -> tuple[str, list[str]]:
    """The longest command that the words begin with, and the words behind it."""
    for length in (3, 2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    return "", words


class Parser(argparse.ArgumentParser):
    """A command's parser: every one takes --quiet and --verbose, and answers a slip with what comes near."""

    def __init__(self, **options):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)
        told = self.add_argument_group("what is told").add_mutually_exclusive_group()
        told.add_argument(
            "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress bars, no warnings"
        )
        told.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="what libraries note; tracebacks"
        )

    def error(self, message: str):
        unknown = re.search(r"unrecognized arguments: .*?(--[\w-]+)", message)
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        near = near_names(unknown[1], self.option_names(), 2) if unknown else []
        if choice:
            near = near_names(choice[1], [name.strip("' ") for name in choice[2].split(",")], 2)
        super().error(f"{message}; did you mean {' or '.join(near)}?" if near else message)

    def option_names(self) -> list[str]:
        """The long names of all options."""
        return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", self.format_usage() + self.format_help())))


def parser_of(name: str) -> Parser:
    """The parser of one of the `COMMANDS`, which is described by its module, or its function behind a colon."""
    path, _, function = COMMANDS[name][0].partition(":")
    module = importlib.import_module(f"brickwork.{path}")
    configure = getattr(module, f"configure_{function or 'parser'}")
    described = inspect.getdoc(configure if function else module) or COMMANDS[name][1]  # python -OO leaves none
    text, examples, rest = described.partition("\n\nexample")
    parser = Parser(prog=f"brickwork {name}", description=text, epilog=examples.strip() + rest)
    configure(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input becomes one line and the exit status 2."""
    words = sys.argv[1:] if arguments is None else arguments
    name, rest = _find(words)
    if not name:
        return _answer(words)
    longer = [command for command in COMMANDS if rest and command.startswith(f"{name} ")]
    near = near_names(f"{name} {rest[0]}", longer, 3) if longer else []
    if near:  # a slip in the second word, which `name` alone would call an unrecognised argument
        print(
            f"error: there is no command {f'{name} {rest[0]}'!r}; did you mean {' or '.join(near)}?", file=sys.stderr
        )
        return 2
    parser = parser_of(name)
    args = parser.parse_intermixed_args(rest)  # options may stand before, between and behind the other words
    args.parser = parser
    with warnings.catch_warnings(), _told_to_libraries(args), no_bars() if hasattr(args, "quiet") else nullcontext():
        _tell(args)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        if hasattr(args, "check"):  # what can be told before anything is imported
            args.check(args)
        if getattr(args, "registers", True):
            brickwork.register()
        return args.run(args) or 0
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RecursionError) as error:
        if hasattr(args, "verbose"):
            traceback.print_exc()
        print(f"error: {as_options(str(error), args.parser)}", file=sys.stderr)
        return 2


@contextmanager
def no_bars() -> Iterator[None]:
    """Within the block no bar of tqdm is drawn, by us or by a library, whatever it was told; `TQDM_DISABLE` alone does
    not reach a tqdm that is imported already, nor a bar that says itself whether it is hidden."""
    from tqdm import tqdm

    former = tqdm.__init__

    def hidden(bar, *args, **options) -> None:
        former(bar, *args, **options | {"disable": True})

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = former


@contextmanager
def _told_to_libraries(args: argparse.Namespace) -> Iterator[None]:
    """Within the block libraries, and processes that are started, tell as much as the command does."""
    told = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} if hasattr(args, "quiet") else {}
    level = "error" if hasattr(args, "quiet") else "info" if hasattr(args, "verbose") else None
    if level:
        told |= {"DIFFUSERS_VERBOSITY": level, "TRANSFORMERS_VERBOSITY": level}
    former = {name: os.environ.get(name) for name in told}
    os.environ |= told
    # Which of transformers' classes does without torchvision is of no interest to who draws or trains.
    choices = logging.getLogger("transformers.utils.import_utils")
    level = choices.level
    choices.setLevel(level if hasattr(args, "verbose") else logging.ERROR)
    try:
        yield
    finally:
        choices.setLevel(level)
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _tell(args: argparse.Namespace) -> None:
    """How much is told: warnings as one line of their own above a progress bar, all that libraries say, or nothing."""
    if hasattr(args, "quiet"):
        warnings.simplefilter("ignore")

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        from tqdm import tqdm

        text = " ".join(str(message).split())
        where = f" ({category.__name__}, {filename}:{lineno})" if hasattr(args, "verbose") else ""
        tqdm.write(f"warning: {text}{where}", file=sys.stderr)

    warnings.showwarning = show


def as_options(text: str, parser: Parser) -> str:
    """An error of a function as the command line speaks: `--to`, not `to=`; `--overwrite`, not `overwrite=True`."""
    known = set(parser.option_names())
    for name in {*re.findall(r"(?<!-)\b[a-z][a-z_]*\b", text)}:
        option = f"--{name.replace('_', '-')}"
        if option not in known:
            option = f"--{_OTHER_NAMES.get(name, '')}"
        if option not in known:
            continue
        text = re.sub(rf"`{name}`", f"`{option}`", text)
        text = re.sub(rf"(?<![\w.-]){name}=True\b", option, text)
        text = re.sub(rf"(?<![\w.-]){name}=(?=['\"\w])", f"{option} ", text)
        text = re.sub(rf"\bset {name}\b", f"add {option}", text)
        text = re.sub(rf"^{name}: ", f"{option}: ", text)
        if "_" in name:
            text = re.sub(rf"(?<![\w.`'/-]){name}(?![\w.`'/=-])", option, text)
    return text


def _answer(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(brickwork.__version__)
        return 0
    given = " ".join(word for word in words[:3] if not word.startswith("-"))
    for group in (" ".join(words[:2]), words[0]):
        if any(name.startswith(f"{group} ") for name in COMMANDS):
            known = words == group.split() or words[len(group.split())] in ("-h", "--help")
            print(overview(group), file=sys.stdout if known else sys.stderr)
            if near := [] if known else near_names(given, COMMANDS):
                print(f"error: there is no command {given!r}; did you mean {near[0]}?", file=sys.stderr)
            return 0 if known else 2
    near = near_names(given, COMMANDS, 3) or near_names(words[0], COMMANDS, 3)
    fix = f"did you mean {' or '.join(near)}?" if near else "`brickwork --help` lists them."
    print(f"error: there is no command {given or words[0]!r}; {fix}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
