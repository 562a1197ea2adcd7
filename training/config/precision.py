"""`run.mixed_precision: auto`: bf16 where the device is faster in it, and what the run has where it goes on."""

import os
import time
from functools import cache
from pathlib import Path

from brickwork.eval.report.versions import cpu_says
from brickwork.training.config.reading import read_yaml

_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # x86 and, the last, ARM
_WORTH = 1.1  # times as fast as float32 that bf16 has to be on a processor
_TRIES, _SECONDS = 7, 0.15  # at most, for each part of what is measured


def processor_features() -> list[str]:
    """What the processor computes fast in, as the system names it; empty where it does not say."""
    wanted = ("avx", "amx", "bf16", "fma", "sve", "neon", "asimd", "vnni")
    return sorted(word for word in set(cpu_says("flags", "features").split()) if any(part in word for part in wanted))


def choose_precision(output_dir: str) -> str:
    """What `auto` stands for.

    Args:
        output_dir: of the run; one that has begun keeps its precision, on another machine too.

    Returns:
        `"bf16"` or `"no"`; fp16 is never chosen.
    """
    try:
        kept = read_yaml(Path(output_dir) / "config.yaml")["run"]["mixed_precision"]
        if kept in ("no", "bf16", "fp16"):
            return kept
    except (ValueError, LookupError, TypeError):
        pass
    return fastest_precision()


def fastest_precision() -> str:
    """`"bf16"` on a GPU with units for it, and on a processor with units that is measurably faster in it; else `"no"`.

    Several processes on processors do not measure, since they might come to different answers.
    """
    if not device_has_bf16():
        return "no"
    if _takes_gpu():
        return "bf16"
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return "bf16" if alone and bf16_speed() >= _WORTH else "no"


def device_has_bf16() -> bool:
    """Whether the device that accelerate takes here has units for bf16."""
    import torch

    if _takes_gpu():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(set(_UNITS) & set(processor_features()))


def _takes_gpu() -> bool:
    import torch

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes", "on")
    return torch.cuda.is_available() and not on_cpu


@cache
def bf16_speed() -> float:
    """How many times as fast as in float32 this processor trains in bf16, measured once in a process.

    The lesser figure of two blocks of small networks, forward and backward under autocast as in a run: one of
    convolutions in the networks' memory order, whose group norms are slower in bf16, and one of attention.
    """
    import torch

    from brickwork.gen.blocks.registry import build_block

    with torch.random.fork_rng(devices=[]):
        blocks = build_block("resnet", 32, 128), build_block("dit", 128, 128)
        maps = torch.randn(4, 32, 32, 32).to(memory_format=torch.channels_last), torch.randn(4, 128, 8, 8)
        return min(_speed(block, one.requires_grad_(), torch.randn(4, 128)) for block, one in zip(blocks, maps))


def _speed(block, hidden_states, temb) -> float:
    """The least seconds of a pass forward and back in float32, over those in bf16."""
    import torch

    least, started, tries = {False: float("inf"), True: float("inf")}, time.perf_counter(), 0
    while not tries or (tries < _TRIES and time.perf_counter() - started < _SECONDS):  # the first warms up
        for in_bf16 in least:
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                output = block(hidden_states, temb)
            output.float().square().mean().backward()
            least[in_bf16] = min(least[in_bf16], time.perf_counter() - start)
        tries += 1
    return least[False] / least[True]


def precision_warning(precision: str, on_cpu: bool) -> str | None:
    """A warning where a run computes in bf16 on a processor that has no units for it."""
    if precision != "bf16" or not on_cpu or device_has_bf16():
        return None
    return (
        "warning: `run.mixed_precision` is 'bf16', for which this processor has no units: it computes "
        f"{bf16_speed():.2g} times as fast as in float32. Set it to auto or no, unless the run must go on as it began."
    )
