"""Pictures that were drawn, in one folder, each with the settings that draw it again."""

import json
import re
import time
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field

from brickwork.app.drawing import Settings, checked
from brickwork.eval.commands.generate import free_name
from brickwork.eval.report.pictures import save_picture

MAKER, KEY = "brickwork app", "brickwork"
_NAME = re.compile(r"[\w-]+\.png")


class Kept(Settings):
    """What a picture's metadata hold: its settings, and its share of seconds and operations."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    operations: Annotated[int, Field(ge=0)] = 0


def keep(folder: Path, picture: Image.Image, settings: Settings, seconds: float, operations: int) -> str:
    """Write a picture with its settings and its share of the cost; returns its name."""
    notes = Kept(**settings.model_dump(), seconds=round(seconds, 3), operations=operations).model_dump_json()
    model = re.sub(r"[^\w-]+", "-", Path(settings.model).name).strip("-")[:40] or "model"
    file = free_name(folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{settings.seed:06d}.png")
    save_picture(picture, file, MAKER, {KEY: notes})
    return file.name


def picture_file(folder: Path, name: str) -> Path:
    """The file of a picture of the gallery.

    Raises:
        ValueError: for a name that is none.
    """
    file = folder / name
    if not _NAME.fullmatch(name) or file.is_symlink() or not file.is_file():
        raise ValueError(f"`picture` is {name[:80]!r}, which is not in the gallery.")
    return file


def notes_of(file: Path) -> dict:
    """Settings and cost as a picture has them in its metadata; empty where it has none.

    What others put there is checked as what comes by the network is.
    """
    try:
        with Image.open(file) as picture:
            kept = checked(Kept, json.loads(picture.info.get(KEY, "")))
    except (ValueError, OSError, TypeError, SyntaxError, RecursionError, Image.DecompressionBombError):
        return {}
    cost = {"seconds": kept.seconds, "operations": kept.operations}
    return {"settings": kept.model_dump(exclude=set(cost)), **cost}


def listing(folder: Path, limit: int = 60) -> list[dict]:
    """The latest pictures that have settings, the latest first."""
    files = [file for file in folder.glob("*.png") if _NAME.fullmatch(file.name) and not file.is_symlink()]
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)
    found: list[dict] = []
    for file in files:
        notes = notes_of(file)
        if notes:
            found.append({"picture": file.name} | notes)
        if len(found) == limit:
            break
    return found
