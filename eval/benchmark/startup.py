"""The benchmark suite `startup`: processor seconds from the shell to an answer, and to the first picture."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from brickwork.compat import COMPILER
from brickwork.eval.benchmark.suites import Settings, mark
from brickwork.eval.benchmark.timing import Spread
from brickwork.eval.report.numbers import spread
from brickwork.gen.compiling import CACHE

BASE = "import torch, diffusers"
PICTURE, HELP = "brickwork generate, one picture", "brickwork --help"
FIRST, AGAIN = "brickwork generate --compile, the first time", "brickwork generate --compile, from the cache"
WITHIN = 4.0  # seconds of the first picture beyond `BASE`
FIRST_WITHIN, AGAIN_WITHIN = 10.0, 2.0  # seconds that compiling adds to the picture
HELP_WITHIN = 0.5


def processes(weights: str, folder: str) -> dict[str, list[str]]:
    """What is started, by name: arguments of Python."""
    drawn = ["generate", weights, "--count", "1", "--classes", "0", "--device", "cpu", "--quiet", "--output", folder]
    statements = (
        BASE,
        f"{BASE}, {COMPILER}",
        "from diffusers import ModelMixin",
        "from diffusers import DiffusionPipeline",
        "import brickwork",
        "from brickwork import LegoTransformer2DModel",
        "from brickwork import LegoPipeline",
    )
    return {statement: ["-c", statement] for statement in statements} | {
        HELP: ["-m", "brickwork", "--help"],
        "brickwork generate --help": ["-m", "brickwork", "generate", "--help"],
        PICTURE: ["-m", "brickwork", *drawn],
        FIRST: ["-m", "brickwork", *drawn, "--compile"],
        AGAIN: ["-m", "brickwork", *drawn, "--compile"],
    }


def processor_seconds(arguments: Sequence[str], threads: int = 1, cache: str | None = None) -> float:
    """Processor time of a fresh Python process, its own children and the system's work for it included.

    Args:
        arguments: of Python.
        threads: of torch.
        cache: where what is compiled is kept.

    Raises:
        ValueError: where it fails, with the last line that it says.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment |= {CACHE: cache} if cache else {}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=said, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
            raise ValueError(f"`{' '.join(arguments)}` failed: {lines[-1]}")
    return used.ru_utime + used.ru_stime


def bench_startup(settings: Settings, chosen: Mapping[str, Sequence[str]] | None = None) -> dict:
    """Fresh processes in turn, round after round; what is beyond the imports of torch and diffusers, round by round.

    Args:
        settings: `rounds`, `threads` and `weights`.
        chosen: what to start in place of `processes`, the base first.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = chosen or processes(settings.weights, str(Path(folder, "pictures")))
        seconds: dict[str, list[float]] = {name: [] for name in started}
        for number in range(settings.rounds):
            cache = str(Path(folder, f"compiled-{number}"))
            for name, arguments in started.items():
                seconds[name].append(processor_seconds(arguments, settings.threads, cache))
    base = seconds[next(iter(started))]
    beyond = {name: [a - b for a, b in zip(found, base)] for name, found in seconds.items()}
    rows = [
        (name, spread(asdict(Spread.of(seconds[name])), ".2f"), spread(asdict(Spread.of(beyond[name])), ".2f"))
        for name in started
    ]
    marks = []
    for name, least, values in ((HELP, HELP_WITHIN, seconds), (PICTURE, WITHIN, beyond)):
        if name in started:
            over = f" beyond `{BASE}`" if values is beyond else ""
            marks.append(mark(f"{name}: processor seconds{over}", f"≤ {least}", Spread.of(values[name]).median))
    for name, least in ((FIRST, FIRST_WITHIN), (AGAIN, AGAIN_WITHIN)):
        if name in started:
            more = [a - b for a, b in zip(seconds[name], seconds[PICTURE])]
            marks.append(mark(f"{name}: processor seconds more than without", f"≤ {least}", Spread.of(more).median))
    columns = ("a process of its own", "processor s", f"beyond `{BASE}`")
    return {
        "kind": "startup", "seconds": seconds, "beyond": beyond, "marks": marks,
        "tables": [{"columns": columns, "rows": rows}],
    }  # fmt: skip
