"""Networks made of networks, each of which is saved in a sub-folder of its own, and loads from there alone too."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn

from brickwork.errors import one_of
from brickwork.files import read_json
from brickwork.gen.networks.base import Denoiser
from brickwork.gen.subnets import Subnets

_OF_CONFIG = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")


class Parted(Denoiser, ABC):
    """Saving and loading part by part; all weights are in the parts.

    To be named before `ModelMixin` among a network's bases. `config.json` describes every part in full, so that
    `from_config` builds the network too.

    Attributes:
        told: settings of the main part that the configuration repeats, where pipelines look for them.
    """

    told: tuple[str, ...] = ()

    @abstractmethod
    def parts(self) -> dict[str, str]:
        """The module name of each part, by the name of its sub-folder."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *arguments, **kwargs):
        """As in diffusers; what only repeats the parts' settings is no argument of the constructor."""
        own = {key: value for key, value in config.items() if key not in cls.told}
        return super().from_config(own, *arguments, **kwargs)

    def _tell(self, main: Mapping[str, Any], id2label: Mapping[int, str] | None, **further) -> None:
        """Repeat the settings of the main part; `further` ones, and class names if given, go before."""
        names = {"id2label": main.get("id2label") if id2label is None else id2label}
        self.register_to_config(**{name: main.get(name) for name in self.told} | names | further)

    @wraps(ModelMixin.save_pretrained)  # pipelines go by its arguments, such as `variant`
    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save the configuration, and each part in a sub-folder; see diffusers for the arguments.

        Raises:
            ValueError: with `push_to_hub`, which would push each part alone.
        """
        if push_to_hub:
            raise ValueError("`push_to_hub` is True; save first, and push all of it with `.push_to_hub(name)`.")
        self.save_config(save_directory)
        for folder, name in self.parts().items():
            self.get_submodule(name).save_pretrained(os.path.join(save_directory, folder), **kwargs)

    @classmethod
    def _load(cls, path: str, **kwargs):
        kwargs.pop("output_loading_info", None)
        config = cls.load_config(path, **{key: kwargs[key] for key in _OF_CONFIG if key in kwargs})
        with torch.device("meta"):
            model = cls.from_config(config)
        for folder, name in model.parts().items():
            inside = "/".join(filter(None, (kwargs.get("subfolder"), folder)))
            kind = type(model.get_submodule(name))
            model.set_submodule(name, kind.from_pretrained(path, **kwargs | {"subfolder": inside}))
        return model.eval()

    def _take_over(self, networks: Sequence[nn.Module]) -> None:
        """Be split, repeated and cast as the networks inside say."""
        for name in ("_no_split_modules", "_repeated_blocks", "_skip_layerwise_casting_patterns"):
            found = {entry for network in networks for entry in getattr(network, name, None) or ()}
            setattr(self, name, sorted(found))

    def subnets(self, height: int, width: int) -> Subnets:
        """The networks inside and what is made of them, from the cheap to the costly: `{name: operations}`."""
        known = self.__dict__.setdefault("_operations", {})
        if (height, width) not in known:
            *others, full = super().subnets(height, width).items()
            known[height, width] = Subnets([*sorted(others, key=lambda entry: entry[1]), full])
        return Subnets(known[height, width])


def describe(network: ModelMixin) -> dict[str, Any]:
    """A network's configuration with its class, as plain values that `build_part` takes."""
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return {"_class_name": type(network).__name__} | config


def build_part(name: str, described: Mapping[str, Any], kinds: Mapping[str, type]) -> ModelMixin:
    """A freshly initialised network.

    Args:
        name: of the configuration's entry, for the error.
        described: what `describe` gave.
        kinds: the classes that may be a part.

    Raises:
        ValueError: for another class.
    """
    kind = one_of(name, described.get("_class_name"), kinds)
    return kind.from_config({key: value for key, value in described.items() if key != "_class_name"})


def load_part(argument: str, source: Any, kinds: Mapping[str, type], lack: str) -> ModelMixin:
    """A network as it is, or the one of a folder (see `network_folder`).

    Args:
        argument: what it was given for.
        source: network or folder.
        kinds: the classes that may be a part.
        lack: of others, for the error.

    Raises:
        ValueError: for another class.
    """
    folder = network_folder(source) if isinstance(source, (str, os.PathLike)) else None
    name = type(source).__name__ if folder is None else read_json(folder / "config.json").get("_class_name")
    if name not in kinds:
        raise ValueError(f"`{argument}` is a {name}, which {lack}; give one of {', '.join(kinds)}.")
    return source if folder is None else kinds[name].from_pretrained(folder)


def network_folder(source: str | os.PathLike) -> Path:
    """The folder of a network: `source` itself, or the denoiser of a pipeline or of a training run there.

    Raises:
        ValueError: if there is none.
    """
    root = Path(os.path.expanduser(source))
    for inside in ("", "transformer", "unet", "pipeline/transformer", "pipeline/unet"):
        if (root / inside / "config.json").is_file():
            return root / inside
    raise ValueError(f"{str(source)!r} holds no network (config.json is missing); give a folder of save_pretrained.")
