"""One handle for every adapter: `adapter = load_adapter(pipe, source)`, whatever kind of adapter `source` holds.

A new adapter is a folder with a class derived from `Adapter` (or from `modules.ModuleAdapter`, where its weights are
modules at work through hooks), and one line in `KINDS`. Its files are safetensors whose metadata name the kind
(`"brickwork.adapter": "control"`) and the configuration that it was made with (`"brickwork.config"`, JSON).
"""

import importlib
import math
import numbers
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

from torch import nn

from brickwork.adapters.comfyui.reading import opened
from brickwork.adapters.hub import local_adapter
from brickwork.errors import one_of

KINDS = {
    "resadapter": "brickwork.adapters.resadapter.handle.ResAdapter",
    "dino": "brickwork.adapters.dino.adapter.DinoAdapter",
    "layout": "brickwork.adapters.layout.adapter.LayoutAdapter",
    "control": "brickwork.adapters.control.adapter.ControlAdapter",
    "kv_compression": "brickwork.adapters.kv_compression.handle.KVCompression",
}
UNTOLD = "resadapter"  # the only kind whose files, the authors' own, do not say what they are
KIND_KEY, CONFIG_KEY = "brickwork.adapter", "brickwork.config"
AUTO = "auto"

_DENOISERS = ("unet", "transformer")  # what pipelines call their network
_SHOWN = 60  # characters of a strange kind


def load_adapter(
    pipe_or_model, source: str | Path, name: str | None = None, scale: float = 1.0, **options
) -> "Adapter":
    """Put an adapter of any kind on a pipeline or a network.

    Args:
        pipe_or_model: a pipeline of diffusers or of ours, or its network.
        source: a file, a folder, or a repository on the Hub (`owner/name[/folder or file]`); metadata name the kind.
        name: what to call it, `None`: by its kind. Several may be loaded at once.
        scale: strength, 1.0 for the full effect; some kinds take `"auto"` too.
        options: what only this kind takes, as `norm_mode` and `base_model` of a ResAdapter.

    Returns:
        The handle.

    Raises:
        ValueError: an adapter that cannot be read or does not fit, or a name in use. The pipeline is as it was.
    """
    source = local_adapter(source)
    return adapter_class(kind_of(source)).load(pipe_or_model, source, name, scale, **options)


def adapter_class(kind: str) -> type["Adapter"]:
    """The class of a kind of adapter, imported when asked for."""
    module, _, name = one_of("kind of adapter", kind, KINDS).rpartition(".")
    return getattr(importlib.import_module(module), name)


def kind_of(source: str | Path) -> str:
    """What the files at `source` say of their kind; a ResAdapter's where they say nothing."""
    path = Path(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.suffix == ".safetensors" else []
    kinds = {read_metadata(file).get(KIND_KEY, UNTOLD)[:_SHOWN] for file in files if file.is_file()}
    if len(kinds) > 1:
        raise ValueError(f"{path} holds adapters of several kinds ({', '.join(sorted(kinds))}); name one file.")
    return kinds.pop() if kinds else UNTOLD


def read_metadata(file: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; a `ValueError` where it is none."""
    with opened(file) as found:
        return found.metadata() or {}


def denoiser_of(source, argument: str = "pipeline") -> nn.Module:
    """A network as it is, or the one of a pipeline that removes the noise.

    Raises:
        ValueError: naming the argument, where there is none.
    """
    found = [source] if isinstance(source, nn.Module) else [getattr(source, name, None) for name in _DENOISERS]
    network = next((network for network in found if network is not None), None)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"`{argument}` is a {type(source).__name__}; give a network, or a pipeline with one "
            f"({' or '.join(_DENOISERS)})."
        )
    return network


def network_of(pipe_or_model) -> nn.Module:
    """The network that adapters go on: a pipeline's, or the module itself, out of compilers' and others' wrappers."""
    network = denoiser_of(pipe_or_model, "pipe_or_model")
    while any(hasattr(network, name) for name in ("_orig_mod", "module")):
        network = getattr(network, "_orig_mod", None) or network.module
    return network


def checked_scale(name: str, value: float | str, auto: bool = False) -> float | str:
    """A strength as a float, or "auto" where that is allowed; anything else is a `ValueError`."""
    if auto and isinstance(value, str) and value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r}; allowed: a finite number{' or ' + repr(AUTO) if auto else ''}")
    return float(value)


class Adapter(ABC):
    """One adapter on one network.

    Attributes:
        kind: what its files say they are.
        name: what it is called on its network.
        conditions: what `condition` takes.
        strength_argument: what our pipelines call its strength, beside the conditions.
    """

    kind: ClassVar[str]
    conditions: ClassVar[tuple[str, ...]] = ()
    strength_argument: ClassVar[str | None] = None
    name: str

    @classmethod
    @abstractmethod
    def load(cls, pipe_or_model, source: str | Path, name: str | None = None, scale: float = 1.0, **options) -> Self:
        """Read an adapter of this kind and put it on; see `load_adapter`."""

    @classmethod
    def create(cls, model, name: str | None = None, **config) -> Self:
        """Put an untrained adapter on a network, which changes nothing yet."""
        raise ValueError(f"a {cls.kind} is made by its own training, not by create(); load a trained one.")

    @property
    @abstractmethod
    def scale(self) -> float | str:
        """Strength: 0 is off bit for bit, 1 the full effect; may be set."""

    @scale.setter
    @abstractmethod
    def scale(self, value: float | str) -> None: ...

    @property
    @abstractmethod
    def enabled(self) -> bool:
        """Whether it acts; off is off bit for bit, and on again has the strength it had. May be set."""

    @enabled.setter
    @abstractmethod
    def enabled(self, value: bool) -> None: ...

    @abstractmethod
    def at(self, scale: float):
        """A `with` block in whose thread alone the adapter has this strength: safe where threads share a pipeline."""

    def fuse(self) -> None:
        """Write the adapter into the network's weights."""
        raise ValueError(f"a {self.kind} cannot be fused: its effect is no change of weights; leave it loaded.")

    def unfuse(self) -> None:
        """Put back the weights from before fusing, bit for bit."""
        raise ValueError(f"a {self.kind} is never fused; there is nothing to undo.")

    @abstractmethod
    def save(self, path: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write the adapter, and nothing of its network; returns the files."""

    @abstractmethod
    def unload(self) -> None:
        """Take it off: keys, tensors and outputs are the network's own bit for bit."""

    def condition(self, scale: float | None = None, **given):
        """A `with` block in which the network draws under conditions, such as a reference image or boxes."""
        raise ValueError(f"a {self.kind} takes no conditions; call the pipeline as it is.")

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What training changes."""
        raise ValueError(f"a loaded {self.kind} has nothing to train; see `brickwork train --help`.")
