"""What protects a run: one process group a folder, nothing foreign overwritten, a clean end when asked to stop."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from brickwork.eval.report.versions import library_versions
from brickwork.eval.studies.core.processes import StopRequest
from brickwork.files import write_file
from brickwork.options import without_token
from brickwork.training.engine.settings import EngineSettings

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

LOCK, CONFIG, STARTS = ".lock", "config.yaml", "starts.jsonl"
_LOCKED_BYTE = 2**20  # where Windows locks: beyond the text, which others could not read otherwise


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process.

    The kernel gives the lock back when the process ends, however it ends, so a lock never goes stale; the file's text
    is only there to be read. It is a record lock: worker processes do not inherit it, and it works over NFS.

    Raises:
        ValueError: where another process holds it, the folder holds something else, or it cannot be written.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise ValueError(
            f"`run.output_dir` is {str(folder)!r}, which cannot be written ({error.strerror}); name another folder."
        ) from None
    with file:
        try:
            _lock(file)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"`run.output_dir` is {str(folder)!r}, where another run is at work ({file.read().strip()}); wait for "
                "it, stop it, or name another folder."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def _lock(file: IO) -> None:
    """Lock a file until it is closed, or raise an `OSError` where another process has locked it."""
    if sys.platform == "win32":
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def on_main_process(accelerator: Accelerator, guard) -> Iterator[None]:
    """Enter a context manager on the main process; where it refuses, all processes raise alike."""
    refused = [None]
    with ExitStack() as entered:
        if accelerator.is_main_process:
            try:
                entered.enter_context(guard)
            except ValueError as error:
                refused = [str(error)]
        if accelerator.num_processes > 1:
            broadcast_object_list(refused)
        if refused[0] is not None:
            raise ValueError(refused[0])
        yield


def check_folder(folder: Path) -> None:
    """Refuse a file, and a folder in which something else than a run lies.

    Raises:
        ValueError: naming what lies there.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`run.output_dir` is {str(folder)!r}, which is a file; name a folder.")
    entries = sorted(path.name for path in folder.glob("[!.]*"))
    if not entries:
        return
    try:
        values = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        ours = isinstance(values, dict) and {"model", "data", "run"} <= set(values)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise ValueError(
            f"`run.output_dir` is {str(folder)!r}, which holds {', '.join(entries[:5])} and no run; name a folder "
            "that is empty or does not exist."
        )


def check_unchanged(saved: dict, settings: EngineSettings, fingerprint: str, network: torch.nn.Module) -> None:
    """Refuse to go on from a checkpoint with a configuration or data that would make it another training.

    Args:
        saved: the checkpoint's manifest.
        settings: of the run that goes on.
        fingerprint: of the training data (see `LabelledImages.fingerprint`).
        network: in training; BatchNorm normalises each micro-batch alone, so that their number must stay.

    Raises:
        ValueError: naming the keys that differ.
    """
    in_batches = any(isinstance(module, torch.nn.BatchNorm2d) and module.training for module in network.modules())
    changed = settings.changed(saved["config"], ["run.gradient_accumulation_steps"] if in_batches else [])
    if changed:
        listed = "; ".join(f"{key} was {before!r} and is {now!r}" for key, (before, now) in changed.items())
        raise ValueError(
            f"The run in {settings.run.output_dir!r} began with another configuration: {listed}. Put the values back, "
            "or train into another `run.output_dir` (`model.init_from` starts from weights); --accept-changes goes "
            "on nevertheless."
        )
    if saved.get("data", fingerprint) != fingerprint:
        raise ValueError(
            f"The run in {settings.run.output_dir!r} began with other data than {settings.source!r} holds now "
            "(rows, labels or groups differ); bring the data back, or train into another `run.output_dir`."
        )


@cache
def versions() -> dict[str, str | bool | None]:
    """What a run is made with: package versions, and the commit with whether files differ from it, `None` if unknown.

    The commit is that of a clone which this package is at work in, not of a repository that it is installed somewhere
    inside, such as in the environment of a project.
    """
    top = _git("rev-parse", "--show-toplevel")
    ours = top is not None and Path(top).resolve() == Path(__file__).resolve().parents[2]
    changes = _git("status", "--porcelain", "--untracked-files=no") if ours else None
    commit = _git("rev-parse", "HEAD") if ours else None
    return library_versions() | {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def note_start(folder: Path, record: str, images: int, accelerator: Accelerator, model_type: str) -> None:
    """Write the resolved configuration, and a line about this start, before the first step."""
    write_file(folder / CONFIG, record)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "images": images,
        "host": socket.gethostname(),
        "processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "model": model_type,
        "device": str(accelerator.device),
        "command": without_token(sys.argv),
        "versions": versions(),
    }
    with (folder / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class StopSignal(StopRequest):
    """To the processes of a run, of which any may get it: they finish their step, save and leave."""

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; all processes get the same answer, at the same step."""
        if accelerator.num_processes == 1:
            return self.requested
        flag = torch.tensor(float(self.requested), device=accelerator.device)
        self.requested = accelerator.reduce(flag, reduction="sum").item() > 0
        return self.requested
