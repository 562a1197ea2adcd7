"""Series filled in, gone on with and drawn, by small denoisers and by the classical ways, on two small sets.

    python -m brickwork.training.studies.series runs/series-study

The sets: a synthetic one of two variables and two periods, and the sea surface temperatures of El Niño, monthly since
1950, which statsmodels ships. The last fifth is for scoring; every way sees the same windows. The denoiser sees series
folded by their periods, or by delay embedding (ImagenTime, arXiv 2410.19538). Needs statsmodels.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from brickwork.eval.report.blocks import Report
from brickwork.eval.report.numbers import number
from brickwork.eval.studies.core import Cell, StudyFolder, mean_and_spread, run_cells, table_of, write_report
from brickwork.files import write_file
from brickwork.pipelines.series import TimeSeriesPipeline
from brickwork.training.commands.train import run_script
from brickwork.training.config.config import load_config
from brickwork.training.config.series import SeriesConfig
from brickwork.training.engine.loop import prepare, train
from brickwork.training.studies.series_scores import autocorrelation_distance, discriminative_score, scores
from brickwork.training.studies.series_ways import Way, classical_ways
from brickwork.training.tasks.series import SeriesTask


@dataclass(frozen=True)
class Setting:
    """How a set is cut and folded.

    Attributes:
        length: steps of a window.
        horizon: steps of a forecast.
        periods: the seasonal one first.
        delay: of the delay embedding, and steps of its columns: pictures that are about square.
    """

    length: int
    horizon: int
    periods: tuple[int, ...]
    delay: tuple[int, int]

    @property
    def folds(self) -> dict[str, dict[str, list[int]]]:
        """What the configuration says of each fold."""
        return {
            "denoiser, periods": {"model.periods": list(self.periods)},
            "denoiser, delays": {"model.delay": list(self.delay)},
        }


SETS = {"el-nino": Setting(48, 12, (12,), (6, 8)), "synthetic": Setting(96, 24, (24, 7), (8, 12))}
SEEDS = (0, 1, 2)
WINDOWS, SAMPLES, STEPS, IMAGES = 12, 16, 10, 5_000
DRAWN = 128  # series from nothing
HIDDEN = 0.4  # of the steps, for filling in
NETWORK = "{block_out_channels: [16, 32], layers_per_block: 1, block_types: resnet, time_embed_dim: 64}"
TRAINING_WINDOWS = "training windows"  # the row of real series in place of drawn ones


def write_set(name: str, folder: Path) -> Path:
    """The set as a CSV file."""
    if name == "synthetic":
        random, time = np.random.default_rng(0), np.arange(3000)
        drift = 1 + 0.4 * np.sin(2 * np.pi * time / 900)
        noise = np.zeros((2, 3000))
        for t in range(1, 3000):
            noise[:, t] = 0.7 * noise[:, t - 1] + random.normal(0, 0.2, 2)
        day, week = np.sin(2 * np.pi * time / 24), np.sin(2 * np.pi * time / 7)
        table = pd.DataFrame({"a": drift * day + 0.5 * week + noise[0], "b": day**2 - 0.5 * drift * week + noise[1]})
    else:
        from statsmodels.datasets import elnino

        found = elnino.load_pandas().data
        table = pd.DataFrame({"temperature": found.drop(columns="YEAR").to_numpy().ravel()})
    return write_file(folder / f"{name}.csv", table.to_csv(index=False))


def trained(name: str, fold: str, seed: int, file: Path, folder: Path) -> TimeSeriesPipeline:
    """A pipeline trained on a set; the run goes on where it was stopped."""
    values = {
        "data.source": file, "data.length": SETS[name].length, "model.config": NETWORK,
        "run.output_dir": folder, "run.seed": seed, "run.total_images": IMAGES, "run.batch_size": 16,
        "run.mixed_precision": "no", "run.sample_images": 0, "run.checkpoint_images": IMAGES, "samples.count": 0,
        "ema.half_life_images": 2000, "optimizer.learning_rate": 2e-3, "optimizer.warmup_images": IMAGES // 10,
        "optimizer.cooldown_images": IMAGES // 3,
    } | SETS[name].folds[fold]  # fmt: skip
    config = load_config(None, [f"{key}={value}" for key, value in values.items()], SeriesConfig)
    train(prepare(SeriesTask, config))
    pipe = TimeSeriesPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_set(name: str, file: Path) -> tuple[np.ndarray, int]:
    """A set `(variables, steps)` in standard deviations of its training part, and where that ends."""
    values = pd.read_csv(file).to_numpy().T
    training = values.shape[1] - values.shape[1] // 5
    return values / values[:, :training].std(1)[:, None], training


def windows(name: str, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`(N, variables, length)`, from the starts given."""
    return np.stack([values[:, start : start + SETS[name].length] for start in starts])


def scored_starts(name: str, values: np.ndarray, training: int, count: int) -> np.ndarray:
    """The first steps of windows for scoring, spread evenly behind the training part."""
    last = values.shape[1] - SETS[name].length
    return np.unique(np.linspace(training, last, count).round().astype(int))


