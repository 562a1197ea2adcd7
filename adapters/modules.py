"""Adapters whose weights are modules beside the network's own, at work on its activations through hooks.

What such adapters have in common is here: creating, loading and saving, strength and conditions in one thread, changes
that happen completely or not at all. A kind adds what its weights are, where they act and what they do there.
"""

import inspect
import json
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from brickwork import compat
from brickwork.adapters.base import (
    CONFIG_KEY,
    KIND_KEY,
    Adapter,
    checked_scale,
    denoiser_of,
    network_of,
    read_metadata,
)
from brickwork.adapters.hub import local_adapter
from brickwork.errors import explained, no_unknown
from brickwork.files import check_file, write_file

_ADAPTERS = "_brickwork_adapters"  # on a network: its `ModuleAdapter`s by name
_CONFIG_LIMIT = 100_000  # characters
_LOCK = threading.RLock()  # one change of adapters at a time

# What holds within a `with` block, in its thread alone: strength and conditions by the adapter's `id`.
_STRENGTHS: ContextVar[Mapping[int, float]] = ContextVar("strengths", default=MappingProxyType({}))
_CONDITIONS: ContextVar[Mapping[int, Any]] = ContextVar("conditions", default=MappingProxyType({}))


class ModuleHook(ABC):
    """What a `ModuleAdapter` does at one module: `act`, unless the adapter's strength is 0.

    An object rather than a closure, so that a copied network has its own.

    Attributes:
        adapter: whose hook it is.
    """

    def __init__(self, adapter: "ModuleAdapter") -> None:
        self.adapter = adapter

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> Any:
        """`None`, which leaves everything as it is, or what `act` gives."""
        strength = self.adapter.strength()
        if strength == 0:
            return None
        if not torch.compiler.is_compiling():
            self.adapter.follow(args, kwargs)
        return self.act(strength, module, args, kwargs, *output)

    @abstractmethod
    def act(self, strength: float, module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> Any:
        """Before a module's call: `None`, or the `(args, kwargs)` to go on with. Behind it: the output to go on with.

        The adapter's weights are on the device of the first tensor among the arguments, in their own type.
        """


class AddResiduals(ModuleHook):
    """Before the network, under conditions: its arguments with what `adapter.residuals` makes of both."""

    def __init__(self, adapter: "ModuleAdapter") -> None:
        super().__init__(adapter)
        self.names = list(inspect.signature(adapter.network.forward).parameters)

    def act(self, strength: float, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        condition, given = self.adapter.present(), dict(zip(self.names, args)) | kwargs
        if condition is None:
            return None
        residuals = self.adapter.residuals(condition, given)
        return args, with_residuals(kwargs, residuals, strength, given["sample"].dtype)


def _hookable(pipe_or_model) -> nn.Module:
    """The network, unless it is compiled: a graph takes no notice of hooks that come later, and says nothing."""
    network, outer = network_of(pipe_or_model), denoiser_of(pipe_or_model)
    if hasattr(outer, "_orig_mod") or any(compat.compiled_call(module) is not None for module in network.modules()):
        raise ValueError(
            "the network is compiled, and its graph would ignore the adapter: load it first, then compile"
        )
    return network


class ModuleAdapter(Adapter):
    """An adapter whose weights are modules beside the network's own, at work through hooks on the network.

    A kind says what its weights are (`build`), where they act (`hooks`), and what it makes of conditions (`prepare`).

    Attributes:
        network: what it is on.
        config: what it was made with, JSON values.
        parts: the weights; no part of the network's state dict.
        frozen: names in `parts` of somebody else's weights, such as an encoder's: neither trained nor saved.
        options: what `load` takes besides, handed on to `build` with what the file says.
    """

    frozen: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()

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
        """(module, `"pre"` | `"post"`, hook): called with the arguments of torch's hooks that take keywords.

        Hooks are `ModuleHook`s.
        """

    def prepare(self, **given) -> Any:
        """What the hooks find in `self.present()` within `condition(**given)`."""
        return given

    @classmethod
    def create(cls, model, name: str | None = None, **config) -> Self:
        network = _hookable(model)
        parts, config = cls.build(network, **config)
        adapter = cls(network, free_name(network, cls.kind, name), config, parts)
        adapter._put_on(model)
        return adapter

    @classmethod
    def load(cls, pipe_or_model, source: str | Path, name: str | None = None, scale: float = 1.0, **options) -> Self:
        no_unknown("options", options, cls.options, f"a {cls.kind}")
        network = _hookable(pipe_or_model)
        config, tensors = read_module_adapter(local_adapter(source), cls.kind)
        with explained(f"{source}: its configuration is not a {cls.kind}'s", TypeError):
            parts, config = cls.build(network, **{**config, **options})
        adapter = cls(network, free_name(network, cls.kind, name), config, parts, scale)
        adapter._fill(tensors, str(source))
        adapter._put_on(pipe_or_model)
        return adapter

    @property
    def scale(self) -> float:
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
        self._change(bool(value), loaded=True)

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
            with nullcontext() if scale is None else self.at(scale):
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
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state().items()}
        return [write_file(path, lambda part: save_file(tensors, part, metadata))]

    def unload(self) -> None:
        """Take it off: hooks gone, nothing of it left on the network."""
        self._on_network()
        self._change(False, loaded=False)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All weights of the adapter but frozen ones; the network's own are no concern of it."""
        return [parameter for name, parameter in self.parts.named_parameters() if self._is_own(name)]

    def state(self) -> dict[str, torch.Tensor]:
        """What is saved: the adapter's own tensors by name."""
        return {key: tensor for key, tensor in self.parts.state_dict().items() if self._is_own(key)}

    def follow(self, args: tuple, kwargs: dict) -> None:
        """Bring the weights to the device of the first tensor among a module's arguments."""
        device = next((one.device for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)), None)
        if device is not None and any(one.device != device for one in self.parts.parameters()):
            self.parts.to(device)

    def _is_own(self, name: str) -> bool:
        return name.partition(".")[0] not in self.frozen

    def _fill(self, tensors: dict[str, torch.Tensor], source: str) -> None:
        own = {key: tuple(value.shape) for key, value in self.state().items()}
        given = {key: tuple(value.shape) for key, value in tensors.items()}
        wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
        if wrong:
            key = wrong[0]
            raise ValueError(
                f"{source} does not fit: {len(wrong)} tensors differ, such as {key!r}, {given.get(key, 'absent')} "
                f"there and {own.get(key, 'absent')} here; is it made for this network?"
            )
        self.parts.load_state_dict(tensors, strict=False)

    def _put_on(self, pipe_or_model) -> None:
        if self.conditions and not isinstance(pipe_or_model, nn.Module):
            compat.before_call(type(pipe_or_model), "__call__", _refuse_swallowed)
        self._change(True, loaded=True)

    def _change(self, on: bool, loaded: bool) -> None:
        """Hooks on or off, and among the network's adapters or not: all of it, or whatever interrupts it, nothing."""
        with _LOCK:
            before, was = module_adapters(self.network), self._enabled
            others = {name: one for name, one in before.items() if one is not self}
            try:
                self._attach(on)
                _remember(self.network, {**before, self.name: self} if loaded else others)
            except BaseException:
                _remember(self.network, before)
                self._attach(was)
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


