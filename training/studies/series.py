"""Series filled in and gone on with, by a small denoiser and by the classical ways, on two small sets.

    python -m brickwork.training.studies.series runs/series-study

The sets: a synthetic one of two variables and two periods, and the sea surface temperatures of El Niño, monthly since
1950, which statsmodels ships. The last fifth is for scoring; every way sees the same windows. Needs statsmodels.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from brickwork.eval.report.blocks import Report
from brickwork.eval.studies.core import Cell, StudyFolder, run_cells, table_of, write_report
from brickwork.files import write_file
from brickwork.pipelines.series import TimeSeriesPipeline
from brickwork.training.commands.train import run_script
from brickwork.training.config.config import load_config
from brickwork.training.config.series import SeriesConfig
from brickwork.training.engine.loop import prepare, train
from brickwork.training.tasks.series import SeriesTask

# name: (steps of a window, of a forecast, the seasonal period, which periods)
SETS = {"el-nino": (48, 12, 12, "[12]"), "synthetic": (96, 24, 24, "[24, 7]")}
SEEDS = (0, 1, 2)
WINDOWS, SAMPLES, STEPS, IMAGES = 12, 16, 10, 5_000
HIDDEN = 0.4  # of the steps, for filling in
NETWORK = "{block_out_channels: [16, 32], layers_per_block: 1, block_types: resnet, time_embed_dim: 64}"


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


def trained(name: str, seed: int, file: Path, folder: Path) -> TimeSeriesPipeline:
    """A pipeline trained on a set; the run goes on where it was stopped."""
    length, _, _, periods = SETS[name]
    values = {
        "data.source": file, "data.length": length, "model.periods": periods, "model.config": NETWORK,
        "run.output_dir": folder, "run.seed": seed, "run.total_images": IMAGES, "run.batch_size": 16,
        "run.mixed_precision": "no", "run.sample_images": 0, "run.checkpoint_images": IMAGES, "samples.count": 0,
        "ema.half_life_images": 2000, "optimizer.learning_rate": 2e-3, "optimizer.warmup_images": 500,
        "optimizer.cooldown_images": IMAGES // 3,
    }  # fmt: skip
    config = load_config(None, [f"{key}={value}" for key, value in values.items()], SeriesConfig)
    train(prepare(SeriesTask, config))
    pipe = TimeSeriesPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def windows_of(name: str, values: np.ndarray) -> tuple[list[int], int]:
    """The first steps of the windows for scoring, all behind the training part, and where that ends."""
    length, steps = SETS[name][0], values.shape[1]
    training = steps - steps // 5
    return np.linspace(training, steps - length, WINDOWS).round().astype(int).tolist(), training


def crps(samples: np.ndarray, truth: np.ndarray) -> float:
    """The continuous ranked probability score of `(n, …)` samples, mean over what is not NaN in `truth`; fair form."""
    n = len(samples)
    ordered = np.sort(samples, axis=0)
    weights = (2 * np.arange(1, n + 1) - n - 1).reshape(-1, *(1,) * truth.ndim)
    spread = (weights * ordered).sum(0) / (n * (n - 1)) if n > 1 else 0.0
    return float(np.nanmean(np.abs(samples - truth).mean(0) - spread))


def scores(samples: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {"mse": float(np.nanmean((samples.mean(0) - truth) ** 2)), "crps": crps(samples, truth)}


def score_model(folder: Path, name: str, seed: int, file: Path) -> dict:
    """Forecasts, fillings and the autocorrelation of drawn series, by a trained pipeline."""
    values = pd.read_csv(file).to_numpy().T
    pipe = trained(name, seed, file, folder / "run")

    def forecast(history: np.ndarray, horizon: int, index: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(index)
        return pipe.forecast(history, horizon, SAMPLES, num_inference_steps=STEPS, generator=generator).series

    def fill(known: np.ndarray, index: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(index)
        return pipe(SAMPLES, None, known, num_inference_steps=STEPS, generator=generator).series

    found = measure(name, values, forecast, fill)
    std = values[:, : windows_of(name, values)[1]].std(1)[:, None]
    drawn = pipe(64, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0)).series / std
    return found | {"autocorrelation": autocorrelation_distance(name, values / std, drawn)}


def score_classical(folder: Path, name: str, way: str, file: Path) -> dict:
    """The same by a classical way."""
    values = pd.read_csv(file).to_numpy().T
    period = SETS[name][2]
    training = windows_of(name, values)[1]
    forecast, fill = (partial(one, period) if one else None for one in WAYS[way])
    found = measure(name, values, forecast, fill)
    if way == "training windows":
        length = SETS[name][0]
        std = values[:, :training].std(1)[:, None]
        starts = np.random.default_rng(0).integers(0, training - length, 64)
        drawn = np.stack([values[:, s : s + length] / std for s in starts])
        found["autocorrelation"] = autocorrelation_distance(name, values / std, drawn)
    return found


def measure(name: str, values: np.ndarray, forecast: Callable | None, fill: Callable | None) -> dict:
    """Scores over the windows, in units of the training part's standard deviation."""
    length, horizon, _, _ = SETS[name]
    starts, training = windows_of(name, values)
    std = values[:, :training].std(1)[:, None]
    found: dict[str, list] = {"forecast": [], "fill": []}
    for index, start in enumerate(starts):
        window = values[:, start : start + length]
        if forecast is not None:
            split = start + length - horizon
            drawn = forecast(values[:, :split], horizon, index)
            found["forecast"].append(scores(drawn / std, window[:, -horizon:] / std))
        if fill is not None:
            hidden = np.random.default_rng(index).random(window.shape) < HIDDEN
            hidden[:, [0, -1]] = False
            drawn = fill(np.where(hidden, np.nan, window), index)
            found["fill"].append(scores(drawn / std, np.where(hidden, window / std, np.nan)))
    return {
        kind: {key: float(np.mean([entry[key] for entry in entries])) for key in ("mse", "crps")}
        for kind, entries in found.items()
        if entries
    }