def score_model(folder: Path, name: str, fold: str, seed: int, file: Path) -> dict:
    """Forecasts, fillings and drawn series of a trained pipeline."""
    values, training = read_set(name, file)
    std = pd.read_csv(file).to_numpy().T[:, :training].std(1)[:, None]
    pipe = trained(name, fold, seed, file, folder / "run")

    def seeded(number: int) -> dict:
        return {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(number)}

    def forecast(history: np.ndarray, horizon: int) -> np.ndarray:
        return pipe.forecast(history * std, horizon, SAMPLES, **seeded(history.shape[1])).series / std

    def fill(known: np.ndarray, start: int) -> np.ndarray:
        return pipe(SAMPLES, None, known * std, **seeded(start)).series / std

    found = measure(name, values, training, Way(forecast, fill))
    drawn = pipe(DRAWN, **seeded(0)).series / std
    picture = pipe.transformer.subnets(SETS[name].length)["full"]
    return found | score_drawn(name, values, training, drawn) | {"operations": picture}


def score_classical(folder: Path, name: str, way: str, file: Path) -> dict:
    """The same of a classical way; of windows of the training part, as if they had been drawn."""
    values, training = read_set(name, file)
    setting = SETS[name]
    if way == TRAINING_WINDOWS:
        starts = np.random.default_rng(1).integers(0, training - setting.length, DRAWN)
        return score_drawn(name, values, training, windows(name, values, starts))
    made = classical_ways(setting.periods, SAMPLES, values[:, :training])[way]()
    return measure(name, values, training, made)


def measure(name: str, values: np.ndarray, training: int, way: Way) -> dict:
    """Mean scores of forecasts and fillings over the windows."""
    horizon = SETS[name].horizon
    found: dict[str, list] = {"forecast": [], "fill": []}
    starts = scored_starts(name, values, training, WINDOWS)
    for index, (start, window) in enumerate(zip(starts.tolist(), windows(name, values, starts))):
        split = start + window.shape[1] - horizon
        if way.forecast is not None:
            found["forecast"].append(scores(way.forecast(values[:, :split], horizon), window[:, -horizon:]))
        if way.fill is not None:
            hidden = np.random.default_rng(index).random(window.shape) < HIDDEN
            hidden[:, [0, -1]] = False
            filled = way.fill(np.where(hidden, np.nan, window), start)
            found["fill"].append(scores(filled, np.where(hidden, window, np.nan)))
    return {
        kind: {key: float(np.mean([entry[key] for entry in entries])) for key in ("mse", "crps")}
        for kind, entries in found.items()
        if entries
    }


def score_drawn(name: str, values: np.ndarray, training: int, drawn: np.ndarray) -> dict[str, float]:
    """How far series drawn from nothing are from real ones, of which those for scoring are not in training."""
    chosen = np.random.default_rng(0).integers(0, training - SETS[name].length, DRAWN)
    learned = windows(name, values, chosen)
    real = windows(name, values, scored_starts(name, values, training, DRAWN))
    return {
        "autocorrelation": autocorrelation_distance(real, drawn),
        "discriminative": discriminative_score((learned, real), (drawn[::2], drawn[1::2])),
    }


COLUMNS = {
    "forecast MSE": ("forecast", "mse"), "forecast CRPS": ("forecast", "crps"), "filled MSE": ("fill", "mse"),
    "filled CRPS": ("fill", "crps"), "autocorrelation": ("autocorrelation",), "discriminative": ("discriminative",),
}  # fmt: skip


def report(folder: StudyFolder) -> tuple[Report, dict]:
    """A table for each set; of the denoisers the mean and standard deviation over the seeds."""
    results, tables = folder.results(), []

    def cell(row: tuple[str, list], keys: tuple[str, ...]) -> str | None:
        entries = row[1]
        for key in keys:
            entries = [entry[key] for entry in entries if key in entry]
        return number(*mean_and_spread(entries)) if entries else None

    for name in SETS:
        rows: dict[str, list] = {}
        for done, result in results.items():
            if done.startswith(f"{name}/"):
                rows.setdefault(done.split("/")[1].replace("-", " "), []).append(result)
        columns = {name: lambda row: row[0]} | {title: partial(cell, keys=keys) for title, keys in COLUMNS.items()}
        tables += [table_of(list(rows.items()), columns)] if rows else []
    return Report("Series", tables), {"results": results}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="folder for the sets, the runs and series.md")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="which (default: both)")
    parser.set_defaults(run=run)


def cells_of(name: str, file: Path) -> list[Cell]:
    """Every row of a set's table."""
    shared = {"name": name, "file": file}
    ways = [*classical_ways(SETS[name].periods, SAMPLES, np.zeros((1, 0))), TRAINING_WINDOWS]
    return [
        Cell(f"{name}/{fold.replace(' ', '-')}/seed{seed}", partial(score_model, fold=fold, seed=seed, **shared))
        for fold in SETS[name].folds
        for seed in SEEDS
    ] + [Cell(f"{name}/{way.replace(' ', '-')}", partial(score_classical, way=way, **shared)) for way in ways]


def run(args: argparse.Namespace) -> int:
    settings = {"windows": WINDOWS, "samples": SAMPLES, "steps": STEPS, "images": IMAGES, "hidden": HIDDEN}
    folder = StudyFolder(args.output, "series", settings | {"network": NETWORK, "drawn": DRAWN})
    run_cells(folder, [cell for name in args.sets for cell in cells_of(name, write_set(name, args.output))])
    write_report(folder, report)
    return 0


main = partial(run_script, "series", __doc__, configure_parser)

if __name__ == "__main__":
    sys.exit(main())
