"""The two layers a ResAdapter adds to, taught to add it without touching a weight.

An adapted module is the base's own object with another class: its parameters, its names and its position in the
model stay as they are, so `state_dict` never shows the adapter, taking it off is exact, and other LoRAs, offloading
and layerwise casting (all of which wrap `forward` or the module's surroundings) go on working. The addition sits in
`__call__`, outside whatever wraps `forward`. A change of class is something `torch.compile` notices, unlike a hook
added later; new strengths are written into the same tensors, which needs no new graph.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import nn

from brickwork import compat

# What layers add in the present thread alone, by their `id`; see `transaction.PerThread`.
IN_THREAD: ContextVar[Mapping] = ContextVar("in_thread", default=MappingProxyType({}))

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _added(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The pair of tensors in force in this thread; a compiled graph knows those of all threads alone."""
    for_all = getattr(module, "adapter_tensors", None)
    if not torch.compiler.is_compiling():
        return IN_THREAD.get().get(id(module), for_all)
    if getattr(module, "adapter_blocks", False):
        raise RuntimeError("a compiled UNet knows one strength for all threads: use set_resadapter_scale")
    return for_all


class _Adapted:
    """Keeps the two added tensors, plain attributes outside the state dict, beside the module's own weight.

    Another thread may take it off in mid-call, so the base's `__call__` is named rather than found by `super()`.
    Modules become adapted by `adapt`, never by construction: PEFT builds its own layers from the class of the one it
    wraps, and gets plain ones.
    """

    def __new__(cls, *args, **kwargs):
        return _BASE[cls](*args, **kwargs) if args or kwargs else super().__new__(cls)  # without arguments: a copy

    def _apply(self, fn, recurse=True):
        module = super()._apply(fn, recurse)
        _place(self)
        return module


class AdaptedConv2d(_Adapted, nn.Conv2d):
    """A convolution plus a low-rank one beside it."""

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if (added := _added(self)) is None:
            return nn.Conv2d.__call__(self, hidden_states)
        down, up = added
        low_rank = F.conv2d(hidden_states, down.to(hidden_states), None, self.stride, self.padding, self.dilation)
        return nn.Conv2d.__call__(self, hidden_states) + F.conv2d(low_rank, up.to(hidden_states))


class AdaptedGroupNorm(_Adapted, nn.GroupNorm):
    """A group norm plus the same normalised input under another weight and bias: n(w + dw) + b + db in two parts."""

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if (added := _added(self)) is None:
            return nn.GroupNorm.__call__(self, hidden_states)
        weight, bias = (tensor.to(hidden_states) for tensor in added)
        added = F.group_norm(hidden_states, self.num_groups, weight, bias, self.eps)
        return nn.GroupNorm.__call__(self, hidden_states) + added


_ADAPTED = {nn.Conv2d: AdaptedConv2d, nn.GroupNorm: AdaptedGroupNorm}
_BASE = {adapted: base for base, adapted in _ADAPTED.items()}


def is_adaptable(module: nn.Module) -> bool:
    """Whether the module is a convolution or group norm of torch's own class, adapted already or not."""
    return type(module) in _ADAPTED or type(module) in _BASE


def adapt(module: nn.Module, tensors: tuple[torch.Tensor, torch.Tensor] | None, ready: bool = False) -> None:
    """Add a pair of tensors (`down` and scaled `up`, or norm differences) to the module's work; None removes it.

    Interrupted at any line, it can be called again with what was there before. `ready` keeps the class where nothing
    is added, for threads in a block of their own.
    """
    if tensors is None and not ready:
        if isinstance(module, _Adapted):
            compat.become(module, _BASE[type(module)])
        vars(module).pop("adapter_tensors", None)
        vars(module).pop("adapter_blocks", None)
        return
    kept = vars(module).get("adapter_tensors")
    if tensors is None or kept is None or any(a.shape != b.shape for a, b in zip(kept, tensors)):
        module.adapter_tensors = tensors
    else:
        for old, tensor in zip(kept, tensors):
            old.copy_(tensor)  # in place: a compiled graph sees the new strength without being made again
    module.adapter_blocks = ready
    if not isinstance(module, _Adapted):
        compat.become(module, _ADAPTED[type(module)])
    _place(module)


def placed(module: nn.Module, tensors: tuple[torch.Tensor, torch.Tensor] | None):
    """The tensors on the weight's device and of its type, unless that is the meta device or an 8-bit type."""
    weight = module.weight
    if tensors is None or weight.device.type == "meta" or weight.dtype not in _PLAIN:
        return tensors
    return tuple(tensor.to(weight) for tensor in tensors)


def _place(module: nn.Module) -> None:
    module.adapter_tensors = placed(module, module.adapter_tensors)
