"""One handle for every adapter: `adapter = load_adapter(pipe, source)`, whatever kind of adapter `source` holds.

A new adapter is a folder with a class derived from `Adapter` (or from `ModuleAdapter`, where its weights are modules
at work through hooks), and one line in `KINDS`. Its files are safetensors whose metadata name the kind
(`"brickwork.adapter": "control"`) and the configuration that it was made with (`"brickwork.config"`, JSON).
"""

import importlib
import json
import math
import numbers
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from brickwork import compat
from brickwork.adapters.hub import local_adapter
from brickwork.errors import no_unknown, one_of
from brickwork.files import check_file, write_file

KINDS = {
    "resadapter": "brickwork.adapters.resadapter.handle.ResAdapter",
    "layout": "brickwork.adapters.layout.adapter.LayoutAdapter",
}
UNTOLD = "resadapter"  # the only kind whose files, the authors' own, do not say what they are
KIND_KEY, CONFIG_KEY = "brickwork.adapter", "brickwork.config"
AUTO = "auto"

_NETWORKS = ("unet", "transformer")  # a pipeline's components that adapters go on
_ADAPTERS = "_brickwork_adapters"  # on a network: its `ModuleAdapter`s by name
_CONFIG_LIMIT = 100_000  # characters
_SHOWN = 60  # characters of a strange kind
_LOCK = threading.RLock()  # one change of adapters at a time

# What holds within a `with` block, in its thread alone: strength and conditions by the adapter's `id`.
_STRENGTHS: ContextVar[Mapping[int, float]] = ContextVar("strengths", default=MappingProxyType({}))
_CONDITIONS: ContextVar[Mapping[int, Any]] = ContextVar("conditions", default=MappingProxyType({}))


def load_adapter(
    pipe_or_model, source: str | Path, name: str | None = None, scale: float = 1.0, **options
) -> "Adapter":
    """Put an adapter of any kind on a pipeline or a network.

    Args:
        pipe_or_model: a pipeline of diffusers or of ours, or its network.
        source: a file, a folder, or a place on the Hub (`owner/name[/folder or file]`); its metadata tell the kind.
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
    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no readable safetensors file, perhaps cut short: {error}") from error


def network_of(pipe_or_model) -> nn.Module:
    """The network that adapters go on: a pipeline's, or the module itself, out of compilers' and others' wrappers."""
    network = pipe_or_model
    if not isinstance(network, nn.Module):
        found = [getattr(network, name) for name in _NETWORKS if getattr(network, name, None) is not None]
        network = found[0] if found else network
    while isinstance(network, nn.Module) and any(hasattr(network, name) for name in ("_orig_mod", "module")):
        network = getattr(network, "_orig_mod", None) or network.module
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"`pipe_or_model` is a {type(pipe_or_model).__name__}; give a network, or a pipeline that has a "
            f"{' or a '.join(_NETWORKS)}."
        )
    return network


