"""`run.mixed_precision: auto`: bf16 where the device computes in it, and what the run has where it goes on."""

import os
import time
from pathlib import Path

from brickwork.training.config.reading import read_yaml

_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # x86 and, the last, ARM


def processor_features() -> list[str]:
    """What the processor computes fast in, as the system names it; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    words = (line.partition(":")[2] for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    wanted = ("avx", "amx", "bf16", "fma", "sve", "neon", "asimd", "vnni")
    return sorted(word for word in set(next(words, "").split()) if any(part in word for part in wanted))


def choose_precision(output_dir: str) -> str:
    """What `auto` stands for.

    Args:
        output_dir: of the run; one that has begun keeps its precision, on another machine too.

    Returns:
        `"bf16"` on a GPU or processor with units for it, else `"no"`; fp16 is never chosen.
    """
    try:
        kept = read_yaml(Path(output_dir) / "config.yaml")["run"]["mixed_precision"]
        if kept in ("no", "bf16", "fp16"):
            return kept
    except (ValueError, LookupError, TypeError):
        pass
    return "bf16" if device_has_bf16() else "no"


def device_has_bf16() -> bool:
    """Whether the device that accelerate takes here has units for bf16."""
    import torch

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes", "on")
    if torch.cuda.is_available() and not on_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(set(_UNITS) & set(processor_features()))


def bf16_speed() -> float:
    """How many times as fast as in float32 a convolution's two passes are in bf16 on this processor, measured."""
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer, sample = torch.nn.Conv2d(32, 32, 3, padding=1).to(dtype), torch.ones(2, 32, 32, 32, dtype=dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            layer(sample).sum().backward()
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def precision_warning(precision: str, on_cpu: bool) -> str | None:
    """A warning where a run computes in bf16 on a processor that has no units for it."""
    if precision != "bf16" or not on_cpu or device_has_bf16():
        return None
    return (
        "warning: `run.mixed_precision` is 'bf16', for which this processor has no units: it computes "
        f"{bf16_speed():.2g} times as fast as in float32. Set it to auto or no, unless the run must go on as it began."
    )
