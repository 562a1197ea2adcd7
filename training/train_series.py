"""Train a denoiser of series on a CSV or Parquet file.

    accelerate launch training/train_series.py data.source=series.csv run.output_dir=runs/series

Running the same command again goes on from the newest checkpoint. The run leaves `pipeline/`, a `TimeSeriesPipeline`.
"""

from brickwork.training.commands.train import task_script
from brickwork.training.tasks.series import SeriesTask

main = task_script(__file__, __doc__, SeriesTask)

if __name__ == "__main__":
    raise SystemExit(main())
