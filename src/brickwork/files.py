"""Files and folders that are complete or absent, digests, and what may be overwritten. Imports nothing of ours.

What is written lies under a hidden name beside its target (`.NAME.PID@HOST.part`) until it is complete. What a killed
process left there is removed by the next one that writes the same target.
"""

import ctypes
import errno
import glob
import hashlib
import json
import math
import os
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brickwork.errors import count_and_name

# What an output folder says of itself: which command made it, and which files.
MANIFEST = ".brickwork.json"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_ROOM = "make room there, or write elsewhere"
_EXCHANGE = 2  # Linux: renameat2(…, RENAME_EXCHANGE)
_HERE = -100  # AT_FDCWD


def digest(*parts: bytes | str) -> str:
    """SHA-256 over the parts, one behind the other, in hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_digest(folder: str | Path) -> str:
    """Sixteen digits of SHA-256 over the safetensors in a folder.

    Raises:
        ValueError: where there are none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{str(folder)!r} holds no weights (.safetensors); name the folder of a pipeline or adapter.")
    return digest(*(path.read_bytes() for path in files))[:16]


def tensor_digest(tensors: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 over names, shapes, types and bytes of torch tensors, in the order of their names."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda entry: entry[0]):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def read_tensors(path: str | Path) -> dict[str, Any]:
    """The tensors of a state dict saved by `torch.save`, on the CPU; nothing of the file is run.

    Raises:
        ValueError: naming the file, for one that is damaged or holds something else, and for one that claims more
            memory than it has bytes, by compression or by tensors over one another.
    """
    import torch

    path = Path(path)
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    raise ValueError("its parts claim more bytes than it has; torch never compresses them")
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader fails in many ways on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{str(path)!r} cannot be read as plain tensors: {reason}") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors.items()
    ):
        raise ValueError(f"{str(path)!r} is not a plain state dict of tensors; save `module.state_dict()`.")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > size:
        raise ValueError(f"{str(path)!r} is refused: its tensors claim more bytes than it has.")
    return tensors


def follow_umask(path: str | Path) -> None:
    """Let whom the umask lets read a file, or a folder with all in it: safetensors writes for its owner alone."""
    path, umask = Path(path), _umask()
    for entry in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if not entry.is_symlink():
            mode = entry.stat().st_mode & 0o7777
            usual = mode | ((0o777 if entry.is_dir() else 0o666) & ~umask)
            if usual != mode:
                entry.chmod(usual)


def _umask() -> int:
    try:  # changing it to learn it would be seen by other threads
        status = Path("/proc/self/status").read_text()
        return int(status.partition("\nUmask:")[2].split(maxsplit=1)[0], 8)
    except (OSError, ValueError, IndexError):
        umask = os.umask(0o022)
        os.umask(umask)
        return umask


@contextmanager
def new_files(*paths: str | Path) -> Iterator[list[Path]]:
    """Temporary names for files that belong together; each is renamed to its own when the block ends without error.

    Names keep their suffix, for writers that go by it. A file that the block did not write is left as it is.
    """
    targets = [Path(path) for path in paths]
    parts = [_hidden(target, f"part{target.suffix}") for target in targets]
    try:
        with _told(targets[0]):
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
                tidy(target)
            yield parts
            for part, target in zip(parts, targets):
                if part.exists():
                    follow_umask(part)
                    os.replace(part, target)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def write_file(path: str | Path, content: bytes | str | Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name, then rename it.

    Args:
        path: of the file; folders above it are made.
        content: bytes, text (UTF-8), or a function that writes the file at the path that it is given.
    """
    with new_files(path) as (part,):
        if callable(content):
            content(part)
        elif isinstance(content, bytes):
            part.write_bytes(content)
        else:
            part.write_text(content, encoding="utf-8")
    return Path(path)


def filled(template: Path, **values: Any) -> str:
    """A text from a Jinja template, such as the card beside a data set; a value that it lacks is an error."""
    import jinja2

    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, **options)
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def plain(value: Any) -> Any:
    """What JSON makes of a value; numbers that are not finite become `None`, what JSON does not know its text."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):  # an array
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> Path:
    """Write a value as JSON, complete or not at all; numbers that are not finite are refused."""
    return write_file(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str = "JSON object") -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: naming the file, where it holds none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\u" in text:  # halves of characters, which nothing could write again
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no {what} ({error}); make it anew.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} is no {what}, but a {type(content).__name__}; make it anew.")
    return content


def put_in_place(fresh: Path, target: Path) -> None:
    """Give what is complete the name `target`; a folder that had it is removed. On Linux the name is never free.

    Args:
        fresh: a file or folder beside it.
        target: a name that is free, a file, or a folder.
    """
    if not target.is_dir():
        os.replace(fresh, target)
        return
    former = fresh
    if not _exchange(fresh, target):
        former = _hidden(target, "old")
        os.replace(target, former)
        os.replace(fresh, target)
    shutil.rmtree(former, ignore_errors=True)


