"""Versions, processor, GPUs, attention backends that work here, and what is fast: for bug reports, and to see what
`run.mixed_precision: auto` stands for on this machine.

example: brickwork env
"""

import argparse
import os
import platform
import time


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line a fact."""
    facts = environment()
    width = max(map(len, facts)) + 2
    print("\n".join(f"{name:<{width}}{value}" for name, value in facts.items()))
    return 0


def environment() -> dict[str, str]:
    """Facts by name, in words."""
    import torch

    from brickwork.eval.benchmark.timing import describe_machine
    from brickwork.training.config.precision import bf16_speed, fastest_precision, processor_features
    from brickwork.training.engine.guards import versions

    facts = dict(versions())
    commit, dirty = facts.pop("commit"), facts.pop("dirty")
    if commit:
        facts["commit"] = f"{commit}{', changed' if dirty else ''}"
    facts["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    name = describe_machine(torch.device("cpu"))["cpu"]
    facts["processor"] = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    facts["features"] = " ".join(processor_features()) or "unknown"
    facts["memory"] = _memory()
    count = torch.cuda.device_count()
    facts["GPUs"] = "none" if not count else ", ".join(map(_gpu, range(count)))
    facts["attention"] = ", ".join(f"{name} {ms:.2f} ms" for name, ms in attention_backends().items())
    facts["bf16 on the processor"] = f"{bf16_speed():.2g} times as fast as float32"
    facts["mixed_precision: auto"] = fastest_precision()
    return facts


def attention_backends() -> dict[str, float]:
    """The backends of diffusers that compute here, with the milliseconds for 4 × 256 tokens, 4 heads of 64."""
    import torch
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    tokens = torch.randn(4, 256, 4, 64, device=device, dtype=dtype)
    works: dict[str, float] = {}
    for backend in AttentionBackendName:
        if "hub" in backend.value or backend.value.startswith("flex"):  # downloaded, or compiled, when first used
            continue
        try:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                dispatch_attention_fn(tokens, tokens, tokens, backend=backend)
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(1000 * (time.perf_counter() - start))
            works[backend.value] = min(times)
        except Exception:  # each missing package has its own error
            continue
    return works


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):
        return "unknown"


def _gpu(number: int) -> str:
    import torch

    card = torch.cuda.get_device_properties(number)
    return f"{card.name} (sm_{card.major}{card.minor}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda})"
