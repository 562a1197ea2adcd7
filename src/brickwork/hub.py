"""What a person types for a model: weights that ship, a folder, or a name on the Hugging Face Hub.

Slips are answered before any network is touched, and where there is none, at once: the hub's own client tries again
for most of a minute.
"""

import importlib.util
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from brickwork.errors import MissingFile, explained, near_names

_PATIENCE = 5.0  # seconds for a connection to the hub
_WEIGHTS = "diffusion_pytorch_model"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def shipped_folder() -> Path:
    """Where the weights lie that ship with the package, a folder for each."""
    return Path(importlib.util.find_spec("brickwork.pipelines").origin).parent / "pretrained"


def shipped_names() -> list[str]:
    """The names of the weights that ship with the package."""
    return sorted(path.name for path in shipped_folder().glob("*") if path.is_dir())


def check_name(name: str | os.PathLike, argument: str, what: str = "pipeline") -> bool:
    """Raise for a name that is neither a folder nor can be one on the hub.

    Args:
        name: as a person typed it.
        argument: what it was given for.
        what: is looked for.

    Returns:
        Whether to look in the hub's cache alone: the hub cannot be reached, and something of that name is there.

    Raises:
        MissingFile: with the weights that ship and the folders that come near; for a path that is not there; and for
            a name on the hub, where that cannot be reached and the cache holds nothing.
    """
    text = os.fspath(name)
    if Path(text).expanduser().exists() or _cached(text, "models"):
        return not Path(text).expanduser().exists() and not _reachable()
    start = f"`{argument}` is {text!r}; there is no such {what} here"
    near = _near(text)
    if near and ("/" not in text or Path(text).parent.is_dir()):
        raise MissingFile(f"{start}; did you mean {' or '.join(map(repr, near))}?")
    ships = f"the weights that ship are {', '.join(shipped_names())}"
    if text.startswith((".", "/", "~")) or text.endswith(os.sep) or not _HUB_NAME.fullmatch(text):
        raise MissingFile(f"{start}, and no name on the hub looks like that; {ships}.")
    if "/" in text and Path(text).parent.is_dir():
        raise MissingFile(f"{start}: the folder {str(Path(text).parent)!r} has nothing of that name; {ships}.")
    if not _reachable():
        raise MissingFile(f"{start}, and the Hugging Face Hub cannot be reached; {ships}.")
    return False


def located(name: str, argument: str, what: str = "pipeline") -> tuple[str, dict[str, bool]]:
    """What a person typed, as `from_pretrained` finds it: the folder of weights that ship, else the name itself; and
    `local_files_only` where the hub cannot be reached, but the cache has it. Raises as `check_name` does."""
    if name in shipped_names():
        return str(shipped_folder() / name), {}
    return name, {"local_files_only": True} if check_name(name, argument, what) else {}


def without_bars() -> None:
    """Let libraries draw no bars of reading and writing files, which takes no time and tears other bars apart."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def local_copy(name: str, argument: str, what: str = "pipeline", **options: Any) -> Path:
    """The folder of what a person typed: of weights that ship, the folder itself, or a copy of the hub's in its cache.

    For what reads files, where `from_pretrained` would do all of this by itself.

    Args:
        name: of a pipeline or a network of diffusers.
        argument: what it was given for.
        what: it is, in an error.
        options: `revision`, `variant` and `token`; a local folder is taken as it is.

    Raises:
        MissingFile: as `check_name` does, and for what the hub does not have.
    """
    place, cached = located(name, argument, what)
    if Path(place).expanduser().exists():
        return Path(place).expanduser()
    options |= cached
    import huggingface_hub
    from diffusers import DiffusionPipeline

    download = without_variant(options)
    # The hub's own errors are OSErrors.
    with explained(f"`{argument}` is {name!r}, which cannot be had from the hub", kind=MissingFile):
        files = huggingface_hub.snapshot_download(name, allow_patterns=["*.json"], **download)
        if Path(files, "model_index.json").is_file():
            return Path(DiffusionPipeline.download(name, **options))
        ending = f".{options['variant']}.safetensors" if options.get("variant") else ".safetensors"
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", f"*{ending}"], **download))


def without_variant(options: dict[str, Any]) -> dict[str, Any]:
    """What is left for files of which there is one set alone, such as configurations and tokenizers."""
    return {key: value for key, value in options.items() if key != "variant"}


def saved_variant(folder: str | os.PathLike) -> dict[str, str]:
    """`{"variant": "fp16"}` where the denoiser in a local folder has its weights in that variant alone, else nothing:
    what `from_pretrained` must be told to load what is there."""
    places = [place for place in (Path(folder, "transformer"), Path(folder, "unet")) if place.is_dir()]
    names = [file.name for place in places or [Path(folder)] for file in place.rglob(f"{_WEIGHTS}*.safetensors")]
    found = {re.fullmatch(rf"{_WEIGHTS}(?:\.(\w+?))?(-\d+-of-\d+)?\.safetensors", name)[1] for name in names}
    return {"variant": found.pop()} if len(found) == 1 and None not in found else {}


def check_data_set(name: str, argument: str) -> None:
    """Raise as `check_name` does, for a data set that is no local path: with the files and folders that come near, and
    at once where neither the hub nor a cache has it."""
    path, start = Path(name), f"`{argument}` is {name!r}, which is no local path"
    near = near_names(name, _beside(path, folders=False), 2)
    if near:
        raise MissingFile(f"{start}; did you mean {' or '.join(map(repr, near))}?")
    if not (_cached(name, "datasets") or _reachable()):
        raise MissingFile(f"{start}, and the Hugging Face Hub cannot be reached; name a folder or a file.")


def check_argument(argument: str) -> Callable[[Any], None]:
    """A command's check, before anything is imported, of the model that one of its arguments names."""

    def check(args: Any) -> None:
        name = getattr(args, argument)
        if name not in shipped_names():
            check_name(name, argument)

    return check


def _near(text: str) -> list[str]:
    """Shipped weights and folders, in the order of likeness; at most three."""
    found = near_names(text, shipped_names(), 2) + near_names(text, _beside(Path(text)), 2)
    return list(dict.fromkeys(found))[:3]


def _beside(path: Path, folders: bool = True) -> list[str]:
    """What lies where a path would, folders alone or files too."""
    if not path.parent.is_dir():
        return []
    try:
        return [str(path.parent / entry.name) for entry in os.scandir(path.parent) if entry.is_dir() or not folders]
    except OSError:
        return []


def _cached(text: str, kind: str) -> bool:
    """Whether a cache has something of a repository of models or data sets."""
    if not _HUB_NAME.fullmatch(text):
        return False
    from huggingface_hub import constants

    if Path(constants.HF_HUB_CACHE, f"{kind}--{text.replace('/', '--')}").is_dir():
        return True
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME, "datasets")))
    return kind == "datasets" and Path(prepared, text.replace("/", "___")).is_dir()


def _reachable() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    return _connects(constants.ENDPOINT, urllib.request.getproxies().get("https"))


@lru_cache
def _connects(endpoint: str, proxy: str | None) -> bool:
    """Whether a connection to the hub, or to the proxy before it, can be opened."""
    address = urllib.parse.urlsplit(proxy if proxy and "//" in proxy else endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True
