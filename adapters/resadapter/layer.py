"""The two layers a ResAdapter adds to, taught to add it without touching a weight.

An adapted module is the base's own object with another class: its parameters, its names and its place in the model
stay as they are, so `state_dict` never shows the adapter, taking it off is exact, and other LoRAs, offloading and
layerwise casting (all of which wrap `forward` or the module's surroundings) go on working. The addition sits in
`__call__`, outside whatever wraps `forward`. A change of class is something `torch.compile` notices, unlike a hook
added later; new strengths are written into the same tensors, which needs no new graph.
"""

import torch
import torch.nn.functional as F
from torch import nn

from brickwork import compat

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Adapted:
    """Keeps the two added tensors, plain attributes outside the state dict, beside the module's own weight.

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
        down, up = self.adapter_tensors
        low_rank = F.conv2d(hidden_states, down.to(hidden_states), None, self.stride, self.padding, self.dilation)
        return super().__call__(hidden_states) + F.conv2d(low_rank, up.to(hidden_states))


class AdaptedGroupNorm(_Adapted, nn.GroupNorm):
    """A group norm plus the same normalised input under another weight and bias: n(w + dw) + b + db in two parts."""

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight, bias = (tensor.to(hidden_states) for tensor in self.adapter_tensors)
        added = F.group_norm(hidden_states, self.num_groups, weight, bias, self.eps)
        return super().__call__(hidden_states) + added


_ADAPTED = {nn.Conv2d: AdaptedConv2d, nn.GroupNorm: AdaptedGroupNorm}
_BASE = {adapted: base for base, adapted in _ADAPTED.items()}


def is_adaptable(module: nn.Module) -> bool:
    """Whether the module is a convolution or group norm of torch's own class, adapted already or not."""
    return type(module) in _ADAPTED or type(module) in _BASE


def adapt(module: nn.Module, tensors: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    """Adds a pair of tensors (`down` and scaled `up`, or norm differences) to the module's work; None removes it."""
    if tensors is None:
        if isinstance(module, _Adapted):
            del module.adapter_tensors
            compat.become(module, _BASE[type(module)])
        return
    if not isinstance(module, _Adapted):
        module.adapter_tensors = tensors
        compat.become(module, _ADAPTED[type(module)])
    else:
        kept = module.adapter_tensors
        new = tuple(tensor.to(old) for tensor, old in zip(tensors, kept))
        if all(a.shape == b.shape for a, b in zip(kept, new)):
            for old, tensor in zip(kept, new):
                old.copy_(tensor)  # in place: a compiled graph sees the new strength without being made again
        else:
            module.adapter_tensors = new
    _place(module)


def _place(module: nn.Module) -> None:
    """Moves the added tensors to the weight's device and type, unless that is the meta device or an 8-bit type."""
    weight = module.weight
    if weight.device.type != "meta" and weight.dtype in _PLAIN:
        module.adapter_tensors = tuple(tensor.to(weight) for tensor in module.adapter_tensors)
