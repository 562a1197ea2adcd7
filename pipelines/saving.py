"""What all pipelines of the package share: folders that load again, and errors that say what a folder lacks."""

import os
from pathlib import Path
from typing import Self

from diffusers import DiffusionPipeline

from brickwork import hub
from brickwork.compat import find_variants_of_parts
from brickwork.errors import MissingFile, explained
from brickwork.files import follow_umask, read_json

_INDEX = DiffusionPipeline.config_name
_USAGE = """
## How to use it
This is a `{pipeline}` of brickwork, an extension of 🤗 diffusers.

```python
from brickwork import {pipeline}

pipe = {pipeline}.from_pretrained("{repo_id}")
```
"""


class BrickworkPipeline(DiffusionPipeline):
    """A `DiffusionPipeline` whose components may be the package's own classes.

    diffusers writes the module of such a class into `model_index.json`, and then refuses to load the folder from the
    Hub, because it knows no library of that name. `import brickwork` makes our classes attributes of `diffusers`, so
    they are written down as such; that also survives a class that moves to another module.
    """

    def register_to_config(self, **kwargs) -> None:
        kwargs.pop("_name_or_path", None)  # a folder of this machine, of no use to anyone else
        for name, value in kwargs.items():
            if isinstance(value, tuple) and len(value) == 2 and str(value[0]).startswith("brickwork."):
                kwargs[name] = ("diffusers", value[1])
        super().register_to_config(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments, **kwargs) -> None:
        """Write a folder that `from_pretrained` loads, with files that others may read; see diffusers."""
        super().save_pretrained(save_directory, *arguments, **kwargs)
        follow_umask(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> Self:
        """Load a folder written by `save_pretrained`, or a repository of the Hub.

        Takes what `DiffusionPipeline.from_pretrained` takes, such as `dtype`, `device_map` or single components, and
        the names of weights that ship. Weights are read from safetensors, and in a folder of files
        that `torch.save` wrote (`safe_serialization=False`) from those, of which nothing but tensors is read.

        Raises:
            MissingFile: an `OSError` and a `ValueError`: if there is no such pipeline; the text says what is there
                instead, and what to do.
        """
        path = os.path.expanduser(pretrained_model_name_or_path)
        if path in hub.shipped_names() and not os.path.exists(path):
            path = str(hub.shipped_folder() / path)
        if not os.path.exists(path) and hub.check_name(path, "pretrained_model_name_or_path"):
            kwargs = {"local_files_only": True} | kwargs
        _check_local([base.__name__ for base in cls.__mro__], path, cls.config_name)
        with explained(f"No {cls.__name__} could be loaded from {str(path)!r}", kind=MissingFile):
            find_variants_of_parts()
            safe = None if _holds_pickles(Path(path)) else True
            return super().from_pretrained(path, **{"use_safetensors": safe} | kwargs)

    def _upload_folder(self, working_dir: str | os.PathLike, repo_id: str, **kwargs):
        """Tell the reader of the model card which package the pipeline needs, then upload."""
        card = Path(working_dir) / "README.md"
        if card.is_file() and "brickwork" not in (text := card.read_text(encoding="utf-8")):
            card.write_text(text + _USAGE.format(pipeline=type(self).__name__, repo_id=repo_id), encoding="utf-8")
        return super()._upload_folder(working_dir, repo_id, **kwargs)


def _check_local(class_names: list[str], path: str, index_name: str) -> None:
    """Raise a `ValueError` for what cannot be a saved pipeline; names of Hub repositories pass.

    `class_names` are those of the pipeline and of the classes that it extends.
    """
    folder, class_name = Path(path), class_names[0]
    if folder.is_file():
        advice = " LegoTransformer2DModel.from_original reads the authors' .pkl files." * (folder.suffix == ".pkl")
        raise ValueError(f"{path!r} is a file; {class_name} loads folders.{advice}")
    if not folder.is_dir():
        return
    if not (folder / index_name).is_file():
        raise MissingFile(f"{path!r} holds no {class_name} ({index_name} is missing): {_describe(folder)}")
    saved = read_json(folder / index_name).get("_class_name")
    if saved not in class_names:
        raise ValueError(
            f"{path!r} holds a {saved}, not a {class_name}; load it with DiffusionPipeline.from_pretrained."
        )


def _holds_pickles(folder: Path) -> bool:
    """Whether some part of a saved pipeline has its weights as `torch.save` writes them, and not as safetensors."""
    parts = {file.parent for file in folder.glob("*/**/*.bin")}  # some networks have a folder for each of their own
    return any(not any(part.glob("*.safetensors")) for part in parts)


def _describe(folder: Path) -> str:
    """What a folder that is no pipeline holds, and what to do about it."""
    if (folder / "config.json").is_file():
        model = read_json(folder / "config.json").get("_class_name", "network")
        return (
            f"it holds a {model} alone; load that with {model}.from_pretrained and build the pipeline around it "
            "with a scheduler such as EDMHeunScheduler()."
        )
    pipelines = sorted({found.parent for inside in ("*", "*/pipeline") for found in folder.glob(f"{inside}/{_INDEX}")})
    if pipelines:
        return (
            f"name one of the pipelines below it, {', '.join(map(str, pipelines[:4]))}{' …' * (len(pipelines) > 4)}."
        )
    entries = sorted(entry.name for entry in folder.iterdir())
    inside = ", ".join(entries[:8]) + (" …" if len(entries) > 8 else "") if entries else "nothing"
    return f"it holds {inside}; give a folder written by save_pretrained."