def _hookable(pipe_or_model) -> nn.Module:
    """The network, unless it is compiled: a graph takes no notice of hooks that come later, and says nothing."""
    network = network_of(pipe_or_model)
    outer = pipe_or_model
    if not isinstance(outer, nn.Module):
        outer = next(getattr(outer, name) for name in _NETWORKS if getattr(outer, name, None) is not None)
    if hasattr(outer, "_orig_mod") or any(compat.compiled_call(module) is not None for module in network.modules()):
        raise ValueError(
            "the network is compiled, and its graph would ignore the adapter: load it first, then compile"
        )
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
    """

    kind: ClassVar[str]
    conditions: ClassVar[tuple[str, ...]] = ()
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


class ModuleAdapter(Adapter):
    """An adapter whose weights are modules beside the network's own, at work through hooks on the network.

    A kind says what its weights are (`build`), where they act (`hooks`), and what it makes of conditions (`prepare`).
    Hooks are objects with `__call__` rather than closures, so that a copied network has its own, and ask
    `adapter.strength()`, returning `None` (which leaves everything as it is) where that is 0.

    Attributes:
        network: what it is on.
        config: what it was made with, JSON values.
        parts: the weights; no part of the network's state dict.
    """

    def __init__(self, network: nn.Module, name: str, config: dict, parts: nn.Module, scale: float = 1.0) -> None:
        self.network, self.name, self.config, self.parts = network, name, config, parts
        self._scale, self._enabled = checked_scale("scale", scale), False
        self._placed: list[tuple[nn.Module, str, Callable]] = []
        self._latest: Any = None
        self._blocks = 0

    @classmethod
    @abstractmethod
    def build(cls, network: nn.Module, **config) -> tuple[nn.Module, dict]:
        """The weights for a network, which change nothing yet, and the complete configuration they are made by.

        Raises:
            ValueError: for a configuration or a network that does not do.
        """

    @abstractmethod
    def hooks(self) -> list[tuple[nn.Module, str, Callable]]:
        """(module, `"pre"` | `"post"`, hook): called with the arguments of torch's hooks that take keywords."""

    def prepare(self, **given) -> Any:
        """What the hooks find in `self.present()` within `condition(**given)`."""
        return given

    @classmethod
    def create(cls, model, name: str | None = None, **config) -> Self:
        """Put an untrained adapter on a network, which changes nothing yet."""
        network = _hookable(model)
        parts, config = cls.build(network, **config)
        adapter = cls(network, free_name(network, cls.kind, name), config, parts)
        adapter._put_on()
        return adapter

    @classmethod
    def load(cls, pipe_or_model, source: str | Path, name: str | None = None, scale: float = 1.0, **options) -> Self:
        """Read an adapter of this kind and put it on; see `load_adapter`."""
        no_unknown("options", options, (), f"a {cls.kind}")
        network = _hookable(pipe_or_model)
        config, tensors = read_module_adapter(local_adapter(source), cls.kind)
        try:
            parts, config = cls.build(network, **config)
        except TypeError as error:
            raise ValueError(f"{source}: its configuration is not a {cls.kind}'s ({error})") from None
        _fill(parts, tensors, str(source))
        adapter = cls(network, free_name(network, cls.kind, name), config, parts, scale)
        adapter._put_on()
        return adapter

    @property
    def scale(self) -> float:
        """Strength: 0 is off bit for bit, 1 the full effect; may be set."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = checked_scale("scale", value)

    @property
    def enabled(self) -> bool:
        """Whether its hooks are on the network; may be set."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._on_network()
        with _LOCK:
            was = self._enabled
            try:
                self._attach(bool(value))
            except BaseException:
                self._attach(was)
                raise

    def strength(self) -> float:
        """The strength in force in this thread, 0 where the adapter is off."""
        if not self._enabled:
            return 0.0
        if torch.compiler.is_compiling():  # which knows no context variables
            if self._blocks:
                raise RuntimeError("a compiled network knows one strength for all threads: set `adapter.scale`")
            return self._scale
        return _STRENGTHS.get().get(id(self), self._scale)

    def present(self) -> Any:
        """The conditions in force in this thread, `None` where there are none.

        In a backward pass, which may run in a thread of its own, checkpoints compute again under the latest ones. A
        compiled network knows the latest ones alone.
        """
        if torch.compiler.is_compiling():
            return self._latest
        found = _CONDITIONS.get().get(id(self))
        return self._latest if found is None and compat.in_backward() else found

    @contextmanager
    def at(self, scale: float) -> Iterator[None]:
        """A `with` block in whose thread alone the adapter has this strength."""
        token = _STRENGTHS.set({**_STRENGTHS.get(), id(self): checked_scale("scale", scale)})
        try:
            self._blocks += 1
            yield
        finally:
            self._blocks -= 1
            _STRENGTHS.reset(token)

    @contextmanager
    def condition(self, scale: float | None = None, **given) -> Iterator[None]:
        """A `with` block in whose thread the network draws under these conditions, at this strength if given."""
        if not self.conditions:
            raise ValueError(f"a {self.kind} takes no conditions; call the pipeline as it is.")
        self._on_network()
        no_unknown("condition", given, self.conditions, f"a {self.kind}")
        prepared = self.prepare(**given)
        token = _CONDITIONS.set({**_CONDITIONS.get(), id(self): prepared})
        self._latest = prepared
        try:
            if scale is None:
                yield
            else:
                with self.at(scale):
                    yield
        finally:
            self._latest = None
            _CONDITIONS.reset(token)

    def save(self, path: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write weights, kind and configuration as one `.safetensors` file."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"`path` is {str(path)!r}; name a .safetensors file.")
        check_file(
            path, lambda there: read_metadata(there).get(KIND_KEY) == self.kind, overwrite=overwrite, argument="path"
        )
        metadata = {KIND_KEY: self.kind, CONFIG_KEY: json.dumps(self.config, sort_keys=True, allow_nan=False)}
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self.parts.state_dict().items()}
        return [write_file(path, lambda part: save_file(tensors, part, metadata))]

    def unload(self) -> None:
        """Take it off: hooks gone, nothing of it left on the network."""
        self._on_network()
        with _LOCK:
            others = {name: one for name, one in module_adapters(self.network).items() if one is not self}
            was = self._enabled
            try:
                self._attach(False)
                _remember(self.network, others)
            except BaseException:
                _remember(self.network, {**others, self.name: self})
                self._attach(was)
                raise

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All weights of the adapter; the network's own are no concern of it."""
        return list(self.parts.parameters())

    def _put_on(self) -> None:
        with _LOCK:
            others = module_adapters(self.network)
            try:
                self._attach(True)
                _remember(self.network, {**others, self.name: self})
            except BaseException:
                self._attach(False)
                _remember(self.network, others)
                raise

    def _attach(self, on: bool) -> None:
        """Bring the hooks in line with `on`; broken off at any line, it can be called again."""
        for module, _, hook in self._placed:
            compat.take_off_hooks(module, lambda found, hook=hook: found is hook)
        self._placed, self._enabled = [], False
        if not on:
            return
        self._placed = list(self.hooks())
        for module, side, hook in self._placed:
            register = {"pre": module.register_forward_pre_hook, "post": module.register_forward_hook}[side]
            register(hook, with_kwargs=True)
        self._enabled = True

    def _on_network(self) -> None:
        if module_adapters(self.network).get(self.name) is not self:
            raise ValueError(f"{self.name!r} is no longer loaded; load it again.")


