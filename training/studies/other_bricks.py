"""The experiment of docs/other-bricks.md: a pretrained denoiser as a brick, and bricks trained one after another.

    python -m brickwork.training.studies.other_bricks data/emoji/train.parquet runs/other-bricks

Trains six small networks on smileys at 32 px, one after another, and writes a table and a plot of what each is worth
on the same held-out images, noise levels and noise. Running it again goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from brickwork.eval.held_out.paired_loss import PairedSet, estimates
from brickwork.eval.sets.pictures import write_atomically
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.subnets import subnet_name
from brickwork.training.config.config import TrainConfig, load_config
from brickwork.training.engine.guards import write_text
from brickwork.training.engine.runlog import LOG
from brickwork.training.tasks.backbones import build_objective
from brickwork.training.train_backbone import build_held_out, build_images

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
    start = [f"model.init_from={output / run.base / 'pipeline'}"] if run.base else []
    return ["data.set=smileys", f"data.source={data}", f"run.output_dir={output / name}", *start, *run.overrides]


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


@torch.no_grad()
def losses_of(model: torch.nn.Module, pairs: PairedSet, objective) -> np.ndarray:
    """The loss of every estimate at every level of every image, `(bricks, levels, images)`."""
    rows = []
    for level, quantile in enumerate(pairs.levels):
        noise = pairs.noise(level, 0, len(pairs.images))
        sigma = objective.noise_levels(torch.full((len(pairs.images),), quantile))
        sample, timestep = objective.network_inputs(pairs.images, noise, sigma)
        outputs = estimates(model, sample, timestep, pairs.labels)
        rows.append(torch.stack([objective.losses(output, pairs.images, noise, sigma) for output in outputs]))
    return torch.stack(rows, dim=1).double().numpy()


def score(data: str, output: Path) -> dict:
    """Score the averaged weights of every run on the same held-out list.

    Returns:
        `sigmas`, and `rows` with label, operations of one image and of training, images, loss, its difference to the
        denoiser alone with the standard error over images, the loss at each noise level, and the loss on as many of
        the training images.
    """
    config = load_config(CONFIG, ["data.set=smileys", f"data.source={data}"])
    objective, (pairs, training) = build_objective(config), _pairs(config)
    sigmas = objective.noise_levels(torch.tensor(pairs.levels)).tolist()
    networks = {
        name: LegoTransformer2DModel.from_pretrained(output / name / "pipeline", subfolder="transformer")
        for name in RUNS
    }
    losses = {name: losses_of(network, pairs, objective) for name, network in networks.items()}
    seen = {name: losses_of(network, training, objective).mean(axis=(1, 2)) for name, network in networks.items()}
    reference = losses["denoiser"][-1].mean(axis=0)
    rows, size = [], config.data.size
    for name, run in RUNS.items():
        network = networks[name]
        costs = [brick.operations(size, size) for brick in network.bricks]
        base = RUNS[run.base] if run.base else None
        images = sum(stage[0] for stage in run.stages)
        for brick, values in enumerate(losses[name]):
            last = brick == len(losses[name]) - 1
            if run.base and not last:
                continue  # the frozen denoiser, which has a row
            difference = values.mean(axis=0) - reference
            rows.append({
                "run": name,
                "label": run.label if last else f"{run.label}: its first brick alone",
                "operations": network.subnets(size, size)[subnet_name(range(brick + 1))],
                "images": images + (sum(stage[0] for stage in base.stages) if base else 0),
                "training_operations": training_operations(name, costs)
                + (training_operations(run.base, costs) if base else 0),
                "loss": float(values.mean()),
                "difference": float(difference.mean()),
                "standard_error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
                "per_level": values.mean(axis=1).tolist(),
                "training_loss": float(seen[name][brick]),
            })  # fmt: skip
    return {"sigmas": sigmas, "held_out_images": len(pairs.images), "rows": rows}


def _pairs(config: TrainConfig) -> tuple[PairedSet, PairedSet]:
    """The held-out images, and as many of the training images."""
    images = build_images(config)
    train_rows, held_out_rows = images.split(config.data.held_out)
    chosen = np.linspace(0, len(train_rows) - 1, len(held_out_rows)).astype(int)
    return build_held_out(images, held_out_rows), build_held_out(images, [train_rows[row] for row in chosen])


def table(scores: dict) -> str:
    """The rows in Markdown."""
    levels = " | ".join(f"σ {sigma:.2g}" for sigma in scores["sigmas"])
    lines = [
        "| network | MFLOP an image | images | training TFLOP | loss on training images | held-out loss "
        f"| over the denoiser alone | {levels} |",
        "| --- " * (7 + len(scores["sigmas"])) + "|",
    ]
    for row in scores["rows"]:
        change = f"{row['difference']:+.4f} ± {row['standard_error']:.4f}" if row["difference"] else ""
        lines.append(
            f"| {row['label']} | {row['operations'] / 1e6:.0f} | {row['images']:,} "
            f"| {row['training_operations'] / 1e12:.1f} | {row['training_loss']:.4f} | {row['loss']:.4f} | {change} | "
            + " | ".join(f"{loss:.3f}" for loss in row["per_level"])
            + " |"
        )
    return "\n".join(lines) + "\n"


def draw(scores: dict, output: Path, path: Path) -> None:
    """Left: each network's loss over the denoiser's, by noise level. Right: how the held-out loss fell in training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    by_level, course = figure.subplots(1, 2)
    whole = {row["run"]: row for row in scores["rows"]}  # the last row of a run is all of its bricks
    first = np.array(whole["denoiser"]["per_level"])
    for number, (name, row) in enumerate(whole.items()):
        colour = f"C{number}"
        by_level.plot(scores["sigmas"], row["per_level"] / first, "o-", color=colour, label=row["label"], markersize=3)
        operations, losses = _course(name, output)
        course.plot(operations, losses, "o-", color=colour, markersize=3)
    by_level.set(xscale="log", xlabel="noise level σ", ylabel="held-out loss over that of the denoiser alone")
    course.set(xlabel="training operations, TFLOP", ylabel="held-out loss")
    by_level.legend(fontsize=7, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def _course(name: str, output: Path) -> tuple[list[float], list[float]]:
    """A run's held-out losses over operations, those of the run it starts from counted in."""
    network = LegoTransformer2DModel.from_pretrained(output / name / "pipeline", subfolder="transformer")
    size, base = network.config.sample_size, RUNS[name].base
    costs = [brick.operations(size, size) for brick in network.bricks]
    before = training_operations(base, costs) if base else 0
    lines = [json.loads(line) for line in (output / name / LOG).read_text(encoding="utf-8").splitlines()]
    scored = [line for line in lines if "held_out/loss" in line]
    operations = [(before + training_operations(name, costs, line["images"])) / 1e12 for line in scored]
    return operations, [line["held_out/loss"] for line in scored]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="train.parquet of `brickwork data build emoji`")
    parser.add_argument("output", type=Path, help="folder for the runs, table.md, scores.json and plot.png")
    args = parser.parse_args(arguments)
    for name in RUNS:
        command = [sys.executable, "-m", "brickwork.training.train_backbone", "--config", str(CONFIG)]
        if subprocess.run([*command, *overrides_of(name, args.data, args.output)]).returncode:
            return 1
    scores = score(args.data, args.output)
    write_text(args.output / "scores.json", json.dumps(scores, indent=1) + "\n")
    write_text(args.output / "table.md", table(scores))
    draw(scores, args.output, args.output / "plot.png")
    print(table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
