"""What training need not keep: results so cheap that the backward pass computes them again.

A block's norms, modulations and activations take a few percent of its time and half of what autograd keeps of it. Here
they are computed again instead, and nothing that is costly (matrix products, attention) runs twice. Gradient
checkpointing goes further and pays with a second forward pass; where it is on, this stands back.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from brickwork import compat


class _Recomputed(torch.autograd.Function):
    """A function of tensors that keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, function: Callable, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        ctx.function, ctx.again = function, None
        device = inputs[0].device.type
        enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        ctx.autocast = (device, torch.get_autocast_dtype(device)) if enabled else None
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            # For a gradient of this gradient: aliases of the inputs, since one may have been made from another.
            inputs = tuple(tensor.view_as(tensor) for tensor in ctx.saved_tensors)
            outputs = _compute(ctx, inputs)
        else:
            inputs, outputs = _again(ctx)
        ctx.again = None
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        # By their position in the graph, so that the outputs themselves are gone before the gradients come.
        reached = tuple(get_gradient_edge(output) for output, grad in zip(outputs, grads) if grad is not None)
        del outputs
        given = tuple(grad for grad in grads if grad is not None)
        found = iter(torch.autograd.grad(reached, wanted, given, create_graph=torch.is_grad_enabled()))
        return None, *(next(found) if tensor.requires_grad else None for tensor in inputs)


def _compute(ctx: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    autocast = nullcontext() if ctx.autocast is None else torch.autocast(*ctx.autocast)
    with torch.enable_grad(), autocast:
        outputs = ctx.function(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _again(ctx: Any) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Inputs and outputs, computed once for the layers that read them and for the function's own gradient."""
    if ctx.again is None:
        inputs = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in ctx.saved_tensors)
        ctx.again = inputs, _compute(ctx, inputs)
    return ctx.again


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether autograd is left to itself.

    A compiler decides on its own what to keep, `torch.func` allows no hooks, and of nested hooks only the innermost
    are called, so that ours would keep what gradient checkpointing or offloading wants to put away.
    """
    if torch.compiler.is_compiling():
        return True
    if not torch.is_grad_enabled() or compat.functorch_is_active():
        return True
    hooks = compat.saved_tensor_hooks()
    return hooks is not None and hooks[0].__module__ != __name__


def recomputed(function: Callable, *inputs: torch.Tensor) -> Any:
    """`function(*inputs)`, which keeps nothing but its inputs for the backward pass.

    Args:
        function: of tensors, without randomness; returns a new tensor or a tuple of them.
        inputs: tensors.
    """
    return function(*inputs) if _is_plain(inputs[0]) else _Recomputed.apply(function, *inputs)


def not_kept(tensor: torch.Tensor) -> AbstractContextManager:
    """Within this context, layers that would keep `tensor` for their backward pass do not.

    Args:
        tensor: an output of `recomputed`; for any other this does nothing.
    """
    if _is_plain(tensor) or not hasattr(tensor.grad_fn, "again"):
        return nullcontext()
    node, output = tensor.grad_fn, tensor.output_nr
    storage = compat.storage_key(tensor.untyped_storage())

    def pack(kept: torch.Tensor) -> torch.Tensor | tuple:
        if compat.storage_key(kept.untyped_storage()) != storage:
            return kept
        return kept.shape, kept.stride(), kept.storage_offset()

    def unpack(packed: torch.Tensor | tuple) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        return _again(node)[1][output].detach().as_strided(*packed)

    return saved_tensors_hooks(pack, unpack)