def for_batch(argument: str, rows: torch.Tensor, batch: int) -> torch.Tensor:
    """A condition `(pictures, …)` for a batch: pipelines with guidance run the pictures one after the other, twice."""
    if batch % len(rows):
        raise ValueError(
            f"`{argument}` is for {len(rows)} pictures, but the network draws {batch}; give one for all, or one each."
        )
    return rows.repeat(batch // len(rows), *(1,) * (rows.ndim - 1))


def with_residuals(
    kwargs: Mapping[str, Any], residuals: Mapping[str, Any], strength: float, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments of a network with residuals at a strength, added to those that it is given already.

    Args:
        kwargs: the arguments.
        residuals: by argument; tensors, or sequences of tensors and `None`.
        strength: of the residuals.
        dtype: that the network takes them in.
    """

    def add(given: Any, residual: Any) -> Any:
        if residual is None:
            return given
        if isinstance(residual, torch.Tensor):
            residual = (strength * residual).to(dtype)
            return residual if given is None else given + residual
        # A list of its own: diffusers takes its entries out.
        return [add(*pair) for pair in zip(given or [None] * len(residual), residual, strict=True)]

    return {**kwargs, **{name: add(kwargs.get(name), residual) for name, residual in residuals.items()}}


def zeroed(layer: nn.Module) -> nn.Module:
    """A linear layer or a convolution that starts out adding nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _remember(network: nn.Module, adapters: dict[str, ModuleAdapter]) -> None:
    if adapters:
        setattr(network, _ADAPTERS, adapters)
    elif _ADAPTERS in vars(network):
        delattr(network, _ADAPTERS)


@contextmanager
def under_conditions(network: nn.Module, given: Mapping[str, Any], caller: str) -> Iterator[None]:
    """A `with` block under conditions that a pipeline's call was given by name, for all adapters that take them.

    Args:
        network: of the pipeline.
        given: conditions, and strengths under an adapter's `strength_argument`.
        caller: for the error.

    Raises:
        TypeError: for a name that no loaded adapter takes.
    """
    adapters = list(module_adapters(network_of(network)).values()) if given else []
    known = {name for one in adapters for name in (*one.conditions, one.strength_argument)}
    for name in given:
        if name not in known:
            loaded = ", ".join(one.name for one in adapters) or "none"
            raise TypeError(
                f"{caller}() has no argument {name!r}, nor has an adapter on its network (loaded: {loaded})"
            )
    with ExitStack() as stack:
        for one in adapters:
            own = {name: given[name] for name in one.conditions if given.get(name) is not None}
            scale = given.get(one.strength_argument)
            if own:
                stack.enter_context(one.condition(scale, **own))
            elif scale is not None:
                raise ValueError(f"`{one.strength_argument}` is {scale!r} without {' and '.join(one.conditions)}.")
        yield


def _refuse_swallowed(pipeline, *arguments, **given) -> None:
    """A `ValueError` for a condition in the call of a pipeline of diffusers, which would ignore it."""
    if getattr(pipeline, "takes_conditions", False):
        return
    ignored = given.keys() - inspect.signature(type(pipeline).__call__).parameters
    for adapter in module_adapters(network_of(pipeline)).values():
        for name in sorted(ignored & {*adapter.conditions, adapter.strength_argument}):
            takes = f"{adapter.conditions[0]}=…{', scale=…' if name == adapter.strength_argument else ''}"
            raise ValueError(
                f"`{name}` is no argument of {type(pipeline).__name__}, whose call would ignore it; write "
                f"`with adapter.condition({takes}): pipe(…)`."
            )
