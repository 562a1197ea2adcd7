"""`brickwork benchmark`: how fast and how large our networks are, beside a plain reference and diffusers' own."""

import argparse
import importlib
import sys
from dataclasses import replace
from pathlib import Path

from brickwork import hub, options
from brickwork.errors import explained

# suite: (file of `eval/benchmark`, or a module: function behind `bench_`, called with the settings; what it measures)
SUITES = {
    "lego": (
        "suites:network",
        "lego-s-pg-64: forward, training step, sampling and memory, beside the plain reference and diffusers' DiT "
        "and UNet of like size",
    ),
    "schedules": (
        "suites:schedules",
        "complete pictures of the weights that ship by each brick schedule; with --data, their paired losses",
    ),
    "blocks": ("suites:blocks", "the block networks' forward pass per operation, against DiT-S"),
    "scaling": ("suites:scaling", "time of window attention over pixels, and its exponent"),
    "memory": ("suites:memory", "peak training memory of every preset"),
    "costs": (
        "costs:costs",
        "UNets of equal parameters: time, operations, bytes that they read and write, and memory",
    ),
    "convolutions": (
        "eval.benchmark.convolutions:bench_convolutions",
        "residual, one-shot and dense aggregation at equal parameters; networks with channels last, and compiled",
    ),
    "kv-compression": (
        "compression:compression",
        "a small UNet with compressed keys and values, 256 to 1024 px: time and memory by ratio",
    ),
    "compiled": (
        "compiled:compiled",
        "lego-s-pg-64 compiled by blocks (with --compile whole as well) beside eager and the plain reference",
    ),
    "precision": (
        "precision:precision",
        "lego-s-pg-64 and the weights that ship in float32, bfloat16 and int8: time, memory, error",
    ),
    "gpu": ("compiled:gpu", "for a GPU: S, L and XL at batch 1, 64 and 256, compiled and eager, within --seconds"),
    "startup": (
        "startup:startup",
        "processor seconds of fresh processes: imports, --help, the first picture from the shell",
    ),
    "evaluation": (
        "evaluation:evaluation",
        "what evaluate takes beside network and extractor, and reading pictures of shards",
    ),
    "loader": (
        "training.studies.loading:loader",
        "--pictures in shards, read as training does: opening, first batch, shuffled rows, memory",
    ),
    "where": ("suites:where", "where the time goes: in bricks, at batch 1, in the sampler"),
}
ON_DEMAND = ("gpu", "loader")  # measured only when named
FORMAT = "brickwork-benchmark/1"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `brickwork benchmark`."""
    listed = "\n".join(f"  {name:<15} {text}" for name, (_, text) in SUITES.items())
    parser.description = (
        "Time networks in turn, round by round, in one run: counted operations, processor time with quartiles, the\n"
        "share of this machine's own rate of matrix products, and peak memory in processes of their own.\n\nsuites:\n"
        + listed
    )
    parser.epilog = (
        "examples:\n"
        "  brickwork benchmark -o runs/benchmark\n"
        "  brickwork benchmark lego --batch 4 --threads 2 -o runs/lego\n"
        "  brickwork benchmark schedules --data runs/emoji-split/held-out -o runs/schedules\n"
        "  brickwork benchmark gpu --device cuda --dtype bfloat16 --seconds 450 -o runs/gpu\n"
        "  brickwork benchmark lego-l-pg-64 --device cuda --dtype bfloat16 --compile --batch 64 -o runs/lego-l"
    )
    what = "suites, presets (brickwork info), shipped weights, LEGO pipeline folders (default: all but gpu, loader)"
    parser.add_argument("what", nargs="*", help=what)
    output = "folder for benchmark.json, .txt and .png (default: benchmark)"
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark"), help=output)
    options.add_common(parser, "--batch-size", default=4, dest="batch")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is timed (default: 5)")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: the training size)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, …")
    parser.add_argument(
        "--dtype", default="float32", help="float32 (default), bfloat16, float16; training by autocast"
    )
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU (default: as torch has them)")
    parser.add_argument("--compile", action="store_true", help="compile every network")
    parser.add_argument("--weights", default="lego-avatars-64", help="whose schedules (default: lego-avatars-64)")
    parser.add_argument("--schedule", help="the searched schedule, a file that `brickwork search` wrote")
    parser.add_argument("--data", help="held-out pictures with class numbers, for the schedules' paired losses")
    parser.add_argument("--budget", type=float, default=0.6, help="of the search, without --schedule (default: 0.6)")
    parser.add_argument("--pairs", type=int, default=64, help="pictures and noises of the paired losses (default: 64)")
    parser.add_argument("--seconds", type=int, default=450, help="within which the suite gpu ends (default: 450)")
    loaded = "in the shards that loader writes once into --output and reads (default: 100000)"
    parser.add_argument("--pictures", type=int, default=100_000, help=loaded)
    presets = "of the suite precision, beside --weights (default: lego-s-pg-64)"
    parser.add_argument("--presets", nargs="+", default=["lego-s-pg-64"], metavar="NAME", help=presets)
    options.add_common(parser, "--steps", "--overwrite")
    options.add_hub(parser, "--weights")
    parser.set_defaults(run=run, check=hub.check_argument("weights"))


def run(args: argparse.Namespace) -> None:
    """Measure, print and write, after each suite what there is so far."""
    from diffusers.utils import logging

    from brickwork.eval.benchmark.tables import marks, marks_table, suite_text
    from brickwork.files import check_results

    logging.set_verbosity_error()  # diffusers warns of every cast to another number format
    settings = make_settings(args)
    if settings.weights not in hub.shipped_names():
        from brickwork.eval.sampling.pipelines import local_pipeline

        settings = replace(settings, weights=local_pipeline(settings.weights, "weights", **options.of_hub(args)))
    names = list(dict.fromkeys(args.what or [name for name in SUITES if name not in ON_DEMAND]))
    check_names([*names, *args.presets])
    if args.output.is_file():
        raise ValueError(f"`--output` is {str(args.output)!r}, a file; give a folder, new or existing.")
    main, *others = (args.output / f"benchmark.{suffix}" for suffix in ("json", "txt", "png"))
    check_results(main, FORMAT, others, overwrite=args.overwrite)
    suites: dict[str, dict] = {}
    for name in names:
        suites[name] = run_suite(name, settings)
        print(suite_text(name, suites[name]) + "\n", flush=True)
        write_result(args.output, suites, settings)
    if found := marks(suites):
        print(marks_table(found) + "\n")
    written = ["benchmark.json", "benchmark.txt", *(["benchmark.png"] if write_plot(args.output, suites) else [])]
    print(f"wrote {args.output}: {', '.join(written)}")


def write_result(folder: Path, suites: dict[str, dict], settings) -> None:
    """`benchmark.json`, with every single measurement, and the tables as `benchmark.txt`."""
    from brickwork.eval.benchmark.tables import marks, marks_table, suite_text
    from brickwork.eval.benchmark.timing import describe_machine
    from brickwork.eval.report.versions import library_versions
    from brickwork.files import write_file, write_json

    found = marks(suites)
    result = {
        "format": FORMAT,
        "machine": describe_machine(settings.torch_device),
        "versions": library_versions(),
        "settings": vars(settings),
        "suites": suites,
        "marks": found,
    }
    parts = [suite_text(name, suite) for name, suite in suites.items()] + ([marks_table(found)] if found else [])
    write_json(folder / "benchmark.json", result)
    write_file(folder / "benchmark.txt", "\n\n".join(parts) + "\n")


def write_plot(folder: Path, suites: dict[str, dict]) -> bool:
    """`benchmark.png`, if there is anything to plot and matplotlib to do it."""
    from brickwork.eval.benchmark.tables import plot
    from brickwork.files import write_file

    try:
        picture = plot(suites)
        if picture is not None:
            write_file(folder / "benchmark.png", picture.png())
    except ValueError as error:
        print(error, file=sys.stderr)
        return False
    return picture is not None


def make_settings(args: argparse.Namespace):
    """The arguments, checked, with torch's threads set."""
    import torch

    from brickwork.errors import one_of
    from brickwork.eval.benchmark.networks import DTYPES
    from brickwork.eval.benchmark.suites import Settings

    options.check_at_least(args, 1, "batch", "rounds", "size", "threads", "pairs", "steps", "seconds", "pictures")
    one_of("--dtype", args.dtype, DTYPES)
    with explained(f"`--device` is {args.device!r}, which torch cannot use here", RuntimeError, AssertionError):
        torch.empty(1, device=args.device)
    for name in ("data", "schedule"):
        path = getattr(args, name)
        if path is not None and not Path(path).exists():
            raise ValueError(f"`--{name}` is {path!r}, and there is no such file or folder.")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    chosen = {name: getattr(args, name) for name in Settings.__dataclass_fields__}
    return Settings(**{**chosen, "threads": torch.get_num_threads(), "output": str(args.output)})


def check_names(names: list[str]) -> None:
    """Raise a `ValueError` for what is no suite, preset or pipeline, before anything is measured."""
    import brickwork
    from brickwork.errors import one_of
    from brickwork.eval.benchmark.networks import PRESETS

    known = [*SUITES, *PRESETS, *brickwork.pretrained_names()]
    for name in names:
        if name not in known and not (Path(name) / "model_index.json").is_file():
            one_of("what", name, known)


def run_suite(name: str, settings) -> dict:
    """Measure one suite, preset or pipeline."""
    if name not in SUITES:
        from brickwork.eval.benchmark.suites import bench_network

        return bench_network(settings, name)
    module, _, function = SUITES[name][0].partition(":")
    path = f"brickwork.{module}" if "." in module else f"brickwork.eval.benchmark.{module}"
    return getattr(importlib.import_module(path), f"bench_{function}")(settings)
