"""Writing a converted network as a folder that appears whole or not at all."""

import os
import shutil
from pathlib import Path

from diffusers import ModelMixin


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise a `ValueError` unless `folder` may be written: it is not there, or a model folder to be replaced."""
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(f"OUT is {str(folder)!r}, which is there already; choose another, or give --overwrite.")
    others = [entry.name for entry in folder.iterdir() if not _is_model_file(entry)] if folder.is_dir() else ["a file"]
    if others:
        raise ValueError(
            f"OUT is {str(folder)!r}, which holds more than a model ({', '.join(others[:3])}) and is not replaced; "
            "choose another."
        )


def write_model_folder(model: ModelMixin, folder: Path) -> None:
    """Save under another name beside `folder`, then rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    try:
        model.save_pretrained(fresh)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _is_model_file(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".safetensors" or path.name.endswith((".index.json", "config.json")))
