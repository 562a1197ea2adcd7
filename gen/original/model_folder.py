"""What the commands share that write a checkpoint of others as a model folder."""

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `--help` does not wait for it
    from diffusers import ModelMixin


def add_folder_arguments(parser: argparse.ArgumentParser, source: str) -> None:
    """Add IN, OUT and --overwrite; `source` says what IN is."""
    parser.add_argument("input", metavar="IN", type=Path, help=source)
    parser.add_argument("output", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a model folder")


def convert_to_folder(
    load: Callable[[], "ModelMixin"], describe: Callable[["ModelMixin"], str], folder: str | Path, overwrite: bool
) -> None:
    """Write what `load` gives as the model folder `folder`, and print what it is.

    Args:
        load: called once it is known that `folder` may be written.
        describe: one line about the network.
        folder: written under another name beside it and renamed when complete.
        overwrite: replace `folder` if it holds a model (or nothing).

    Raises:
        ValueError: if `folder` is there and may not be replaced.
    """
    folder = Path(folder)
    check_target(folder, overwrite)
    model = load()
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"{describe(model)}; {model.num_parameters() / 1e6:.1f}M parameters in {dtype}")
    write_model_folder(model, folder)
    print(f"written to {folder}")


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


def write_model_folder(model: "ModelMixin", folder: Path) -> None:
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
