"""The benchmark suite `kv-compression`: what shorter keys and values save at each size."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from brickwork.adapters.kv_compression.handle import KVCompression
from brickwork.eval.benchmark.memory import derive_memory
from brickwork.eval.benchmark.networks import Settings
from brickwork.eval.benchmark.suites import counted, time_cases
from brickwork.eval.report.numbers import spread

SIDES = (256, 512, 768, 1024)  # of pictures; the maps of the highest resolution have an eighth of it, as in SD 1.5
RATIOS = (1, 2, 4)
DROPPED = "none"
# Stable Diffusion's layout with two levels: self-attention at both, the highest resolution's being the costly ones.
SMALL = {
    "sample_size": 64, "block_out_channels": (64, 128), "layers_per_block": 1, "cross_attention_dim": 64,
    "attention_head_dim": 2, "norm_num_groups": 16,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}  # fmt: skip


class Nothing(nn.Module):
    """In place of an attention: adds nothing to what it reads."""

    def forward(self, hidden_states: torch.Tensor, **others) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def variant(ratio: int | str) -> UNet2DConditionModel:
    """The small UNet with keys and values compressed, or without the self-attentions of the highest resolution."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(**SMALL)
    if ratio == DROPPED:
        for stage in (network.down_blocks[0], network.up_blocks[-1]):
            for transformer in stage.attentions:
                for block in transformer.transformer_blocks:
                    block.attn1 = Nothing()
    elif ratio > 1:
        KVCompression.create(network, ratio=ratio)
    return network


def bench_compression(settings: Settings, sides: Sequence[int] = SIDES) -> dict:
    """Forward pass and training memory of a small UNet by ratio and size, all in turn."""
    device, dtype = settings.torch_device, settings.torch_dtype
    probe, cases = settings.probe(), []
    networks = {ratio: settings.ready(variant(ratio)) for ratio in (*RATIOS, DROPPED)}
    for side in sides:
        inputs = _inputs(side, device, dtype)
        for ratio, network in networks.items():
            forward = torch.no_grad()(lambda network=network, inputs=inputs: network(**inputs).sample)
            cases.append(counted(f"{side} px", _title(ratio), forward, probe))
    rows = time_cases(cases, settings, {f"{side} px": _title(1) for side in sides})
    memory = {
        (side, ratio): derive_memory(partial(_training, ratio, side))["peak"] for side in sides for ratio in networks
    }
    shown = [
        (f"{row['group']}: {row['case']}", spread(row["ratio"]), f"{peak / 2**20:.0f}")
        for row, peak in zip(rows, memory.values())
    ]
    columns = ("keys and values", "time, to ratio 1", "training step, tensors, MiB")
    return {
        "kind": "kv-compression", "rows": rows, "tables": [{"columns": columns, "rows": shown}],
        "training_peaks": {f"{side} px, {_title(ratio)}": peak for (side, ratio), peak in memory.items()},
    }  # fmt: skip


def _title(ratio: int | str) -> str:
    return "no self-attention" if ratio == DROPPED else f"ratio {ratio}"


def _inputs(side: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    sample, text = (torch.randn(shape, generator=random) for shape in ((1, 4, side // 8, side // 8), (1, 8, 64)))
    timestep = torch.tensor([500], device=device)
    return {
        "sample": sample.to(device, dtype), "timestep": timestep, "encoder_hidden_states": text.to(device, dtype)
    }  # fmt: skip


def _training(ratio: int | str, side: int) -> tuple[nn.Module, Callable[[], None]]:
    """A network and its training step."""
    network, inputs = variant(ratio).train(), _inputs(side, torch.device("cpu"), torch.float32)
    return network, lambda: network(**inputs).sample.square().mean().backward()