def module_adapters(network: nn.Module) -> dict[str, ModuleAdapter]:
    """The `ModuleAdapter`s on a network by name, in the order in which they came."""
    return getattr(network, _ADAPTERS, {})


def free_name(network: nn.Module, kind: str, name: str | None) -> str:
    """`name` if it is free, or for `None` the kind with a number behind it where it is taken."""
    taken = module_adapters(network)
    if name is None:
        name = next(n for n in (kind, *(f"{kind}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    if not isinstance(name, str) or not re.fullmatch(r"[^\s.][^.]*", name):
        raise ValueError(f"`name` is {name!r}; give a text without dots.")
    if name in taken:
        raise ValueError(f"`name` is {name!r}, which is in use: unload that one, or choose another name.")
    return name


def read_module_adapter(source: str | Path, kind: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Configuration and tensors of the one adapter file at `source`, a file or a folder with one.

    Raises:
        ValueError: nothing readable there, another kind, a configuration that is none, or values that are not finite.
    """
    path = Path(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise ValueError(f"{path} holds {len(files) if path.is_dir() else 'no'} .safetensors files; name one.")
    metadata = read_metadata(files[0])
    if metadata.get(KIND_KEY) != kind:
        raise ValueError(f"{files[0]} says it is a {metadata.get(KIND_KEY, 'file without a kind')}; need a {kind}.")
    text = metadata.get(CONFIG_KEY, "{}")
    try:
        config = json.loads(text) if len(text) <= _CONFIG_LIMIT else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{files[0]}: its {CONFIG_KEY!r} metadata are no JSON object; save the adapter again.")
    tensors = load_file(files[0])
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{files[0]}: {key!r} has values that are NaN or infinite, so the file is damaged.")
    return config, tensors


def _fill(parts: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    own = {key: tuple(value.shape) for key, value in parts.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{source} does not fit: {len(wrong)} tensors differ, such as {key!r}, {given.get(key, 'absent')} "
            f"there and {own.get(key, 'absent')} here; is it made for this network?"
        )
    parts.load_state_dict(tensors)


def _remember(network: nn.Module, adapters: dict[str, ModuleAdapter]) -> None:
    if adapters:
        setattr(network, _ADAPTERS, adapters)
    elif _ADAPTERS in vars(network):
        delattr(network, _ADAPTERS)
