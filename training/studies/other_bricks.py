"""The experiment of docs/other-bricks.md: a pretrained denoiser as a brick, and bricks trained one after another.

    python -m brickwork.training.studies.other_bricks data/emoji/train.parquet runs/other-bricks

Trains six small networks on smileys at 32 px, one after another, and writes a table and a plot of what each is worth
on the same held-out images, noise levels and noise. Running it again goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from brickwork.eval.held_out.paired_loss import PairedSet
from brickwork.eval.held_out.subnet_losses import subnet_losses
from brickwork.eval.report.blocks import Panels, Plot, Report
from brickwork.eval.studies.core import Cell, StudyFolder, compare_pairs, run_study, table_of
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.subnets import name_of
from brickwork.training.commands.train import run_script
from brickwork.training.config.config import TrainConfig, load_config
from brickwork.training.config.library import CONFIGS
from brickwork.training.studies.ablation import Ablation, AblationConfig, cell_name
from brickwork.training.studies.trained import configured, paired_sets
from brickwork.training.tasks.backbones import build_objective
from brickwork.training.tasks.brick_by_brick import stages_of

CONFIG = CONFIGS / "other_bricks.yaml"
FIRST = "denoiser"  # the run that the others are held against


def stage_costs(config: TrainConfig, network: LegoTransformer2DModel) -> list[tuple[int, int]]:
    """Images of each stage of a run, and the operations of training on one; backward counts as two forward passes."""
    costs = [brick.operations(config.data.size, config.data.size) for brick in network.bricks]
    stages = stages_of(config.objective, network, config.run.total_images, config.model.comes_trained)
    every = range(len(costs))
    return [
        (stage.end - stage.start, sum(costs[b] for b in stage.runs or every) + 2 * sum(costs[b] for b in stage.learns))
        for stage in stages
    ]


def training_operations(stages: Sequence[tuple[int, int]], images: float = np.inf) -> int:
    """Operations of a run's first images, by default of all; `stages` are those of `stage_costs`."""
    total = 0
    for length, price in stages:
        total += min(length, images) * price
        images -= min(length, images)
    return total


def losses_of(model: torch.nn.Module, pairs: PairedSet, objective) -> np.ndarray:
    """The loss of every estimate at every level of every image, `(bricks, levels, images)`."""
    found = subnet_losses(model, pairs, objective, None, [name_of(range(model.num_bricks))])
    return np.stack(list(found.values()))


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


class OtherBricks(Ablation):
    """The runs of the experiment, one seed, and what their bricks are worth."""

    def compare(self, folder: Path) -> dict:
        """Score the averaged weights of every run on the same held-out list.

        Returns:
            `sigmas`, `stages` (see `stage_costs`) by run, and `rows` with label, operations of one image and of
            training, images, loss, its difference to the denoiser alone with the standard error over images, the loss
            at each noise level, and the loss on as many of the training images.
        """
        objective, (pairs, training) = build_objective(self.config.objective), paired_sets(self.config.data)
        networks = {
            name: LegoTransformer2DModel.from_pretrained(self.pipeline(name, 0), subfolder="transformer")
            for name in self.config.ways
        }
        stages = {name: stage_costs(self.run(name, 0), network) for name, network in networks.items()}
        losses = {name: losses_of(network, pairs, objective) for name, network in networks.items()}
        seen = {name: losses_of(network, training, objective).mean(axis=(1, 2)) for name, network in networks.items()}
        reference = losses[FIRST][-1].mean(axis=0)
        rows = []
        for name, network in networks.items():
            run, subnets = self.config.ways[name], sorted(network.subnets(*[self.config.data.size] * 2).values())
            passed = [*stages.get(run.start, []), *stages[name]]
            for brick, values in enumerate(losses[name]):
                last = brick == len(losses[name]) - 1
                if run.start and not last:
                    continue  # the frozen denoiser, which has a row
                difference = compare_pairs(reference, values.mean(axis=0))
                rows.append({
                    "run": name,
                    "label": run.label if last else f"{run.label}: its first brick alone",
                    "operations": subnets[brick],
                    "images": sum(length for length, _ in passed),
                    "training_operations": training_operations(passed),
                    "loss": float(values.mean()),
                    "difference": difference.mean,
                    "standard_error": difference.error,
                    "per_level": values.mean(axis=1).tolist(),
                    "training_loss": float(seen[name][brick]),
                })  # fmt: skip
        sigmas = objective.noise_levels(torch.tensor(pairs.levels)).tolist()
        return {"sigmas": sigmas, "held_out_images": len(pairs.images), "stages": stages, "rows": rows}

    def report(self, folder: StudyFolder) -> tuple[Report, dict]:
        """The table; each loss over the denoiser's, by noise level; how the held-out losses fell in training."""
        results = folder.results()
        scores = results["scores"]
        last = {row["run"]: row for row in scores["rows"]}  # the last row of a run is all of its bricks
        first = np.array(last[FIRST]["per_level"])
        by_level = {row["label"]: (scores["sigmas"], row["per_level"] / first) for row in last.values()}
        course = {}
        for name, row in last.items():
            stages, before = scores["stages"][name], scores["stages"].get(self.config.ways[name].start, [])
            images, losses = zip(*results[cell_name(name, 0)]["curve"])
            spent = [training_operations(before) + training_operations(stages, n) for n in images]
            course[row["label"]] = [operations / 1e12 for operations in spent], losses
        plots = [
            Plot(by_level, "noise level σ", "held-out loss over that of the denoiser alone", log_x=True),
            Plot(course, "training operations, TFLOP", "held-out loss"),
        ]
        return Report("Other bricks", [table(scores), Panels(plots, name="plot")]), scores


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="train.parquet of `brickwork data build emoji`")
    parser.add_argument("output", type=Path, help="folder for the runs, other-bricks.md, .json and plot.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, score, and write the report."""
    config = load_config(CONFIG, ["data.set=smileys", f"data.source={args.data}"], AblationConfig)
    study = OtherBricks(config, args.output)
    scores = [Cell("scores", study.compare)]
    stages = [partial(study.cells, True), partial(study.cells, False), lambda results: scores]
    return 0 if run_study(configured("other-bricks", config, stages, study.report), args.output) else 1


main = partial(run_script, "other_bricks", __doc__, configure_parser)

if __name__ == "__main__":
    sys.exit(main())
