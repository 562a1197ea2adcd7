"""The benchmark suites `compiled` and `gpu`: networks compiled by blocks beside the same ones as they are."""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch

from brickwork.eval.benchmark.memory import peak_during
from brickwork.eval.benchmark.networks import OURS, PLAIN, Settings, forward_of, ours, sampling_of, step_of, subjects
from brickwork.eval.benchmark.suites import SAMPLING_STEPS, counted, mark, time_cases
from brickwork.eval.benchmark.timing import Case, Stopwatch
from brickwork.gen.compiling import CACHE, compile_blocks

EAGER, BLOCKS, WHOLE, GRAPH = "eager", "by blocks", "whole", "CUDA graph"
FIRST_WITHIN = 20.0  # processor seconds of compiling
# Of the GPU, the most telling first: what no time is left for comes at the end. Batches as in the authors' figures.
CELLS = (
    ("lego-s-pg-64", 64), ("lego-s-pg-64", 1), ("lego-s-pg-64", 256), ("lego-xl-pg-32", 64), ("lego-l-pg-64", 64),
    ("lego-l-pg-64", 1), ("lego-xl-pg-32", 1), ("lego-xl-pg-32", 256),
)  # fmt: skip


def eager(function: Callable[[], object]) -> object:
    """Run something of compiled networks without their graphs."""
    with torch.compiler.set_stance("force_eager"):
        return function()


def pair(group: str, function: Callable[[], object], probe: Callable[[], float]) -> list[Case]:
    """A function of a network compiled by blocks: as it is without the graphs, and with them."""
    case = counted(group, EAGER, partial(eager, function), probe)
    return [case, Case(group, BLOCKS, function, case.operations, probe)]


def bench_compiled(settings: Settings, name: str = "lego-s-pg-64") -> dict:
    """Forward pass and training step: plain arithmetic, eager, by blocks, and with `compile` whole, in turn.

    Also the processor seconds of the first call, with an empty cache and the C++ compiler's included.
    """
    probe, found, device = settings.probe(), subjects(name, settings.size), settings.torch_device
    network, trained = settings.ready(found[OURS].build()), found[OURS].build().to(device)
    forward, step = forward_of(found[OURS], network, settings), step_of(found[OURS], trained, settings)
    if not (compile_blocks(network) and compile_blocks(trained, training=True)):
        return {"kind": "compiled", "name": name, "marks": [], "tables": []}
    cases = [*pair("forward", forward, probe), *pair("training step", step, probe)]
    if PLAIN in found:
        plain, stepped = settings.ready(found[PLAIN].build()), found[PLAIN].build().to(device)
        cases.append(counted("forward", PLAIN, forward_of(found[PLAIN], plain, settings), probe))
        cases.append(counted("training step", PLAIN, step_of(found[PLAIN], stepped, settings), probe))
    if settings.compile:
        whole = settings.ready(found[OURS].build())
        cases.append(counted("forward", WHOLE, forward_of(found[OURS], whole, settings), probe))
        whole.compile()
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {CACHE: folder}):
        first = {f"{case.group}: {case.name}": first_seconds(case.function, device) for case in cases}
    rows = []
    for group in ("forward", "training step"):
        rows += time_cases([case for case in cases if case.group == group], settings, {group: EAGER})
    table = [(title, f"{seconds:.1f}") for title, seconds in first.items()]
    marks = [*compiled_marks(name, rows), first_mark(name, first)]
    return {
        "kind": "compiled", "name": name, "rows": rows, "first": first, "marks": marks,
        "tables": [{"columns": ("first call", "processor s"), "rows": table}],
    }  # fmt: skip