def seasonal_naive(period: int, history: np.ndarray, horizon: int, index: int) -> np.ndarray:
    """What was a period ago, plus what that has been off by before."""
    last = history[:, -period:]
    point = np.stack([last[:, k % period] for k in range(horizon)], axis=1)
    errors = history[:, period:] - history[:, :-period]
    chosen = np.random.default_rng(index).integers(0, errors.shape[1], (SAMPLES, horizon))
    return point + errors[:, chosen].transpose(1, 0, 2)


def exponential_smoothing(period: int, history: np.ndarray, horizon: int, index: int) -> np.ndarray:
    """ETS(A, N, A) of statsmodels on the last 30 periods of each variable, simulated."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    drawn = []
    for row in history[:, -30 * period :]:
        fitted = ETSModel(pd.Series(row), error="add", seasonal="add", seasonal_periods=period).fit(disp=False)
        noise = np.random.default_rng(index).normal(0, np.sqrt(fitted.scale), (horizon, SAMPLES))
        simulated = fitted.simulate(horizon, anchor="end", repetitions=SAMPLES, random_errors=noise)
        drawn.append(np.asarray(simulated).reshape(horizon, SAMPLES))
    return np.stack(drawn).transpose(2, 0, 1)


def interpolate(period: int, known: np.ndarray, index: int) -> np.ndarray:
    """Straight lines."""
    steps = np.arange(known.shape[1])
    return np.stack([np.interp(steps, steps[np.isfinite(row)], row[np.isfinite(row)]) for row in known])[None]


def seasonal_mean(period: int, known: np.ndarray, index: int) -> np.ndarray:
    """The mean of the same phase in the window, or a straight line where nothing of that phase is known."""
    filled = np.where(np.isnan(known), interpolate(period, known, index)[0], known)
    for row, given in zip(filled, known):
        for phase in range(period):
            part = given[phase::period]
            if np.isfinite(part).any():
                row[phase::period] = np.where(np.isnan(part), np.nanmean(part), part)
    return filled[None]


# The classical ways: how each forecasts, and how it fills in.
WAYS: dict[str, tuple[Callable | None, Callable | None]] = {
    "seasonal naive": (seasonal_naive, None),
    "ETS": (exponential_smoothing, None),
    "linear interpolation": (None, interpolate),
    "seasonal mean": (None, seasonal_mean),
    "training windows": (None, None),
}


def autocorrelation_distance(name: str, values: np.ndarray, drawn: np.ndarray) -> float:
    """The mean distance of drawn windows' mean autocorrelations to the scored part's, over half a window of lags."""
    length = SETS[name][0]
    starts, _ = windows_of(name, values)
    real = np.stack([values[:, start : start + length] for start in starts])
    return float(np.abs(autocorrelation(real) - autocorrelation(drawn)).mean())


def autocorrelation(windows: np.ndarray) -> np.ndarray:
    """`(N, variables, length)` => the mean autocorrelation `(variables, length / 2)` at lags from 1 up."""
    centred = windows - windows.mean(-1, keepdims=True)
    power = (centred**2).sum(-1)
    lags = range(1, windows.shape[-1] // 2 + 1)
    return np.stack([((centred[..., lag:] * centred[..., :-lag]).sum(-1) / power).mean(0) for lag in lags], axis=-1)


def spread(values: list[float]) -> str:
    """`"0.123"`, or `"0.123 ± 0.004"` for several."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def report(folder: StudyFolder) -> tuple[Report, dict]:
    """A table for each set; of the model the mean and standard deviation over the seeds."""
    results, tables = folder.results(), []
    for name in [name for name in SETS if f"{name}/ETS" in results]:
        found = {way: [results[f"{name}/{way.replace(' ', '-')}"]] for way in WAYS}
        rows = list(({"denoiser": [results[f"{name}/seed{seed}"] for seed in SEEDS]} | found).items())

        def cell(row, *keys):
            entries = row[1]
            for key in keys:
                entries = [entry[key] for entry in entries if key in entry]
            return spread(entries) if entries else None

        columns = {
            name: lambda row: row[0],
            "forecast MSE": lambda row: cell(row, "forecast", "mse"),
            "forecast CRPS": lambda row: cell(row, "forecast", "crps"),
            "filled MSE": lambda row: cell(row, "fill", "mse"),
            "filled CRPS": lambda row: cell(row, "fill", "crps"),
            "autocorrelation": lambda row: cell(row, "autocorrelation"),
        }
        tables.append(table_of(rows, columns))
    return Report("Series", tables), {"results": results}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="folder for the sets, the runs and series.md")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="which (default: both)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    settings = {"windows": WINDOWS, "samples": SAMPLES, "steps": STEPS, "images": IMAGES, "hidden": HIDDEN}
    folder = StudyFolder(args.output, "series", settings | {"network": NETWORK})
    cells = []
    for name in args.sets:
        file = write_set(name, args.output)
        for way in WAYS:
            classical = partial(score_classical, name=name, way=way, file=file)
            cells.append(Cell(f"{name}/{way.replace(' ', '-')}", classical))
        cells += [
            Cell(f"{name}/seed{seed}", partial(score_model, name=name, seed=seed, file=file), {}) for seed in SEEDS
        ]
    run_cells(folder, cells)
    write_report(folder, report)
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run_script("series", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
