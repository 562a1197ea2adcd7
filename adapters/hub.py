"""Finding an adapter named by its repository on the Hugging Face Hub."""

import re
import warnings
from pathlib import Path

from brickwork.adapters.comfyui.reading import LORA_FILES, NORM_FILES
from brickwork.hub import check_name, shipped_folder, shipped_names

ADAPTER_FILE = "adapter.safetensors"  # what adapters of other kinds than ResAdapter's are called in a repository

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?")


def local_adapter(source: str | Path, argument: str = "source", **options: str) -> str | Path:
    """`source` itself if it is a local file or folder, else the local copy of `owner/name[/folder or file]`.

    Without a connection, or with `HF_HUB_OFFLINE=1`, what the cache holds is taken.

    Args:
        source: also an adapter that ships beside weights, by their name and its folder's.
        argument: what it is called in an error.
        options: of the Hub, `revision` and `token`.

    Raises:
        ValueError: neither on this machine nor on the Hub; near names come before any network.
    """
    text = str(source)
    if text.split("/")[0] in shipped_names() and not Path(text).exists():
        return shipped_folder() / text
    local_file = text.endswith(".safetensors") and text.count("/") < 2
    if Path(source).exists() or isinstance(source, Path) or local_file or not _REPOSITORY.fullmatch(text):
        return source
    repository, inner = "/".join(text.split("/")[:2]), "/".join(text.split("/")[2:])
    slip = bool(inner) and Path(text).parent.is_dir()  # in a path of one's own
    if check_name(text if slip or not inner else repository, argument, "adapter"):
        options |= {"local_files_only": True}
    if inner.endswith(".safetensors"):
        groups = [[inner]]
    else:
        prefix = f"{inner}/" if inner else ""
        groups = [[prefix + name for name in (*LORA_FILES, *NORM_FILES)], [prefix + ADAPTER_FILE]]
    for names in groups:
        found = _download(text, repository, names, options)
        if found:
            return found[0] if inner.endswith(".safetensors") else found[0].parent
    raise ValueError(f"source={text!r}: the repository has none of {', '.join(sum(groups, []))}")


def _download(source: str, repository: str, names: list[str], options: dict) -> list[Path]:
    """The local copies of those of the files that a repository has."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    found, unknown, reason = [], [], None
    for name in names:
        try:
            found.append(Path(hf_hub_download(repository, name, **options)))
        except LocalEntryNotFoundError as error:  # no connection: the cache has it not, or knows that it is not there
            if try_to_load_from_cache(repository, name) is None:
                unknown.append(name)
                reason = error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ValueError(f"source={source!r} is no local path and no repository on the Hub: {error}") from error
    halves = {Path(path).name in LORA_FILES for path in found}
    if unknown and len(halves) < 2:  # complete pairs need no other names
        if not found or not constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"source={source!r} is no local path, and the Hub cannot be reached: {reason}"
            ) from reason
        warnings.warn(
            f"{source}: offline, and the cache has {found[0].name} alone, without {' or '.join(unknown)}; if the "
            "repository has them, load the adapter once with a connection",
            stacklevel=2,
        )
    return found
