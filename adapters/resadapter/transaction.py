"""Changing the ResAdapters on a UNet: all or nothing, and noticed where another thread is drawing.

A change first notes on the UNet what was there before; whatever interrupts it (Ctrl-C, a lack of memory, any
exception at any line), that is put back at once, or if even this is interrupted, by the next operation.

Threads share the layers. `changed strength, then draw` in two threads at once would give pictures of either's
strength, so a forward pass whose strength another thread has changed in between raises a `RuntimeError`; what is safe
is `PerThread`, strengths for one thread's `with` block.
"""

import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from brickwork import compat
from brickwork.adapters.comfyui.strength import auto_strength, range_warning
from brickwork.adapters.resadapter.base_norms import inner_unet
from brickwork.adapters.resadapter.inject import layer_tensors, own_float, refresh, write
from brickwork.adapters.resadapter.layer import IN_THREAD, placed
from brickwork.adapters.resadapter.state import Fused, Loaded, State, store, stored

LOCK = threading.RLock()  # one change at a time
_UNDO = "_resadapters_undo"  # on a UNet, while it is being changed: what puts it back


def state_of(unet: nn.Module) -> State:
    """The ResAdapters on a UNet, after what a change that was broken off may have left is put back."""
    with LOCK:
        _recover(unet)
        return stored(unet)


def loaded_adapters(unet: nn.Module) -> Mapping[str, Loaded]:
    """The adapters on this UNet by name, in the order they were loaded; empty if none is."""
    return state_of(unet).adapters


def fused_stack(unet: nn.Module) -> tuple[Fused, ...]:
    """The fused adapters' records, oldest first."""
    return state_of(unet).fused


