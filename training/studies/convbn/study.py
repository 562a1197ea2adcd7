"""`brickwork convbn`: memory, time and stability of the four modes of a convolution and its BatchNorm."""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

NETWORKS = ("d-emo-s-2", "u-emo-s")
WITH_BATCH_NORM = ("d-emo", "u-emo", "maxvit", "mixed")  # the presets with a BatchNorm behind a convolution
_CONVS = (10.0, 100.0, 300.0, 1000.0)
RATES = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2),
    "sgd": (0.01, 0.03, 0.1, 0.3),
    "sgd-convs": _CONVS,
    "sgd-convs-turned": _CONVS,
}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `brickwork convbn`."""
    parser.description = (
        "The four modes of `set_convbn_mode` (arXiv 2305.11624) in fine-tuning. First what a step costs in each:\n"
        "peak memory and time, in turn, round by round. Then a small network is pretrained on one group of pictures,\n"
        "or one of yours is taken, and fine-tuned on another group from the same weights with the same pictures and\n"
        "noise, in each mode at several learning rates. The same command again goes on with what is missing."
    )
    parser.epilog = (
        "examples (values of the pretraining come first):\n"
        "  brickwork convbn -o runs/convbn\n"
        "  brickwork convbn data.source=my-pictures data.classes='[cats]' --target dogs -o runs/convbn-dogs\n"
        "  brickwork convbn --pretrained runs/tiny-u-emo/pipeline --rates sgd 0.1 1 --only curves -o runs/convbn-u\n"
        "  brickwork convbn run.batch_size=32 run.mixed_precision=bf16 --curves d-emo-s-2 --steps 60 \\\n"
        "      --device cuda --dtype bfloat16 --batch 64 -o runs/convbn-gpu"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="values over training/configs/convbn.yaml, for pretraining and data",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("convbn"), help="folder for convbn.json, .md and .png (convbn)"
    )
    parser.add_argument("--only", choices=("cost", "curves"), help="one half of the study")
    parser.add_argument("--device", help="cpu, cuda … (default: the accelerator if there is one)")
    cost = parser.add_argument_group("what a step costs")
    cost.add_argument(
        "--networks", nargs="+", default=NETWORKS, metavar="NAME", help=f"presets ({', '.join(NETWORKS)})"
    )
    cost.add_argument("--batch", "--batch-size", type=int, default=4, help="images at once (default: 4)")
    cost.add_argument("--size", type=int, help="side of the images or latents (default: the training size)")
    cost.add_argument("--rounds", type=int, default=5, help="how often each mode is timed (default: 5)")
    cost.add_argument("--dtype", default="float32", help="float32 (default), or bfloat16 or float16 by autocast")
    curves = parser.add_argument_group("fine-tuning")
    curves.add_argument(
        "--curves", nargs="+", default=("tiny-d-emo",), metavar="NAME", help="presets to pretrain (tiny-d-emo)"
    )
    curves.add_argument("--pretrained", type=Path, metavar="FOLDER", help="in their place, a pipeline or a model")
    curves.add_argument(
        "--target", nargs="+", default=["Animals & Nature"], metavar="CLASS", help="classes to fine-tune on"
    )
    curves.add_argument(
        "--rates",
        nargs="+",
        action="append",
        metavar=("OPTIMISER", "RATE"),
        help="how to learn, and its learning rates: adamw; sgd; sgd-convs, where the convolutions and their "
        "BatchNorms alone learn; sgd-convs-turned, the same after rescaling |γ|/σ to its inverse, with the same "
        "function; can be repeated (default: "
        + ", ".join(f"{name} {' '.join(f'{rate:g}' for rate in rates)}" for name, rates in RATES.items())
        + ")",
    )
    curves.add_argument("--steps", type=int, default=60, help="of fine-tuning (default: 60)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, fine-tune, write; after each network what there is so far."""
    from diffusers.utils import logging

    from brickwork.eval.studies.core import StudyFolder, run_cells
    from brickwork.training.studies.convbn.figures import write

    logging.set_verbosity_error()
    settings, rates = check(args), read_rates(args.rates)
    work = []
    if args.only != "cost":
        identity, make_cells = fine_tuning(args, rates, settings["device"])
        folder = StudyFolder(args.output / "curves", "fine-tuning of convbn", identity)
        work += [(folder, make_cells(name)) for name in names_of(args)]
    if args.only != "curves":
        folder = StudyFolder(args.output / "cost", "cost of convbn", settings | {"rounds": args.rounds})
        work[:0] = [(folder, cost_cells(name, settings, args.rounds)) for name in args.networks]
    for folder, cells in work:
        run_cells(folder, cells)
        text = write(args.output, settings)
    print(text)
    return 0


