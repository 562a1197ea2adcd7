"""What the studio may read: weights that ship, names on the hub, and what lies in the folders it was given."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from brickwork import hub
from brickwork.errors import shown

_DEPTH, _LIMIT = 4, 20_000  # folders below a root, and how many are looked at
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+)*")


class Roots:
    """Folders that paths are confined to.

    Args:
        folders: at least one; links are followed once, here.

    Raises:
        ValueError: for a folder that is not there.
    """

    def __init__(self, folders: Iterable[str | Path]):
        self.folders: Sequence[Path] = [Path(folder).expanduser().resolve() for folder in folders]
        for folder in self.folders:
            if not folder.is_dir():
                raise ValueError(f"`--root` is {str(folder)!r}, which is no folder; name one that is there.")

    def holds(self, path: Path) -> bool:
        """Whether a path lies in one of the folders once all links are followed."""
        return any(path.resolve().is_relative_to(folder) for folder in self.folders)

    def find(self, text: str, argument: str) -> Path:
        """A path in one of the folders, or relative to one, that is there.

        Raises:
            ValueError: for one outside, and where there is nothing.
        """
        path = self._existing(text)
        if path is None:
            self._refuse_outside(text, argument)
            raise ValueError(f"`{argument}` is {shown(text)}; there is nothing of that name in {self}.")
        return path

    def model(self, text: str) -> str:
        """A pipeline as `load_pipeline` takes it: a name of weights that ship, a folder, or a name on the hub.

        Raises:
            ValueError: for a folder outside, and for one that holds no pipeline.
        """
        if text in hub.shipped_names():
            return text
        path = self._existing(text)
        if path is None:
            self._refuse_outside(text, "model")
            hub.check_name(text, "model")
            return text
        folders = (path, path / "pipeline")
        if not is_run(path) and not any((folder / "model_index.json").is_file() for folder in folders):
            raise ValueError(
                f"`model` is {shown(text)}, which holds no pipeline (no model_index.json); name a pipeline's folder, "
                "or that of a run which has left one."
            )
        if not all(self.holds(folder) for folder in folders):
            raise ValueError(f"`model` is {shown(text)}, whose pipeline is a link that leaves {self}.")
        return str(path)

    @staticmethod
    def on_hub(found: str) -> bool:
        """Whether what `model` answers is a name on the hub."""
        return found not in hub.shipped_names() and not Path(found).is_absolute()

    def adapter(self, text: str) -> str:
        """An adapter as `load_adapter` takes it; `NAME/resadapter` is one beside weights that ship."""
        name, _, rest = text.partition("/")
        if name in hub.shipped_names() and rest and (hub.shipped_folder() / name / rest).is_dir():
            shipped = (hub.shipped_folder() / name / rest).resolve()
            if shipped.is_relative_to((hub.shipped_folder() / name).resolve()):
                return str(shipped)
        path = self._existing(text)
        if path is not None:
            return str(path)
        self._refuse_outside(text, "adapter")
        if not _HUB.fullmatch(text):
            raise ValueError(f"`adapter` is {shown(text)}; there is nothing of that name in {self}, nor on the hub.")
        return text

    def models(self) -> list[str]:
        """Weights that ship, then pipelines and finished runs in the folders."""
        found = [
            str(folder)
            for folder in self._walk()
            if (folder / "model_index.json").is_file() and not (folder.name == "pipeline" and is_run(folder.parent))
        ]
        found += [str(run) for run in self.runs() if (run / "pipeline" / "model_index.json").is_file()]
        return [*hub.shipped_names(), *sorted(found)]

    def adapters(self) -> list[str]:
        """Adapters that ship, and ResAdapter folders in the folders."""
        ships = [f"{path.parent.name}/{path.name}" for path in hub.shipped_folder().glob("*/resadapter")]
        norms, lora = "diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"
        own = [
            str(f)
            for f in self._walk()
            if (f / lora).is_file() or ("resadapter" in f.name.lower() and (f / norms).is_file())
        ]
        return [*sorted(ships), *sorted(own)]

    def runs(self) -> list[Path]:
        """Folders of training runs, the latest first."""
        found = [folder for folder in self._walk() if is_run(folder)]
        return sorted(found, key=lambda folder: (folder / "config.yaml").stat().st_mtime, reverse=True)

    def _existing(self, text: str) -> Path | None:
        if not text or "\0" in text:
            return None
        tried = [folder / Path(text).expanduser() for folder in self.folders]
        return next((path.resolve() for path in tried if path.exists() and self.holds(path)), None)

    def _refuse_outside(self, text: str, argument: str) -> None:
        """What lies elsewhere on this machine is refused whether it is there or not, so that nobody can ask."""
        path = Path(text.replace("\0", ""))
        near = path.is_absolute() or text.startswith("~") or ".." in path.parts
        if not text or near or path.exists() or any((folder / path).exists() for folder in self.folders):
            raise ValueError(
                f"`{argument}` is {shown(text)}, which is not in {self}; start the studio with --root FOLDER."
            )

    def _walk(self) -> Iterator[Path]:
        seen = 0
        for root in self.folders:
            for folder, names, _ in os.walk(root):
                depth = len(Path(folder).relative_to(root).parts)
                names[:] = sorted(n for n in names if not n.startswith(".") and n != "node_modules" and depth < _DEPTH)
                seen += 1
                if seen > _LIMIT:
                    return
                yield Path(folder)

    def __str__(self) -> str:
        return " or ".join(map(str, self.folders))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (folder / "config.yaml").is_file() and (folder / "starts.jsonl").is_file()