def commit(pipe_or_unet, after: State, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Make `after` the state: weights, layers and hooks follow it; an exception leaves all as it was.

    Args:
        pipe_or_unet: whose UNet.
        after: the state.
        weights: to be written over the UNet's own, by key.
    """
    unet = inner_unet(pipe_or_unet)
    with LOCK:
        before = state_of(unet)
        watch = before.watch or Watch()
        where = (_outer(pipe_or_unet), getattr(pipe_or_unet, "vae_scale_factor", watch.pixels_per_latent))
        kept = {key: own_float(unet, key).detach().to("cpu", copy=True) for key in weights or {}}
        try:
            setattr(unet, _UNDO, (before, kept, where))
            if after.adapters is not before.adapters or after.fused is not before.fused:
                watch.note(after)
            _make(unet, replace(after, watch=watch), weights or {}, where)
            delattr(unet, _UNDO)
        except BaseException:
            _recover(unet)
            raise


def _recover(unet: nn.Module) -> None:
    if _UNDO in vars(unet):
        before, kept, where = getattr(unet, _UNDO)
        if before.watch is not None:
            before.watch.note(before)
        _make(unet, before, kept, where)
        delattr(unet, _UNDO)
    state = stored(unet)
    alive = tuple(block for block in state.blocks if block() is not None)
    if len(alive) < len(state.blocks):  # one was broken off while it ended
        _make(unet, replace(state, blocks=alive), {}, (unet, state.watch.pixels_per_latent))


def _make(unet: nn.Module, state: State, weights: Mapping[str, torch.Tensor], where: tuple[nn.Module, int]) -> None:
    write(unet, weights)
    refresh(unet, state)
    _hang(unet, state, *where)
    store(unet, state)


def _outer(pipe_or_unet) -> nn.Module:
    return pipe_or_unet if isinstance(pipe_or_unet, nn.Module) else pipe_or_unet.unet


@dataclass
class _Seen:
    """What a thread last did with a UNet: the version of the strengths it set or drew with, and two time steps."""

    version: int
    last: Any = None
    earlier: Any = None


@dataclass(eq=False)
class Watch:
    """Hooks around a UNet's forward pass: strength by size for `scale="auto"`, and threads that cross.

    Attributes:
        pixels_per_latent: of the pipeline's VAE.
        automatic: whether an adapter follows the size.
        names: of the adapters and of those fused.
        size: of the last picture, in pixels.
        version: how often the strengths have changed.
        threads: what each thread last did.
    """

    pixels_per_latent: int = 8
    automatic: bool = False
    names: tuple = ()
    size: tuple[int, int] | None = None
    version: int = 0
    threads: weakref.WeakKeyDictionary = field(default_factory=weakref.WeakKeyDictionary)

    def __getstate__(self) -> dict:  # a copy starts without threads
        return {**vars(self), "threads": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, threads=weakref.WeakKeyDictionary())

    def note(self, state: State) -> None:
        """A change that this thread is about to make."""
        self.version += 1
        self.names = _names(state)
        self.threads[threading.current_thread()] = _Seen(self.version)

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Called before each forward pass."""
        if torch.compiler.is_compiling():
            if self.automatic:
                raise RuntimeError(
                    "scale='auto' acts outside the graph: call set_resadapter_scale(pipe, 'auto') after compiling"
                )
            return
        if PerThread.holds(self):
            return
        with LOCK:  # or another thread could set the strength of its own size between the look and the note
            if self.automatic:
                sample = kwargs["sample"] if "sample" in kwargs else args[0]
                size = tuple(int(side) * self.pixels_per_latent for side in sample.shape[-2:])
                if size != self.size:
                    _follow_size(module, *size, self.pixels_per_latent)
                    self.size = size
            self._check(kwargs["timestep"] if "timestep" in kwargs else args[1] if len(args) > 1 else None)

    def after(self, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        """Called after each forward pass."""
        if torch.compiler.is_compiling() or PerThread.holds(self):
            return
        seen = self.threads.get(threading.current_thread())
        if seen is not None and seen.version != self.version:
            _crossed()

    def _check(self, timestep) -> None:
        """Raise if another thread has changed the strengths since this one set them, or within this one's drawing.

        A drawing goes from high time steps to low ones; one that is not lower begins the next drawing, which takes
        the strengths as it finds them, except where this thread has set some and not drawn with them yet.
        """
        thread = threading.current_thread()
        seen = self.threads.get(thread)
        if seen is None or (seen.version != self.version and _begins(timestep, seen)):
            self.threads[thread] = seen = _Seen(self.version)
        elif seen.version != self.version:
            del self.threads[thread]
            _crossed()
        seen.earlier, seen.last = seen.last, timestep


def _begins(timestep, seen: _Seen) -> bool:
    """Whether a time step begins a drawing; at an equal one, whether the drawing so far had no other."""
    if seen.last is None or timestep is None:
        return False
    now, last = (torch.as_tensor(value).flatten()[0].item() for value in (timestep, seen.last))
    earlier = None if seen.earlier is None else torch.as_tensor(seen.earlier).flatten()[0].item()
    return now > last or (now == last and (earlier is None or earlier <= last))


def _crossed() -> None:
    raise RuntimeError(
        "another thread has changed the ResAdapters of this UNet while this one was drawing with them; where threads "
        "share a pipeline, draw inside `with adapter.at(scale):`, which holds for one thread alone"
    )


def _names(state: State) -> tuple:
    return (tuple(state.adapters), tuple(record.name for record in state.fused))


def _follow_size(module: nn.Module, height: int, width: int, pixels_per_latent: int) -> None:
    """Set what "auto" stands for at a picture's size in pixels."""
    unet = inner_unet(module)
    latent_side = unet.config.sample_size
    sides = latent_side if isinstance(latent_side, (tuple, list)) else (latent_side, latent_side)
    trained = round(math.sqrt(math.prod(sides)) * pixels_per_latent)
    strength = auto_strength(height, width, trained)
    state = state_of(unet)
    adapters = dict(state.adapters)
    for name, loaded in state.adapters.items():
        if loaded.follows_size:
            adapters[name] = replace(loaded, automatic=strength)
            if message := range_warning(height, width, loaded.adapter.training_range()):
                warnings.warn(f"adapter {name!r}: {message}", stacklevel=2)
    commit(module, replace(state, adapters=adapters))


@dataclass
class _CompiledCall:
    """Stands before the compiled call of a UNet compiled in place, whose graph would take no notice of a new hook."""

    unet: nn.Module
    compiled: Callable
    watch: Watch

    def __call__(self, *args, **kwargs):
        self.watch.before(self.unet, args, kwargs)
        output = self.compiled(*args, **kwargs)
        self.watch.after(self.unet, args, kwargs, output)
        return output


def _hang(unet: nn.Module, state: State, outer: nn.Module, pixels_per_latent: int) -> None:
    """Put the watch on the UNet where a pipeline calls it, or take it off with the last adapter."""
    watch, wanted = state.watch, bool(state.adapters or state.blocks)
    automatic = any(loaded.follows_size for loaded in state.adapters.values())
    if watch is not None:
        watch.automatic, watch.pixels_per_latent, watch.size = automatic, pixels_per_latent, None
    call = compat.compiled_call(unet)
    before_compiled, compiled = isinstance(call, _CompiledCall), call is not None
    found = [(module, hook) for module in _modules(outer) for hook in compat.forward_hooks(module, _is_watch)]
    hooked = len(found) == 2 and all(module is outer and number in kinds for module, (_, kinds, number) in found)
    if wanted and not (before_compiled and found) and (before_compiled or hooked and not (compiled and automatic)):
        return
    for module in _modules(outer):
        compat.take_off_hooks(module, _is_watch)
    if before_compiled:
        call = call.compiled
        compat.set_compiled_call(unet, call)
    if wanted and compiled:
        compat.set_compiled_call(unet, _CompiledCall(unet, call, watch))
    elif wanted:
        outer.register_forward_pre_hook(watch.before, with_kwargs=True)
        outer.register_forward_hook(watch.after, with_kwargs=True)


def _modules(outer: nn.Module) -> list[nn.Module]:
    return list({id(module): module for module in (outer, inner_unet(outer))}.values())


def _is_watch(hook: Callable) -> bool:
    return isinstance(getattr(hook, "__self__", None), Watch)


@dataclass(eq=False)
class PerThread:
    """Strengths of adapters in one thread's `with` block; nothing that other threads set reaches them.

    Attributes:
        names: of the UNet's adapters when the block began.
        strengths: by name.
    """

    names: tuple
    strengths: dict[str, float]

    @staticmethod
    def holds(watch: Watch) -> bool:
        """Whether this thread is in a block of this UNet.

        Raises:
            RuntimeError: if another thread has loaded, fused or unloaded an adapter since the block began.
        """
        block = IN_THREAD.get().get("blocks", {}).get(id(watch))
        if block is not None and block.names != watch.names:
            _crossed()
        return block is not None


@contextmanager
def strengths_in_thread(pipe_or_unet, strengths: Mapping[str, float]) -> Iterator[None]:
    """A `with` block in whose thread alone these adapters have these strengths.

    Raises:
        ValueError: an adapter that is off or fused, one that follows the size beside it, or a compiled UNet.
    """
    unet = inner_unet(pipe_or_unet)
    if _outer(pipe_or_unet) is not unet or compat.compiled_call(unet) is not None:
        raise ValueError("a compiled UNet knows one strength for all threads; use set_resadapter_scale")
    with LOCK:
        state = state_of(unet)
        block = PerThread(_names(state), {})
        commit(pipe_or_unet, replace(state, blocks=(*state.blocks, weakref.ref(block))))
    try:
        watch, present = stored(unet).watch, IN_THREAD.get()
        blocks = present.get("blocks", {})
        merged = {**(blocks[id(watch)].strengths if id(watch) in blocks else {}), **strengths}
        wanted = replace(state, adapters={**state.adapters, **_at(state, merged)})
        with torch.inference_mode(False), torch.no_grad():
            tensors = {id(module): placed(module, pair) for module, pair in layer_tensors(unet, wanted)}
        block.strengths.update(merged)
        token = IN_THREAD.set({**present, **tensors, "blocks": {**blocks, id(watch): block}})
        try:
            yield
        finally:
            IN_THREAD.reset(token)
    finally:
        with LOCK:
            state = state_of(unet)
            commit(pipe_or_unet, replace(state, blocks=tuple(one for one in state.blocks if one() is not block)))


def _at(state: State, strengths: Mapping[str, float]) -> dict[str, Loaded]:
    others = [n for n, one in state.adapters.items() if one.enabled and one.follows_size and n not in strengths]
    if others:
        raise ValueError(f"{', '.join(others)} has scale='auto', which holds for all threads; set a number first")
    return {name: replace(state.adapters[name], lora=value, norm=value) for name, value in strengths.items()}
