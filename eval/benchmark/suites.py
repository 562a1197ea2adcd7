"""What `brickwork benchmark` measures, one function a suite, named in `SUITES` of `eval/commands/benchmark.py`.

A suite returns plain JSON values: `rows` of times (see `time_cases`), `memory` of training steps, further `tables`
(`columns` and `rows` of text), and `marks` that its figures can be held to (see `mark`); the rest goes into the file.
"""

import operator
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from brickwork.eval.benchmark.memory import derive_memory, measure_in_child
from brickwork.eval.benchmark.networks import (
    OURS,
    PLAIN,
    PRESETS,
    Settings,
    Subject,
    forward_of,
    ours,
    sampling_of,
    step_of,
    subjects,
)
from brickwork.eval.benchmark.timing import Case, Spread, Stopwatch, fit_exponent, inside, interleave
from brickwork.eval.report.numbers import spread
from brickwork.gen.blocks.registry import build_block
from brickwork.gen.operations import count_operations
from brickwork.pipelines.schedules import schedule_from_file, schedule_kind

HALF = "ours, bfloat16"
SCALING_SIDES = (64, 128, 256, 512)
SCALING_BLOCKS = {"dit": {"window_size": 8}, "i2rmb": {"window_size": 8}, "maxvit": {"window_size": 8}}
SCALING_WIDTH = 32
FAST_BREAKS = (0.5, 0.65)  # the default, and one that leaves the last brick out of more steps
SAMPLING_STEPS = 4  # of the large networks; the embedded one draws complete pictures
MEASURED_BELOW = 2**30  # bytes of derived memory; beyond, steps take long on two cores
# Kinds of work, by the beginning of the name of torch's operation.
KINDS = {
    "matrix products": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "mkldnn::", "aten::mkldnn"),
    "fused attention": ("aten::_scaled_dot_product", "aten::_flash_attention"),
    "GELU": ("aten::gelu",),
    "norms, modulation, residuals": (
        "aten::native_layer_norm", "aten::addcmul", "aten::add", "aten::mul", "aten::sum",
    ),
    "softmax": ("aten::_softmax",),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::fill_", "aten::zero_", "aten::_to_copy"),
}  # fmt: skip


def _over(items: Collection, title: str) -> Iterable:
    return tqdm(items, desc=title, leave=False, disable=None)


_HOLDS = {"≥": operator.ge, "≤": operator.le, ">": operator.gt, "<": operator.lt}


def mark(what: str, wanted: str, measured: float, met: bool | None = None) -> dict:
    """A mark that a result is held to: by `wanted`, such as `"≤ 0.7"`, or as `met` says."""
    if met is None:
        relation, bound = wanted.split()
        met = _HOLDS[relation](measured, float(bound))
    return {"what": what, "wanted": wanted, "measured": measured, "met": bool(met)}


def counted(group: str, name: str, function: Callable[[], object], probe: Callable[[], float]) -> Case:
    """A case that has run once, its operations counted."""
    return Case(group, name, function, count_operations(function)[0], probe)


def time_cases(
    cases: Sequence[Case], settings: Settings, bases: Mapping[str, str], rounds: int | None = None, warm: bool = True
) -> list[dict]:
    """Time cases in turn: one row each, with every measurement.

    Args:
        cases: in their order.
        settings: of the benchmark.
        bases: for a group the case that the others of it are compared with.
        rounds: how often, by default the settings'.
        warm: whether all have run before, so that no round is lost on warming up (compiled ones need it).
    """
    rounds, warm_up = rounds or settings.rounds, settings.compile or not warm
    total, title = (rounds + warm_up) * len(cases), cases[0].group
    with tqdm(total=total, desc=title, leave=False, disable=None) as bar:
        timings = interleave(cases, rounds, Stopwatch(settings.torch_device), warm_up=warm_up, bar=bar)
    rows = []
    for number, case in enumerate(timings.cases):
        base = timings.number_of(case.group, bases.get(case.group) or "")
        row = {
            "group": case.group,
            "case": case.name,
            "operations": case.operations,
            "seconds": timings.seconds[number],
            "machine_rate": timings.rates[number],
            "fraction_of_machine": asdict(timings.fraction_of(number)),
            "operations_per_second": asdict(Spread.of([case.operations / one for one in timings.seconds[number]])),
        }
        if base is not None:
            row["compared_with"] = bases[case.group]
            row["ratio"] = asdict(timings.ratio(number, base))
            row["ratio_per_operation"] = asdict(timings.ratio(number, base, per_operation=True))
        rows.append(row)
    return rows


