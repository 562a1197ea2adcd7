"""Counted floating-point operations: matrix products, convolutions and attention, a multiply-add as two."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _cpu_attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _cpu_attention_backward(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def count_operations(function: Callable[[], Any]) -> tuple[int, Any]:
    """Run `function` and count what it does.

    torch counts the CPU's fused attention as nothing (2.13), so it is counted here.

    Returns:
        The operations, and what `function` returned.
    """
    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = function()
    return counter.get_total_flops(), result
