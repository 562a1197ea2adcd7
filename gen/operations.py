"""Counted floating-point operations: matrix products, convolutions and attention, a multiply-add as two."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count


def _convolution_backward(
    grad, sample, weight, bias, stride, padding, dilation, transposed, output_padding, groups, mask, out_shape=None
) -> int:
    """Each gradient, of the sample and of the weights, meets every product of the forward pass once."""
    return (mask[0] + mask[1]) * conv_flop_count(sample, weight, grad, transposed)


def weights_of(module: nn.Module) -> int:
    """Numbers of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_operations(function: Callable[[], Any]) -> tuple[int, Any]:
    """Run `function` and count what it does.

    torch (2.13) counts the CPU's fused attention as nothing, and a depthwise convolution's gradient of its weights as
    that of a dense one, so these are counted here.

    Returns:
        The operations, and what `function` returned.
    """
    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
        aten.convolution_backward: _convolution_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = function()
    return counter.get_total_flops(), result
