"""Draw many ways in which the series of a file may go on, and write their mean and quantiles for each later step and
variable, as CSV. With --fill, do that for the gaps of the file instead.

examples:
  brickwork forecast power.csv --model runs/series/pipeline --horizon 48
  brickwork forecast power.csv --model runs/series/pipeline --fill -o filled.csv
"""

import argparse
from pathlib import Path

from brickwork import hub, options

COLUMNS = ("time", "variable", "mean")  # of what it writes, and behind them the quantiles


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of `brickwork forecast`."""
    parser.add_argument("data", help="a .csv or .parquet file, a row for each step; gaps are empty cells")
    parser.add_argument("--model", required=True, help="folder of a TimeSeriesPipeline, or its name on the hub")
    parser.add_argument("--horizon", type=int, default=24, help="steps to go on for (default: 24)")
    parser.add_argument("--fill", action="store_true", help="fill in the gaps instead")
    parser.add_argument("-n", "--samples", type=int, default=100, help="series to draw (default: 100)")
    parser.add_argument(
        "--quantiles", type=float, nargs="+", default=[0.1, 0.5, 0.9], help="of them (default: 0.1 0.5 0.9)"
    )
    parser.add_argument("--steps", type=int, help="of the sampler (default: what is saved with the model)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn series (default: 0)")
    parser.add_argument("--time-column", help="of the time stamps (default: the first, if it holds dates)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("forecast.csv"), help="CSV file to write (default: forecast.csv)"
    )
    options.add_common(parser, "--overwrite")
    options.add_hub(parser)
    parser.set_defaults(run=run, check=hub.check_argument("model"))


def run(args: argparse.Namespace) -> int:
    """Forecast or fill in, write the table and say where it is."""
    import torch

    from brickwork.eval.sets.series import read_series
    from brickwork.files import check_file, write_file
    from brickwork.pipelines.series import TimeSeriesPipeline

    if args.output.suffix != ".csv":
        raise ValueError(f"`--output` is {str(args.output)!r}; give a name that ends in .csv.")
    check_file(args.output, _is_ours, overwrite=args.overwrite)
    pipe = TimeSeriesPipeline.from_pretrained(args.model, **options.of_hub(args))
    pipe.set_progress_bar_config(disable=True)
    table = read_series(args.data, args.time_column, pipe.config.names)
    generator = torch.Generator().manual_seed(args.seed)
    if args.fill:
        rows = fill(pipe, table, args, generator)
    else:
        found = pipe.forecast(table.values, args.horizon, args.samples, args.quantiles, args.steps, generator)
        times = table.later_times(args.horizon)
        rows = [
            (times[k], name, found.series[:, i, k].mean(), *found.quantiles[:, i, k])
            for i, name in enumerate(table.names)
            for k in range(args.horizon)
        ]
    write_file(args.output, to_csv(rows, args.quantiles))
    print(f"{args.output}: {len(rows):,} rows, mean and quantiles of {args.samples} drawn series")
    return 0


def fill(pipe, table, args: argparse.Namespace, generator) -> list[tuple]:
    """A row for each gap: time, variable, mean and quantiles; of windows in turn, each around its gaps."""
    import numpy as np
    import torch

    values, length = table.values, pipe.transformer.config.length
    gaps = ~np.isfinite(values)
    if not gaps.any():
        raise ValueError(f"{args.data!r} has no gaps to fill; leave --fill out to go on with it.")
    length, steps = min(length, values.shape[1]), values.shape[1]
    times, rows, done = range(steps) if table.times is None else table.times, [], np.zeros(steps, dtype=bool)
    for first in np.flatnonzero(gaps.any(axis=0)):
        if done[first]:
            continue
        start = int(min(max(0, first - length // 2), steps - length))
        window = values[:, start : start + length]
        found = pipe(
            args.samples, None, window, num_inference_steps=args.steps, generator=generator, output_type="pt"
        ).series
        quantiles = torch.quantile(found, torch.tensor(args.quantiles, dtype=found.dtype), dim=0)
        for i, k in zip(*np.nonzero(~np.isfinite(window))):
            if not done[start + k]:
                told = float(found[:, i, k].mean()), *quantiles[:, i, k].tolist()
                rows.append((times[start + int(k)], table.names[i], *told))
        done[start : start + length] = True
    return rows


def to_csv(rows: list[tuple], quantiles: list[float]) -> str:
    """The table as text."""
    import pandas as pd

    return pd.DataFrame(rows, columns=[*COLUMNS, *(f"q{level:g}" for level in quantiles)]).to_csv(index=False)


def _is_ours(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return file.readline().startswith(",".join(COLUMNS) + ",q")
