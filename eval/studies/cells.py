"""What an experiment has computed so far, one file a number, so that the same command goes on with what is missing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from brickwork.eval.sets.pictures import write_atomically
from brickwork.files import write_json


class Cells:
    """The table's cells in a folder, each computed once.

    Args:
        folder: to keep them in.
        identity: what they depend on; a folder of another identity is refused.
    """

    def __init__(self, folder: Path, identity: dict):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "settings.json"
        found = json.loads(file.read_text()) if file.exists() else None
        identity = json.loads(json.dumps(identity))
        if found is not None and found != identity:
            changed = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
            raise ValueError(f"`--output` is {str(folder)!r}, begun with other {', '.join(changed)}; name another.")
        write_json(file, identity)

    def value(self, name: str, compute: Callable | None = None):
        """A JSON value, computed where it is not there yet."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            write_json(file, {"value": compute()})
            print(name, flush=True)
        return json.loads(file.read_text())["value"]

    def pictures(self, name: str, compute: Callable[[], np.ndarray] | None = None) -> np.ndarray:
        """uint8 pictures, drawn where they are not there yet."""
        file = self.folder / f"{name}.npz"
        if not file.exists():
            pictures = compute()
            write_atomically(file, lambda temporary: _save(temporary, pictures))
            print(name, flush=True)
        return np.load(file)["pictures"]


def _save(path: Path, pictures: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, pictures=pictures)
