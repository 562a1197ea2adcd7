"""What all our networks add to diffusers' `ModelMixin`."""

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path


class Denoiser:
    """Loading that says what is wrong; to be named before `ModelMixin` among a network's bases."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to do: `import brickwork` is what makes the class known to `AutoModel`.

        diffusers would write an `auto_map` that names code which is not in the saved folder, and the folder would load
        no longer.
        """

    def register_to_config(self, **kwargs) -> None:
        """Keep constructor arguments and other values for `config.json`."""
        kwargs.pop("_name_or_path", None)  # a folder of this machine, of no use to anyone else
        super().register_to_config(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Load a folder written by `save_pretrained`, or a repository of the hub; see diffusers for the arguments.

        Raises:
            ValueError: where there is no such network; the text says what is there instead, and what to do.
        """
        path = os.path.expanduser(pretrained_model_name_or_path)
        folder = Path(path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            _check_folder(folder, cls.__name__)
        try:
            return super().from_pretrained(path, **kwargs)
        except OSError as error:
            raise ValueError(f"No {cls.__name__} could be loaded from {path!r}: {error}") from error


def _check_folder(folder: Path, class_name: str) -> None:
    if not (folder / "config.json").is_file():
        mend = "give a folder written by save_pretrained."
        if (folder / "model_index.json").is_file():
            mend = 'it is a pipeline; say subfolder="transformer".'
        raise ValueError(f"{str(folder)!r} holds no network (config.json is missing); {mend}")
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise ValueError(f"{str(folder / 'config.json')!r} is no JSON object; save the network anew.") from None
    if saved not in (None, class_name):
        raise ValueError(f"{str(folder)!r} holds a {saved}, not a {class_name}; load it with {saved}.from_pretrained.")


def check_overrides(overrides: Iterable[str], known: Iterable[str], class_name: str) -> None:
    """Raise a `ValueError` for values over a preset that the network does not take, with the name that comes near."""
    known = sorted(set(known) - {"self"})
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}."
            raise ValueError(f"`overrides` has {name!r}, which {class_name} does not take; {mend}")