def _compile(network: nn.Module, settings: Settings) -> None:
    if settings.compile:
        network.compile()


def bench_network(settings: Settings, name: str = "lego-s-pg-64") -> dict:
    """Forward pass, training step, sampling and memory of a network beside its plain reference and diffusers' own."""
    probe, found = settings.probe(), subjects(name, settings.size)
    cases, parameters, rows = [], {}, []
    for subject in _over(found.values(), "counting"):
        network = subject.build().to(settings.torch_device)
        parameters[subject.name] = sum(p.numel() for p in network.parameters())
        cases += _network_cases(subject, network, settings, probe)
    cases += _half_cases(found[OURS], settings)
    for group in ("forward", "sampling", "training step"):
        of_group = [case for case in cases if case.group == group]
        rounds = settings.rounds if group == "forward" else max(2, (settings.rounds + 1) // 2)
        rows += time_cases(of_group, settings, {group: OURS}, rounds)
    del cases
    memory = [memory_of(name, subject, settings, measured=True) for subject in _over(found.values(), "memory")]
    return {
        "kind": "network", "name": name, "parameters": parameters, "rows": rows, "memory": memory,
        "marks": _network_marks(name, rows, memory),
    }  # fmt: skip


def _network_marks(name: str, rows: Sequence[dict], memory: Sequence[dict]) -> list[dict]:
    """Ours against the plain reference; none without one."""
    timed = {(row["group"], row["case"]): row for row in rows}
    if ("forward", PLAIN) not in timed:
        return []
    share = timed["forward", OURS]["fraction_of_machine"]["median"]
    found = [mark(f"{name}: forward, share of the machine's rate", "≥ 0.82", share)]
    for group, least in (("forward", 1.1), ("training step", 1.05)):
        what = f"{name}: {group}, times as fast as the plain reference"
        found.append(mark(what, f"≥ {least}", timed[group, PLAIN]["ratio"]["median"]))
    if ("forward", HALF) in timed:
        ratio = 1 / timed["forward", HALF]["ratio"]["median"]
        found.append(mark(f"{name}: forward in bfloat16, times as fast as in float32", "> 1", ratio))
    of = {row["case"]: row for row in memory}
    for way, words in (("derived", "of tensors"), ("measured", "of the process")):
        if of[OURS][way] is not None and of[PLAIN][way] is not None:
            ratio = of[OURS][way]["peak"] / of[PLAIN][way]["peak"]
            what = f"{name}: peak training memory {words}, to the plain reference's"
            found.append(mark(what, "≤ 0.7", ratio))
    return found


def _network_cases(subject: Subject, network: nn.Module, settings: Settings, probe) -> list[Case]:
    trained = network if settings.dtype == "float32" else subject.build().to(settings.torch_device)
    network = settings.ready(network)
    cases = [counted("forward", subject.name, forward_of(subject, network, settings), probe)]
    draw = sampling_of(subject, network, replace(settings, batch=1), SAMPLING_STEPS)
    cases.append(counted("sampling", subject.name, draw, probe))
    for fast in schedule_kind(network).examples(network, FAST_BREAKS[:1]).values():
        cases.append(counted("sampling", "ours, fast schedule", partial(draw, schedule=fast), probe))
    cases.append(counted("training step", subject.name, step_of(subject, trained, settings), probe))
    _compile(network, settings)
    if trained is not network:
        _compile(trained, settings)
    return cases


def _half_cases(subject: Subject, settings: Settings) -> list[Case]:
    """Ours in bfloat16, beside float32, where the processor multiplies in it."""
    capable = settings.device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if settings.dtype != "float32" or not capable:
        return []
    half = replace(settings, dtype="bfloat16")
    return [counted("forward", HALF, forward_of(subject, half.ready(subject.build()), half), half.probe())]


def memory_of(name: str, subject: Subject, settings: Settings, measured: bool) -> dict:
    """Peak memory of a training step with AdamW: of all tensors, and if asked for as a process's resident size."""

    def make_step() -> tuple[nn.Module, Callable[[], None]]:
        network = subject.build().train()
        return network, step_of(subject, network, replace(settings, device="cpu"))

    row: dict = {"name": name, "case": subject.name, "batch": settings.batch, "size": subject.shape[1]}
    row["derived"], row["measured"] = derive_memory(make_step), None
    if measured:
        row["measured"] = measure_in_child({"name": name, "subject": subject.name, **asdict(settings)})
    return row


def bench_memory(settings: Settings, names: Sequence[str] = tuple(PRESETS)) -> dict:
    """Training memory of presets: derived for all, measured where a step is small enough."""
    rows = []
    for name in _over(names, "memory"):
        row = memory_of(name, ours(name, settings), settings, measured=False)
        if row["derived"]["peak"] <= MEASURED_BELOW:
            row = memory_of(name, ours(name, settings), settings, measured=True)
        rows.append(row)
    return {"kind": "memory", "memory": rows, "measured_below": MEASURED_BELOW}


def bench_blocks(settings: Settings) -> dict:
    """The forward pass of the block networks, per counted operation, against DiT-S."""
    probe, cases, names = settings.probe(), [], ("dit-s-2", "d-emo-s-2", "resnet-s", "u-emo-s", "maxvit-s")
    for name in _over(names, "counting"):
        subject = ours(name, settings)
        network = settings.ready(subject.build())
        cases.append(counted("forward", name, forward_of(subject, network, settings), probe))
        _compile(network, settings)
    rows = time_cases(cases, settings, {"forward": "dit-s-2"})
    ratio = next(row for row in rows if row["case"] == "d-emo-s-2")["ratio_per_operation"]["median"]
    marks = [mark("D-EMO-S to DiT-S: time per operation", "≤ 1.3", ratio)]
    return {"kind": "blocks", "rows": rows, "marks": marks}


def bench_scaling(settings: Settings, sides: Sequence[int] = SCALING_SIDES) -> dict:
    """Time of blocks with window attention over the number of pixels, and the exponent."""
    like = {"device": settings.torch_device, "dtype": settings.torch_dtype}
    probe, cases = settings.probe(), []
    for name, options in SCALING_BLOCKS.items():
        block = build_block(name, SCALING_WIDTH, SCALING_WIDTH, own={"attention_head_dim": 32, **options})
        block = settings.ready(block).requires_grad_(False)
        for side in sides:
            sample, temb = torch.randn(1, SCALING_WIDTH, side, side, **like), torch.randn(1, SCALING_WIDTH, **like)
            cases.append(counted(name, f"{side} px", lambda b=block, s=sample, t=temb: b(s, t), probe))
    rows, exponents, marks = time_cases(cases, settings, {}, warm=False), {}, []
    for name in SCALING_BLOCKS:
        exponent = fit_exponent([side**2 for side in sides], [r["seconds"] for r in rows if r["group"] == name])
        exponents[name], near = asdict(exponent), abs(exponent.median - 1) <= 0.1
        marks.append(mark(f"{name} with windows: exponent of time in pixels", "about 1", exponent.median, near))
    shown = [(name, spread(exponent, ".3f")) for name, exponent in exponents.items()]
    return {
        "kind": "scaling", "sides": list(sides), "rows": rows, "exponents": exponents, "marks": marks,
        "tables": [{"columns": ("time ~ pixels to the power of", "exponent"), "rows": shown}],
    }  # fmt: skip


def bench_schedules(settings: Settings) -> dict:
    """Complete pictures of a pipeline by every schedule: operations, time, and paired losses where there is data."""
    from brickwork.eval.sampling.pipelines import load_class_pipeline
    from brickwork.eval.search.schedule_search import search_brick_schedule

    pipe = load_class_pipeline(settings.weights, settings.device)
    network = pipe.transformer
    schedules = {"full": schedule_kind(network).full(network)}
    schedules |= schedule_kind(network).examples(network, FAST_BREAKS)
    if pipe.schedule is not None:
        schedules["saved with the weights"] = pipe.schedule
    if settings.schedule is not None:
        schedules["searched"] = schedule_from_file(settings.schedule)
    losses = None
    if settings.data is not None:
        search = search_brick_schedule(
            pipe, settings.data, settings.budget, num_inference_steps=settings.steps, num_pairs=settings.pairs
        )
        schedules.setdefault("searched", search.schedule)
        losses = {name: search.score_of(schedule).to_dict() for name, schedule in schedules.items()}
    draw = sampling_of(ours(settings.weights, settings), settings.ready(network), settings, settings.steps)
    probe = settings.probe()
    cases = [
        counted("sampling", title, lambda s=schedule: draw(schedule=s), probe)
        for title, schedule in _over(schedules.items(), "counting")
    ]
    _compile(network, settings)
    rows = time_cases(cases, settings, {"sampling": "full"})
    shares = {row["case"]: row["operations"] / rows[0]["operations"] for row in rows}
    shown = [
        (title, f"{score['share']:.1%}", f"{score['loss']:.4f}", f"{score['change']:+.1%} ± {score['error']:.1%}")
        for title, score in (losses or {}).items()
    ]
    columns = ("schedule", "operations", "paired loss", "against full")
    return {
        "kind": "schedules",
        "name": settings.weights,
        "rows": rows,
        "schedules": {name: schedule.to_dict() for name, schedule in schedules.items()},
        "losses": losses,
        "pairs": settings.pairs if losses else None,
        "tables": [{"columns": columns, "rows": shown}] if shown else [],
        "marks": [
            mark(
                f"{settings.weights}: operations, {title} to full", f"≤ {most}", shares[title],
                shares[title] <= most + 5e-4,
            )
            for title, most in (("fast 0.5", 0.75), ("fast 0.65", 0.75), ("searched", 0.6))
            if title in shares
        ],
    }  # fmt: skip


def bench_where(settings: Settings, name: str = "lego-s-pg-64") -> dict:
    """Where the time of a forward pass goes: in all, at batch 1, in each brick, in a training step, in the sampler."""
    device, dtype = settings.torch_device, settings.torch_dtype
    subject, single = ours(name, settings), replace(settings, batch=1)
    network = settings.ready(subject.build())
    parts = {f"forward, batch {one.batch}": forward_of(subject, network, one) for one in (single, settings)}
    draw = sampling_of(subject, network, single, SAMPLING_STEPS)
    for number, brick in enumerate(network.bricks):
        channels = brick.patch_embed.in_features // brick.patch_size**2
        inputs = torch.randn(settings.batch, channels, *subject.shape[1:]).to(device, dtype)
        temb = torch.randn(settings.batch, brick.final_modulation.linear.in_features).to(device, dtype)
        tokens = brick.window_tokens**2
        parts[f"brick {number}, windows of {tokens} tokens"] = torch.no_grad()(
            lambda b=brick, i=inputs, t=temb: b(i, t)
        )
    parts["sampler, batch 1"] = draw
    parts["training step"] = step_of(subject, subject.build().to(device), settings)
    shares = {title: _shares(function, device) for title, function in _over(parts.items(), "profiling")}
    with inside(network) as clock:
        started = time.process_time()
        draw()
        seconds = time.process_time() - started
    sampler = {"seconds": seconds, "seconds_in_network": sum(clock), "evaluations": len(clock) // 2}
    outside = 1 - sum(clock) / seconds
    kinds = list(next(iter(shares.values())))
    table = [(title, *(f"{of[kind]:.1%}" for kind in kinds)) for title, of in shares.items()]
    note = f"sampler, batch 1: {outside:.1%} of its time outside the network's {sampler['evaluations']} runs"
    return {
        "kind": "where", "name": name, "shares": shares, "sampler": sampler,
        "tables": [{"columns": ("share of the time", *kinds), "rows": table, "note": note}],
    }  # fmt: skip


def _shares(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The share of each kind of work in the profiler's time."""
    function()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiled:
        function()
    spent = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "other")
        spent[kind] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: value / total for kind, value in spent.items()}