@contextmanager
def new_folder(target: str | Path, maker: str, *, overwrite: bool = False, argument: str = "output") -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends without error; otherwise `target` stays as it was.

    Its files are noted in `.brickwork.json`. Where `target` is an earlier one of the same maker and `overwrite` is
    true, its files are replaced, and whatever else lies there stays.

    Args:
        target: the folder to write.
        maker: the command that makes it.
        overwrite: replace what this maker wrote before.
        argument: what the folder is called in an error.

    Raises:
        ValueError: see `check_folder`.
    """
    target = Path(target)
    strangers = check_folder(target, maker, overwrite=overwrite, argument=argument)
    part = _hidden(target, "part")
    try:
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            made = sorted(str(file.relative_to(part)) for file in part.rglob("*") if not file.is_dir())
            write_json(part / MANIFEST, {"made_by": maker, "files": made})
            follow_umask(part)
            _keep(strangers, target, part)
            put_in_place(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_folder(target: str | Path, maker: str, *, overwrite: bool = False, argument: str = "output") -> list[Path]:
    """Raise unless `new_folder` may write `target`; see there.

    Returns:
        What lies in it that the maker did not write, relative to it.

    Raises:
        ValueError: for a file, for a folder that holds something else than this maker's work, and for this maker's
            work where `overwrite` is false.
    """
    target = Path(target)
    tidy(target)
    if not target.exists() and not target.is_symlink():
        return []
    if not target.is_dir():
        raise ValueError(f"`{argument}` is {str(target)!r}, which is a file; name a folder.")
    entries = [entry for entry in target.rglob("*") if entry.is_symlink() or not entry.is_dir()]
    if not entries:
        return []
    record = _record(target)
    if record is None or record["made_by"] != maker:
        held = "something else" if record is None else f"what `{record['made_by']}` made"
        some = count_and_name(sorted(str(entry.relative_to(target)) for entry in entries), 3)
        raise ValueError(
            f"`{argument}` is {str(target)!r}, which holds {held}: {some}. Nothing in it is touched; name another "
            "folder."
        )
    if not overwrite:
        raise ValueError(f"`{argument}` is {str(target)!r}, which is there already; name another, or add --overwrite.")
    own = {*record["files"], MANIFEST}
    return [name for entry in entries if str(name := entry.relative_to(target)) not in own]


def check_file(
    path: str | Path, is_ours: Callable[[Path], bool], *, overwrite: bool = False, argument: str = "output"
) -> None:
    """Raise unless a command may write the file `path`.

    Args:
        path: of the file.
        is_ours: whether a file is an earlier output of the same command; anything it raises as a `ValueError` or
            `OSError` means no.
        overwrite: replace such a one.
        argument: what the file is called in an error.

    Raises:
        ValueError: for a folder, a foreign file, and an earlier output where `overwrite` is false.
    """
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir():
        raise ValueError(f"`{argument}` is {str(path)!r}, which is a folder; name a file.")
    try:
        ours = is_ours(path)
    except (ValueError, OSError):
        ours = False
    if not ours:
        raise ValueError(
            f"`{argument}` is {str(path)!r}, which holds something else and is not touched; name another file."
        )
    if not overwrite:
        raise ValueError(f"`{argument}` is {str(path)!r}, which is there already; name another, or add --overwrite.")


def check_text(path: str | Path, heading: str, *, overwrite: bool = False, argument: str = "output") -> None:
    """As `check_file`, of a text that begins with a command's heading."""
    check_file(
        path, lambda path: path.read_text(encoding="utf-8").startswith(heading), overwrite=overwrite, argument=argument
    )


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """Full disks, quotas and folders that nobody may write to, told by the target's own name; always an `OSError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM or str(target) in (error.strerror or ""):
            raise
        raise OSError(
            error.errno, f"{str(target)!r} cannot be written: {os.strerror(error.errno)}; {_ROOM}"
        ) from error
    except Exception as error:
        # safetensors has an error of its own for everything, told by its text alone.
        if type(error).__name__ != "SafetensorError" or "deserializing" in str(error):
            raise
        raise OSError(f"{str(target)!r} cannot be written: {error}; {_ROOM}") from error


def check_results(main: str | Path, form: str, others: Iterable[str | Path], *, overwrite: bool = False) -> None:
    """Raise unless a command may write a JSON file and others that go with it.

    Args:
        main: the JSON file, whose key `format` makes it recognisable.
        form: what it has there.
        others: files that belong to an earlier output where `main` does, and to somebody else where it does not.
        overwrite: replace an earlier output.

    Raises:
        ValueError: see `check_file`.
    """
    check_file(main, lambda path: read_json(path).get("format") == form, overwrite=overwrite)
    if not Path(main).exists():
        for other in others:
            check_file(other, lambda path: False)


def tidy(target: Path) -> None:
    """Remove what killed processes of this machine left of writing `target`; put back what they had moved away."""
    prefix, suffix = f".{target.name}.", f"@{socket.gethostname()}"
    for entry in target.parent.glob(f".{glob.escape(target.name)}.*@*"):
        pid, host, kind = _parse(entry.name.removeprefix(prefix))
        if kind is None or f"@{host}" != suffix or _alive(pid):
            continue
        if kind == "old" and not target.exists():
            os.replace(entry, target)
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}@{socket.gethostname()}.{kind}")


def _parse(rest: str) -> tuple[int, str, str | None]:
    """`"12@host.name.part.png"` => process, host, and `"part"` or `"old"`; `None` for a name that is not ours."""
    pid, _, rest = rest.partition("@")
    for kind in ("part", "old"):
        host, found, behind = rest.rpartition(f".{kind}")
        if found and pid.isdigit() and (not behind or behind.startswith(".")):
            return int(pid), host, kind
    return 0, "", None


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _record(folder: Path) -> dict | None:
    try:
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {"made_by": str(record["made_by"]), "files": [str(name) for name in record["files"]]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(strangers: list[Path], folder: Path, fresh: Path) -> None:
    """Put links to (or copies of) the strangers in a folder into the one that replaces it."""
    for name in strangers:
        there = fresh / name
        if there.exists():
            raise ValueError(
                f"{str(folder / name)!r} is not of this command's making, and stands where a new file would; move it."
            )
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, there, follow_symlinks=False)
        except OSError:
            shutil.copy2(folder / name, there, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; `False` where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
