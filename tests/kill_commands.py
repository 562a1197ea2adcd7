"""Kill commands that write, at random moments, and see what they leave: the old or the new, never a part.

    python tests/kill_commands.py --kills 300

Each command runs in a forked process that is killed with SIGKILL. What it was to write must then be absent, as it was
before, or complete; of a folder that grows picture by picture every file must be whole. Then the same command runs to
its end: it must succeed, leave what an undisturbed run leaves, and no hidden file beside it.
(Killed training runs: `tests/training/engine/kill_and_resume.py`.)
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from safetensors import safe_open
from writing_commands import COMMANDS, Command, make_inputs, run_out, start

from brickwork.files import MANIFEST, digest


@dataclass
class Tally:
    """What happened."""

    kills: int = 0
    rounds: int = 0
    finished: int = 0
    faults: list[str] = field(default_factory=list)


def content(path: Path, equal: str = "bytes") -> str | None:
    """What lies at a path, as a digest of names and, if asked for, bytes.

    Of JSON files the keys alone count; safetensors writes its metadata in any order.
    """
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    told = [str(file.relative_to(path.parent)) for file in files]
    return digest(*told, *(map(_bytes, files) if equal == "bytes" else ()))


def _bytes(file: Path) -> bytes:
    if file.suffix == ".safetensors":
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]
    if file.suffix != ".json":
        return file.read_bytes()
    value = json.loads(file.read_text())
    return json.dumps(sorted(value) if isinstance(value, dict) else value).encode()


def is_part(file: Path) -> bool:
    """Whether a file is not whole, as far as one can tell from the file alone."""
    try:
        if file.suffix == ".png":
            Image.open(file).load()
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            safe_open(file, "pt").keys()
        elif file.suffix in (".html", ".parquet"):
            return not file.read_bytes().rstrip().endswith((b"</html>", b"PAR1"))
    except Exception:
        return True
    return False


def killed(command: Command, arguments: list[str], after: float) -> bool:
    """Start, kill after so many seconds with all that it started; whether the kill came before the end."""
    process = start(command, arguments)
    time.sleep(after)
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def left_by_kill(command: Command, place: Path, before: str | None, whole: str) -> str | None:
    """What is wrong with what a killed command left."""
    output = place / command.output
    if command.grows:
        shown = [file for file in output.rglob("*") if file.is_file() and not is_hidden(file, output)]
        parts = [file.name for file in shown if is_part(file)]
        return f"{parts} are parts" if parts else None
    return None if content(output, command.equal) in (before, whole) else "it left neither the old nor the new"


def is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") and part != MANIFEST for part in file.relative_to(folder).parts)


def try_command(name: str, kills: int, inputs: Path, folder: Path, seed: int = 0) -> Tally:
    """Kill one command so many times; every other time over an earlier output."""
    command, tally, chance = COMMANDS[name], Tally(), random.Random(f"{name} {seed}")
    first = folder / "undisturbed"
    first.mkdir(parents=True)
    run_out(command, command.arguments(inputs, _made(folder / "warm")))
    began = time.monotonic()
    status, told = run_out(command, command.arguments(inputs, first))
    if status:
        return Tally(faults=[f"{name}: it fails undisturbed: {told[-300:]}"])
    length, whole = time.monotonic() - began, content(first / command.output, command.equal)
    while tally.kills < kills and len(tally.faults) < 3:
        fault = _once(command, inputs, folder, first, tally, chance, length, whole)
        tally.rounds += 1
        tally.finished += fault is None
        if fault:
            tally.faults.append(f"{name}, {tally.rounds}: {fault}")
    return tally


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _once(command, inputs, folder, first, tally, chance, length, whole) -> str | None:
    """Kill a command once or twice in a place of its own, then let it end; what is wrong."""
    place = _made(folder / str(tally.rounds))
    again = command.again if tally.rounds % 2 else None
    if again is not None:
        shutil.copytree(first, place, dirs_exist_ok=True)
    before = content(place / command.output, command.equal)
    arguments = [*command.arguments(inputs, place), *(again or [])]
    for _ in range(chance.randint(1, 2)):
        tally.kills += killed(command, arguments, chance.uniform(0, 1.1 * length))
    fault = left_by_kill(command, place, before, whole)
    there = (place / command.output).exists()
    if there and command.grows and command.again is not None:  # what it wrote so far is its own earlier output
        arguments = [*command.arguments(inputs, place), *command.again]
    if not (there and not command.grows and again is None):  # it was through already, and refuses to do it again
        status, told = run_out(command, arguments)
        if status and not (command.grows and content(place / command.output, command.equal) == whole):
            fault = fault or f"run again, it ends with {status}: {told[-200:]}"
    if fault is None and command.equal != "nothing" and content(place / command.output, command.equal) != whole:
        fault = "run again, it leaves something else than an undisturbed run"
    hidden = [entry.name for entry in place.rglob(".*@*")]
    shutil.rmtree(place)
    return fault or (f"{hidden} stay behind" if hidden else None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--command", choices=COMMANDS, nargs="*", default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import torch

    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    torch.set_num_threads(1)  # other threads do not survive a fork
    faults, total = [], 0
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder) / "inputs")
        for name in args.command:
            place = Path(folder) / name.replace(" ", "-")
            tally = try_command(name, -(-args.kills // len(args.command)), inputs, place, args.seed)
            faults, total = faults + tally.faults, total + tally.kills
            print(f"{name}: {tally.kills} kills, {tally.finished} of {tally.rounds} whole at the end", flush=True)
            shutil.rmtree(place)
    print("\n".join([f"{total} kills", *(faults or ["nothing lost, nothing left in part"])]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
