"""Finding an adapter named by its place on the Hugging Face Hub."""

import re
from pathlib import Path

from brickwork.adapters.comfyui.reading import LORA_FILES, NORM_FILES

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?")


def local_adapter(source: str | Path) -> str | Path:
    """`source` itself if it is a local file or folder, else the local copy of `owner/name[/folder or file]`.

    Raises:
        ValueError: neither on this machine nor on the Hub.
    """
    text = str(source)
    local_file = text.endswith(".safetensors") and text.count("/") < 2
    if Path(source).exists() or isinstance(source, Path) or local_file or not _REPOSITORY.fullmatch(text):
        return source
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, inner = "/".join(text.split("/")[:2]), "/".join(text.split("/")[2:])
    names = (
        [inner] if inner.endswith(".safetensors") else [f"{inner}/{n}".lstrip("/") for n in LORA_FILES + NORM_FILES]
    )
    found = []
    for name in names:
        try:
            found.append(Path(hf_hub_download(repository, name)))
        except LocalEntryNotFoundError as error:
            raise ValueError(f"source={text!r} is no local path, and the Hub cannot be reached: {error}") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ValueError(f"source={text!r} is no local path and no repository on the Hub: {error}") from error
    if not found:
        raise ValueError(f"source={text!r}: the repository has none of {', '.join(names)}")
    return found[0] if inner.endswith(".safetensors") else found[0].parent
