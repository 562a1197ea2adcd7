"""Kill commands that write, at random moments, and see what they leave: the old or the new, never a part.

    python tests/kill_commands.py --kills 300

Each command runs in a forked process that is killed with SIGKILL. What it was to write must then be absent, as it was
before, or complete; of a folder that grows picture by picture every file must be whole. Then the same command runs to
its end: it must succeed, leave what an undisturbed run leaves, and no hidden file beside it.
(Killed training runs: `tests/training/engine/kill_and_resume.py`.)
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from brickwork import cli
from brickwork.files import digest

SAMPLE = Path(__file__).parent / "data" / "emoji" / "sample.parquet"
MODEL = "lego-emoji-64"


@dataclass
class Command:
    """A command that writes.

    Attributes:
        arguments: the command line, given the folder that it works in.
        output: what it writes there.
        again: what is added to the command line where output is there already, `None` where it is just run again.
        grows: whether files come one by one, each whole.
    """

    arguments: Callable[[Path], list[str]]
    output: str
    again: list[str] | None = None
    grows: bool = False


def _generate(place: Path) -> list[str]:
    return ["generate", MODEL, "--count", "2", "--steps", "1", "--batch-size", "1", "--output", str(place / "out")]


def _gen(place: Path) -> list[str]:
    options = ["-n", "6", "--labels", "balanced", "--steps", "1", "--batch-size", "2", "--device", "cpu"]
    return ["evaluate", "gen", MODEL, *options, "-o", str(place / "out")]


def _select(place: Path) -> list[str]:
    return ["data", "select", str(SAMPLE), "--where", "style=fluent", "--output", str(place / "out.parquet")]


def _split(place: Path) -> list[str]:
    options = [f"data.source={SAMPLE}", "data.size=16", "data.held_out=0.2", "data.group_column=codepoints"]
    return ["data", "split", "--output", str(place / "out"), *options]


def _check(place: Path) -> list[str]:
    return ["data", "check", str(SAMPLE), "--size", "16", "-o", str(place / "out")]


def _convert(place: Path) -> list[str]:
    adapter = _shipped("emoji-sd-64") / "resadapter"
    base = ["--base-model", str(_shipped("emoji-sd-64"))]
    return ["convert", "resadapter", str(adapter), str(place / "out.safetensors"), "--to", "comfyui", *base]


def _merge(place: Path) -> list[str]:
    base = _shipped("emoji-sd-64")
    return ["merge", str(base), str(base / "resadapter"), str(place / "out")]


def _shipped(name: str) -> Path:
    import brickwork

    return brickwork.pretrained(name)


COMMANDS = {
    "generate": Command(_generate, "out", grows=True),
    "evaluate gen": Command(_gen, "out", grows=True),
    "data select": Command(_select, "out.parquet"),
    "data split": Command(_split, "out"),
    "data check": Command(_check, "out", again=["--overwrite"]),
    "convert resadapter": Command(_convert, "out.safetensors"),
    "merge": Command(_merge, "out"),
}


@dataclass
class Tally:
    """What happened."""

    kills: int = 0
    finished: int = 0
    faults: list[str] = field(default_factory=list)


def content(path: Path) -> str | None:
    """What lies at a path, as a digest of names and bytes; times and such in JSON files do not count."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return digest(*(part for file in files for part in (str(file.relative_to(path.parent)), _bytes(file))))


def _bytes(file: Path) -> bytes:
    if file.suffix != ".json":
        return file.read_bytes()
    value = json.loads(file.read_text())
    return json.dumps(sorted(value) if isinstance(value, dict) else value).encode()


def start(arguments: list[str]) -> int:
    """The command in a process of its own, with everything imported already."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.redirect_stderr(told):
            status = cli.main(arguments)
        if status:
            sys.__stderr__.write(told.getvalue()[-500:] + "\n")
    finally:
        os._exit(status)


def killed(arguments: list[str], after: float) -> bool:
    """Start, kill after so many seconds; whether the kill came before the end."""
    process = start(arguments)
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def run_out(arguments: list[str]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(start(arguments), 0)[1])


def parts_of(command: Command, place: Path, before: str | None, whole: str) -> str | None:
    """What is wrong with what a killed command left."""
    output = place / command.output
    if command.grows:
        for file in output.rglob("[!.]*.png") if output.exists() else ():
            try:
                Image.open(file).load()
            except OSError:
                return f"{file.name} is a part"
        return None
    return None if content(output) in (before, whole) else "it left neither the old nor the new"


def try_command(name: str, kills: int, folder: Path, seed: int = 0) -> Tally:
    """Kill one command so many times; every other time over an earlier output."""
    command, tally, chance = COMMANDS[name], Tally(), random.Random(f"{name} {seed}")
    first = folder / "undisturbed"
    first.mkdir(parents=True)
    began = time.monotonic()
    if run_out(command.arguments(first)):
        return Tally(faults=[f"{name}: it fails undisturbed"])
    length, whole = time.monotonic() - began, content(first / command.output)
    for number in range(kills):
        place = folder / str(number)
        place.mkdir()
        again = command.again if number % 2 else None
        if again is not None:
            shutil.copytree(first, place, dirs_exist_ok=True)
        before = content(place / command.output)
        arguments = command.arguments(place) + (again or [])
        for _ in range(chance.randint(1, 2)):
            tally.kills += killed(arguments, chance.uniform(0, 1.1 * length))
        fault = parts_of(command, place, before, whole)
        there = (place / command.output).exists()
        if not (there and not command.grows and again is None):  # it was through already, and refuses to do it again
            status = run_out(arguments)
            refused_whole = command.grows and status == 2 and content(place / command.output) == whole
            if status and not refused_whole:
                fault = fault or f"run again, it ends with {status}"
        if fault is None and not command.grows and content(place / command.output) != whole:
            fault = "run again, it leaves something else than an undisturbed run"
        hidden = [entry.name for entry in place.glob(".*@*")]
        if hidden and not fault:
            fault = f"{hidden} stay behind"
        tally.finished += fault is None
        if fault:
            tally.faults.append(f"{name}, {number}: {fault}")
        shutil.rmtree(place)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--command", choices=COMMANDS, nargs="*", default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # other threads do not survive a fork
    import brickwork.adapters.resadapter.functions
    import brickwork.eval.sets.tables
    import brickwork.pipelines.lego  # noqa: F401

    faults = []
    for name in args.command:
        with tempfile.TemporaryDirectory() as folder:
            tally = try_command(name, -(-args.kills // len(args.command)), Path(folder), args.seed)
        faults += tally.faults
        print(f"{name}: {tally.kills} kills, {tally.finished} times whole at the end", flush=True)
    print("\n".join(faults) or "nothing lost, nothing left in part")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