def first_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, on a CPU those of the processes that it starts included."""
    begun = os.times()
    seconds, ended = Stopwatch(device)(function), os.times()
    started = ended.children_user + ended.children_system - begun.children_user - begun.children_system
    return seconds if device.type == "cuda" else seconds + started


def first_mark(name: str, first: dict[str, float]) -> dict:
    """What the first call takes longer for compiling."""
    more = first[f"forward: {BLOCKS}"] - first[f"forward: {EAGER}"]
    return mark(f"{name}: forward {BLOCKS}, processor seconds of compiling the first time", f"≤ {FIRST_WITHIN}", more)


def compiled_marks(name: str, rows: Sequence[dict]) -> list[dict]:
    """The marks of float32 on a CPU."""
    timed, marks = {(row["group"], row["case"]): row for row in rows}, []

    def share(case: str, least: float) -> None:
        if ("forward", case) in timed:
            what = f"{name}: forward {case}, share of the machine's rate"
            marks.append(mark(what, f"≥ {least}", timed["forward", case]["fraction_of_machine"]["median"]))

    def faster(group: str, least: float) -> None:
        what = f"{name}: {group} {BLOCKS}, times as fast as {EAGER}"
        marks.append(mark(what, f"≥ {least}", 1 / timed[group, BLOCKS]["ratio"]["median"]))

    share(BLOCKS, 0.81)
    share(WHOLE, 0.84)
    faster("forward", 1.1)
    faster("training step", 1.1)
    for group in ("forward", "training step"):
        if (group, PLAIN) in timed:
            value = timed[group, PLAIN]["ratio"]["median"]
            marks.append(mark(f"{name}: {group} {EAGER}, times as fast as the {PLAIN}", "≥ 1", value))
    return marks


def bench_gpu(settings: Settings, cells: Sequence[tuple[str, int]] = CELLS) -> dict:
    """Forward pass, training step and sampling of large presets at several batches, compiled beside eager, in turn.

    Meant for a GPU; it ends before `settings.seconds` are over and says what it left out. Networks compile in half
    precision or float32 as `settings.dtype` says; training is by autocast.
    """
    started, rows, memory, left_out, longest = time.monotonic(), [], [], [], 0.0
    for name, batch in cells:
        begun = time.monotonic()
        if begun - started + longest > settings.seconds:
            left_out.append((name, batch, "no time left"))
            continue
        try:
            found, peak = _cell(name, batch, settings)
            rows += found
            memory.append((name, batch, peak))
        except torch.OutOfMemoryError:
            left_out.append((name, batch, "out of memory"))
        gc.collect()
        if settings.device != "cpu":
            torch.cuda.empty_cache()
        longest = max(longest, time.monotonic() - begun)
    tables = [
        {
            "columns": ("training step without an optimiser", "batch", "peak, GiB"),
            "rows": [(name, str(batch), f"{peak / 2**30:.2f}") for name, batch, peak in memory],
        },
        {"columns": ("left out", "batch", "why"), "rows": [(name, str(batch), why) for name, batch, why in left_out]},
    ]
    return {
        "kind": "gpu", "rows": rows, "seconds": time.monotonic() - started, "left_out": left_out, "peaks": memory,
        "marks": gpu_marks(rows, memory), "tables": [table for table in tables if table["rows"]],
    }  # fmt: skip


def _cell(name: str, batch: int, settings: Settings) -> tuple[list[dict], int]:
    """One network at one batch: rows of times, and the bytes of a training step at their peak."""
    settings, title = replace(settings, batch=batch), f"{name}, batch {batch}, "
    probe, subject, device = settings.probe(), ours(name, settings), settings.torch_device
    drawn = settings.ready(subject.build())
    forward, draw = forward_of(subject, drawn, settings), sampling_of(subject, drawn, settings, SAMPLING_STEPS)
    compile_blocks(drawn)
    cases = [*pair(f"{title}forward", forward, probe), *pair(f"{title}sampling", draw, probe)]
    if batch == 1 and device.type == "cuda":
        cases.insert(
            2, Case(f"{title}forward", GRAPH, cuda_graph(partial(eager, forward)), cases[0].operations, probe)
        )
    rows = _timed(cases, settings)
    del cases, drawn, forward, draw
    trained = subject.build().to(device)
    step = step_of(subject, trained, settings)
    compile_blocks(trained, training=True)
    peak = peak_during(partial(eager, step), device)["peak"]
    return rows + _timed(pair(f"{title}training step", step, probe), settings), peak


def _timed(cases: Sequence[Case], settings: Settings) -> list[dict]:
    for case in cases:
        case.function()  # compiles
    groups = dict.fromkeys(case.group for case in cases)
    return time_cases(cases, settings, dict.fromkeys(groups, EAGER))


def cuda_graph(function: Callable[[], object]) -> Callable[[], None]:
    """The kernels of a function as one CUDA graph, which spares the processor their launches."""
    with _side_stream():
        for _ in range(3):
            function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@contextmanager
def _side_stream() -> Iterator[None]:
    """Where torch wants a function to warm up before it is captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def gpu_marks(rows: Sequence[dict], memory: Sequence[tuple[str, int, int]]) -> list[dict]:
    """What an H100 is wanted to do."""
    timed, marks = {(row["group"], row["case"]): row for row in rows}, []
    for group, most in (("forward", 9.0), ("training step", 45.0)):
        row = timed.get((f"lego-s-pg-64, batch 64, {group}", BLOCKS))
        if row:
            value = 1000 * sorted(row["seconds"])[len(row["seconds"]) // 2]
            marks.append(mark(f"lego-s-pg-64, batch 64: {group} {BLOCKS}, ms", f"< {most:g}", value))
    peaks = {(name, batch): peak / 2**30 for name, batch, peak in memory}
    if value := peaks.get(("lego-s-pg-64", 64)):
        marks.append(mark("lego-s-pg-64, batch 64: training step, GiB", "≤ 5.35", value))
    if rows:
        value = float(("lego-s-pg-64", 256) in peaks)
        marks.append(mark("lego-s-pg-64: batch 256 trains", "= 1", value, bool(value)))
    if row := timed.get(("lego-xl-pg-32, batch 64, forward", BLOCKS)):
        value = row["fraction_of_machine"]["median"]
        marks.append(mark("lego-xl-pg-32: forward, share of the chip's measured rate", "≥ 0.45", value))
    return marks