def names_of(args: argparse.Namespace) -> list[str]:
    """What the networks that are fine-tuned are called."""
    if args.pretrained is None:
        return list(dict.fromkeys(args.curves))
    folder = args.pretrained.resolve()
    return [folder.parent.name if folder.name in ("pipeline", "transformer") else folder.name]


def check(args: argparse.Namespace) -> dict:
    """The settings of the measurements.

    Raises:
        ValueError: for what the command cannot work with, before anything is measured.
    """
    import torch

    from brickwork.errors import one_of
    from brickwork.eval.benchmark.networks import DTYPES
    from brickwork.eval.sampling.pipelines import place
    from brickwork.training.config.recipes import list_recipes

    for name in ("batch", "rounds", "size", "steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`--{name}` is {value}; give a whole number from 1 up.")
    one_of("--dtype", args.dtype, DTYPES)
    presets = [name for name in list_recipes() if any(kind in name for kind in WITH_BATCH_NORM)]
    for option, known in (("networks", [name for name in presets if "tiny" not in name]), ("curves", presets)):
        for name in getattr(args, option):
            one_of(f"--{option}", name, known)
    device = place(torch.empty(1), args.device).device
    return {
        "device": str(device), "dtype": args.dtype, "batch": args.batch, "size": args.size,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def read_rates(given: list[list[str]] | None) -> dict[str, list[float]]:
    """Learning rates by optimiser, rising.

    Raises:
        ValueError: for an unknown optimiser, or what is no rate.
    """
    from brickwork.errors import one_of

    rates: dict[str, list[float]] = {}
    for name, *numbers in given or [(name, *rates) for name, rates in RATES.items()]:
        one_of("--rates", name, RATES)
        try:
            found = sorted(float(number) for number in numbers)
        except ValueError:
            found = []
        if not found or not 0 < found[0] <= found[-1] < float("inf"):
            raise ValueError(f"`--rates {name}` is {numbers}; give one or more positive numbers behind the optimiser.")
        rates[name] = sorted({*rates.get(name, []), *found})
    return rates


def cost_cells(name: str, settings: dict, rounds: int) -> list:
    """Memory of every mode of one network, and time of all in turn."""
    from brickwork.eval.studies.core import Cell
    from brickwork.gen.convbn import CONVBN_MODES
    from brickwork.training.studies.convbn.cost import memory_of, time_modes

    memory = [
        Cell(f"{name}/memory-{mode}", lambda folder, mode=mode: memory_of(name, mode, settings))
        for mode in CONVBN_MODES
    ]
    return [*memory, Cell(f"{name}/time", lambda folder: time_modes(name, settings, rounds))]


def fine_tuning(args: argparse.Namespace, rates: dict[str, list[float]], device: str) -> tuple[dict, Callable]:
    """What all fine-tuning has in common, and the cells of a network by its name; nothing is trained yet.

    The cells of a network: `NAME/about`, see `curves.describe`, and `NAME/OPTIMISER/RATE/MODE`, see `fine_tune`.
    """
    import torch
    import yaml

    from brickwork.eval.studies.core import Cell
    from brickwork.gen.convbn import CONVBN_MODES
    from brickwork.training.studies.convbn import curves

    if args.pretrained:
        curves.load_network(args.pretrained)  # what is wrong with it is said before anything is measured
    config, images = curves.target_images(args.overrides, args.target)
    task, where = curves.make_task(images, config, args.steps), torch.device(device)
    identity = yaml.safe_load(config.to_yaml())
    del identity["data"]["source"], identity["run"]["output_dir"]  # data may move; its pictures are looked at
    identity |= {"--target": args.target, "pictures": images.fingerprint[:16], "--steps": args.steps}
    identity |= {"--device": device, "--pretrained": curves.digest_of(args.pretrained) if args.pretrained else None}

    def cells_of(name: str) -> list:
        @cache
        def network():
            if args.pretrained:
                return curves.load_network(args.pretrained)
            return curves.pretrain(name, args.overrides, args.output / "pretrained" / name)

        def fine_tune(folder: Path, optimizer: str, rate: float, mode: str) -> dict:
            return curves.fine_tune(network(), mode, optimizer, rate, task, where)

        return [
            Cell(f"{name}/about", lambda folder: curves.describe(network(), task, where)),
            *(
                Cell(
                    f"{name}/{optimizer}/{rate:g}/{mode}", fine_tune,
                    {"optimizer": optimizer, "rate": rate, "mode": mode},
                )
                for optimizer, chosen in rates.items()
                for rate in chosen
                for mode in CONVBN_MODES
            ),
        ]  # fmt: skip

    return identity, cells_of
