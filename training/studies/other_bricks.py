"""The experiment of docs/other-bricks.md: a pretrained denoiser as a brick, and bricks trained one after another.

    python -m brickwork.training.studies.other_bricks data/emoji/train.parquet runs/other-bricks

Trains six small networks on smileys at 32 px, one after another, and writes a table and a plot of what each is worth
on the same held-out images, noise levels and noise. Running it again goes on where it was.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from brickwork.eval.held_out.paired_loss import PairedSet
from brickwork.eval.held_out.subnet_losses import subnet_losses
from brickwork.eval.report.blocks import Panels, Plot, Report
from brickwork.eval.studies.core import Cell, Study, StudyFolder, compare_pairs, run_study, table_of
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.subnets import name_of
from brickwork.training.commands.train import run_script
from brickwork.training.config.config import TrainConfig, load_config
from brickwork.training.engine.previews import PIPELINE
from brickwork.training.studies.trained import FREE, RUN, training_cell
from brickwork.training.tasks.backbone import build_held_out, build_images
from brickwork.training.tasks.backbones import build_objective

CONFIG = Path(__file__).parents[1] / "configs" / "other_bricks.yaml"
UNET = (
    "{class_name: UNet2DModel, prediction_type: v_prediction, config: {sample_size: 32, "
    "block_out_channels: [16, 32, 64], down_block_types: [DownBlock2D, DownBlock2D, AttnDownBlock2D], "
    "up_block_types: [AttnUpBlock2D, UpBlock2D, UpBlock2D], layers_per_block: 1, norm_num_groups: 8, "
    "attention_head_dim: 16}}"
)
BFLOAT16 = ("run.mixed_precision=bf16", "model.attention_backend=_native_math")
WINDOWS = "window_sizes: [32, 8], patch_sizes: [4, 2]"
PLAIN = "model.config={" + WINDOWS + ", num_layers: [7, 2], hidden_sizes: [128, 96], num_attention_heads: [4, 3]}"
ON_TOP = "model.config={" + WINDOWS + ", num_layers: [0, 2], hidden_sizes: [0, 96], num_attention_heads: [0, 3]}"


@dataclass(frozen=True)
class Trained:
    """One training run of the experiment.

    Attributes:
        label: what it is, in a table.
        overrides: of its configuration.
        stages: `(images, bricks that learn, bricks that run)`, for counting.
        base: the run that it starts from, if any.
    """

    label: str
    overrides: tuple[str, ...]
    stages: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]
    base: str | None = None


RUNS = {
    "denoiser": Trained(
        "UNet2DModel as the only brick",
        ("run.total_images=20000", f"model.config={{pretrained_brick: {UNET}, window_sizes: [32], patch_sizes: [4], "
         "num_layers: [0]}"),
        ((20000, (0,), (0,)),),
    ),
    "longer": Trained(
        "the same, trained on",
        ("run.total_images=12000", "objective.train_bricks=[0]"),
        ((12000, (0,), (0,)),),
        "denoiser",
    ),
    "with-brick": Trained(
        "the same, frozen, and a brick on it",
        ("run.total_images=12000", *BFLOAT16, ON_TOP),
        ((12000, (1,), (0, 1)),),
        "denoiser",
    ),
    "thawed": Trained(
        "the same, and a brick on it, both learning",
        ("run.total_images=12000", *BFLOAT16, "objective.train_bricks=[0, 1]", ON_TOP),
        ((12000, (0, 1), (0, 1)),),
        "denoiser",
    ),
    "plain": Trained(
        "plain stack, both bricks at once",
        ("run.total_images=32000", *BFLOAT16, PLAIN),
        ((32000, (0, 1), (0, 1)),),
    ),
    "one-by-one": Trained(
        "plain stack, one brick after the other",
        ("run.total_images=52500", *BFLOAT16, "objective.brick_images=[30000, 22500]", PLAIN),
        ((30000, (0,), (0,)), (22500, (1,), (0, 1))),
    ),
}  # fmt: skip


def overrides_of(name: str, data: str, output: Path) -> list[str]:
    """The values of a run over `configs/other_bricks.yaml`."""
    run = RUNS[name]
    start = [f"model.init_from={output / run.base / RUN / PIPELINE}"] if run.base else []
    return ["data.set=smileys", f"data.source={data}", *start, *run.overrides]


def training_operations(name: str, costs: Sequence[int], images: int | None = None) -> int:
    """Operations of a run's first `images` images, by default of all; a backward pass counts as two forward ones.

    Args:
        name: of the run.
        costs: operations of each brick for one image.
        images: seen.
    """
    total, left = 0, np.inf if images is None else images
    for length, learns, runs in RUNS[name].stages:
        seen = min(length, left)
        total += seen * (sum(costs[brick] for brick in runs) + 2 * sum(costs[brick] for brick in learns))
        left -= seen
    return total


def losses_of(model: torch.nn.Module, pairs: PairedSet, objective) -> np.ndarray:
    """The loss of every estimate at every level of every image, `(bricks, levels, images)`."""
    sigmas = objective.noise_levels(torch.tensor(pairs.levels)).tolist()
    found = subnet_losses(model, pairs, objective, sigmas, [name_of(range(model.num_bricks))])
    return np.stack(list(found.values()))


def cells(data: str, output: Path, started: bool, results: Mapping[str, Any]) -> list[Cell]:
    """The runs that start from another one, or those that start from nothing."""
    return [
        training_cell(name, load_config(CONFIG, overrides_of(name, data, output)), about={"base": run.base or ""})
        for name, run in RUNS.items()
        if bool(run.base) is started
    ]


def score(folder: Path, *, runs: Sequence[str], data: str) -> dict:
    """Score the averaged weights of every run on the same held-out list.

    Returns:
        `sigmas`, `costs` (operations of each brick by run), and `rows` with label, operations of one image and of
        training, images, loss, its difference to the denoiser alone with the standard error over images, the loss at
        each noise level, and the loss on as many of the training images.
    """
    config = load_config(CONFIG, ["data.set=smileys", f"data.source={data}"])
    objective, (pairs, training) = build_objective(config.objective), _pairs(config)
    networks = {
        name: LegoTransformer2DModel.from_pretrained(folder.parent / name / RUN / PIPELINE, subfolder="transformer")
        for name in runs
    }
    losses = {name: losses_of(network, pairs, objective) for name, network in networks.items()}
    seen = {name: losses_of(network, training, objective).mean(axis=(1, 2)) for name, network in networks.items()}
    reference = losses["denoiser"][-1].mean(axis=0)
    rows, size, all_costs = [], config.data.size, {}
    for name, network in networks.items():
        run, base = RUNS[name], RUNS.get(RUNS[name].base)
        all_costs[name] = costs = [brick.operations(size, size) for brick in network.bricks]
        subnets = sorted(network.subnets(size, size).values())
        for brick, values in enumerate(losses[name]):
            last = brick == len(losses[name]) - 1
            if run.base and not last:
                continue  # the frozen denoiser, which has a row
            difference = compare_pairs(reference, values.mean(axis=0))
            rows.append({
                "run": name,
                "label": run.label if last else f"{run.label}: its first brick alone",
                "operations": subnets[brick],
                "images": sum(stage[0] for one in (run, base) if one for stage in one.stages),
                "training_operations": training_operations(name, costs)
                + (training_operations(run.base, costs) if base else 0),
                "loss": float(values.mean()),
                "difference": difference.mean,
                "standard_error": difference.error,
                "per_level": values.mean(axis=1).tolist(),
                "training_loss": float(seen[name][brick]),
            })  # fmt: skip
    sigmas = objective.noise_levels(torch.tensor(pairs.levels)).tolist()
    return {"sigmas": sigmas, "held_out_images": len(pairs.images), "costs": all_costs, "rows": rows}


def _pairs(config: TrainConfig) -> tuple[PairedSet, PairedSet]:
    """The held-out images, and as many of the training images."""
    images = build_images(config.data)
    train_rows, held_out_rows = images.split(config.data.held_out)
    chosen = np.linspace(0, len(train_rows) - 1, len(held_out_rows)).astype(int)
    return build_held_out(images, held_out_rows), build_held_out(images, [train_rows[row] for row in chosen])


COLUMNS = {
    "network": lambda row: row["label"],
    "MFLOP an image": lambda row: f"{row['operations'] / 1e6:.0f}",
    "images": lambda row: f"{row['images']:,}",
    "training TFLOP": lambda row: f"{row['training_operations'] / 1e12:.1f}",
    "loss on training images": lambda row: f"{row['training_loss']:.4f}",
    "held-out loss": lambda row: f"{row['loss']:.4f}",
    "over the denoiser alone": lambda row: (
        f"{row['difference']:+.4f} ± {row['standard_error']:.4f}" if row["difference"] else ""
    ),
}


def table(scores: dict):
    """A row for each network."""
    levels = {
        f"σ {sigma:.2g}": lambda row, level=level: f"{row['per_level'][level]:.3f}"
        for level, sigma in enumerate(scores["sigmas"])
    }
    return table_of(scores["rows"], COLUMNS | levels)


def report(folder: StudyFolder) -> tuple[Report, dict]:
    """The table; each network's loss over the denoiser's, by noise level; how the held-out loss fell in training."""
    results = folder.results()
    scores = results["scores"]
    last = {row["run"]: row for row in scores["rows"]}  # the last row of a run is all of its bricks
    first = np.array(last["denoiser"]["per_level"])
    by_level = {row["label"]: (scores["sigmas"], row["per_level"] / first) for row in last.values()}
    course = {}
    for name, row in last.items():
        costs, base = scores["costs"][name], RUNS[name].base
        before = training_operations(base, costs) if base else 0
        images, losses = zip(*results[name]["curve"])
        course[row["label"]] = [(before + training_operations(name, costs, n)) / 1e12 for n in images], losses
    plots = [
        Plot(by_level, "noise level σ", "held-out loss over that of the denoiser alone", log_x=True),
        Plot(course, "training operations, TFLOP", "held-out loss"),
    ]
    return Report("Other bricks", [table(scores), Panels(plots, name="plot")]), scores


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="train.parquet of `brickwork data build emoji`")
    parser.add_argument(
        "output", type=Path, help="folder for the runs, other-bricks.md, other-bricks.json and plot.png"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    conditions = yaml.safe_load(load_config(CONFIG, ["data.set=smileys", f"data.source={args.data}"]).to_yaml())
    stages = [
        partial(cells, args.data, args.output, False),
        partial(cells, args.data, args.output, True),
        lambda results: [Cell("scores", score, {"runs": list(RUNS)}, {"data": args.data})],
    ]
    return 0 if run_study(Study("other-bricks", conditions, stages, report, FREE), args.output) else 1


def main(arguments: list[str] | None = None) -> int:
    return run_script("other_bricks", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
