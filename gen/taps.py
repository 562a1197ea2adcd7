"""Features out of a network: what named parts of it computed during a forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from brickwork.errors import one_of


@contextmanager
def tapped(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """The outputs of named modules, read by hooks; those of the last forward pass within the context.

    Args:
        network: any.
        names: of modules, as in `network.named_modules()`, such as `"blocks.3"` or `"mid_block.0"`.

    Yields:
        The outputs by name, empty until a forward pass filled it. They stay in autograd's graph.

    Raises:
        ValueError: for a module that is not there, with the name that comes near, and for a list of modules.
    """
    modules = dict(network.named_modules())
    found = {name: one_of("taps", name, modules) for name in names}
    for name, module in found.items():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):  # never called itself: a hook on it would stay silent
            inner = " or ".join(repr(f"{name}.{one}") for one, _ in list(module.named_children())[:3]) or "another"
            raise ValueError(f"`taps` has {name!r}, a list of modules, which has no output; name {inner}.")
    taps: dict[str, torch.Tensor] = {}

    def keep(name: str):
        return lambda module, inputs, output: taps.__setitem__(name, output)

    handles = [module.register_forward_hook(keep(name)) for name, module in found.items()]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
