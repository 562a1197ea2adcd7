"""Every command that writes ends in one clear line where nothing can be written, and leaves nothing in part.

A full disk, a read-only one and a quota are played by the calls that open files, which raise what the system would;
a limit of the size of files is real. Each command meets one of them here, and all of them, and two real disks where
this user may mount them, with `BRICKWORK_LONG=1`.
"""

import builtins
import ctypes
import errno
import io
import os
import resource
from pathlib import Path

import pytest
from writing_commands import COMMANDS, READ_ONLY, make_inputs, run_out

from brickwork import cli

_NEW_MOUNTS, _PRIVATE, _READ_ONLY, _REMOUNT = 0x20000, 0x44000, 1, 32  # Linux: CLONE_NEWNS, MS_REC | MS_PRIVATE, …


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("commands") / "inputs")


def played(code: int):
    """Nothing can be opened for writing below a folder, by Python, safetensors or Arrow."""

    def play(place: Path) -> None:
        import pyarrow.parquet
        import safetensors.torch

        reason, real = os.strerror(code), builtins.open

        def refuse(path) -> None:
            if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(str(place)):
                raise OSError(code, reason, str(path))

        def opened(file, mode="r", *arguments, **options):
            if set(mode) & set("wxa+"):
                refuse(file)
            return real(file, mode, *arguments, **options)

        def serialize_file(tensors, path, *_, **__):
            # What its own writer, in Rust, answers.
            raise safetensors.SafetensorError(
                f"Error while serializing: I/O error: {reason} (os error {code}), {type(path).__name__}"
            )

        writer = pyarrow.parquet.ParquetWriter.__init__

        def parquet(self, where, *arguments, **options):
            refuse(where)
            writer(self, where, *arguments, **options)

        builtins.open = io.open = opened
        safetensors.torch.serialize_file = serialize_file
        pyarrow.parquet.ParquetWriter.__init__ = parquet

    return play


def limited(place: Path) -> None:
    """No file may be longer than 48 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (48, resource.RLIM_INFINITY))


def mounted(read_only: bool):
    """A disk without room for another file, or one that nobody may write to, seen by this process alone."""

    def mount(place: Path) -> None:
        system = ctypes.CDLL(None, use_errno=True)
        options = [(b"none", b"/", None, _PRIVATE, None), (b"none", bytes(place), b"tmpfs", 0, b"size=4k,nr_inodes=1")]
        if read_only:
            options.append((b"none", bytes(place), None, _REMOUNT | _READ_ONLY, None))
        if system.unshare(_NEW_MOUNTS) or any(system.mount(*values) for values in options):
            os._exit(99)

    return mount


FAULTS = {
    "full": played(errno.ENOSPC),
    "read-only": played(errno.EROFS),
    "quota": played(errno.EDQUOT),
    "file size": limited,
    "a full disk": mounted(False),
    "a read-only disk": mounted(True),
}
NAMES = list(FAULTS) if "BRICKWORK_LONG" in os.environ else list(FAULTS)[:4]
CASES = [
    (name, fault)
    for number, name in enumerate(COMMANDS)
    for fault in (NAMES if "BRICKWORK_LONG" in os.environ else [NAMES[number % 4]])
]


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_no_room_is_one_line_and_nothing_in_part(name, fault, inputs, tmp_path):
    command = COMMANDS[name]
    place = tmp_path / "place"
    place.mkdir()
    status, told = run_out(command, command.arguments(inputs, place), lambda: FAULTS[fault](place))
    if status == 99:
        pytest.skip("this user may not mount a disk")
    last = told.strip().splitlines()[-1]
    assert status == 2 and "Traceback" not in told, told
    assert last.startswith("error: ") and str(place) in last
    assert any(word in last.lower() for word in ("space", "read-only", "quota", "too large", "cannot be written")), (
        last
    )
    if "disk" not in fault:  # what it saw of its own disk is gone with it
        left = [str(file.relative_to(place)) for file in place.rglob("*") if file.is_file() and "@" in file.name]
        assert not left and (command.grows or not (place / command.output).exists())


def test_every_command_is_here_or_writes_nothing():
    for name in cli.COMMANDS:
        assert name in READ_ONLY or any(entry.startswith(name) for entry in COMMANDS), (
            f"{name!r} needs an entry in tests/writing_commands.py"
        )
