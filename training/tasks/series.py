"""The task of `train_series.py`: a network for pictures learns to denoise folded series."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator

from brickwork.eval.report.blocks import NoMatplotlib, Plot
from brickwork.eval.sets.series import SeriesTable, read_series
from brickwork.files import write_file
from brickwork.gen.networks.series import SeriesDenoiser
from brickwork.gen.period_fold import PeriodFold
from brickwork.pipelines.series import TimeSeriesPipeline
from brickwork.training.config.section import require
from brickwork.training.config.series import SeriesConfig
from brickwork.training.data.series import SeriesWindows, window_starts
from brickwork.training.engine.previews import SAMPLES
from brickwork.training.engine.schedule import course
from brickwork.training.task import Step
from brickwork.training.tasks.backbones import build_objective
from brickwork.training.tasks.denoising import DenoisingTask

SCORED = 128  # held-out windows


class SeriesTask(DenoisingTask):
    """Windows of a series in noise, of which some steps are known; the loss is that of the others.

    Attributes:
        table: the series.
        windows: those of its training part.
        held_out: windows of the rest `(N, variables, length)`, scaled.
    """

    configuration, sections = SeriesConfig, (*DenoisingTask.sections, "metrics")
    table: SeriesTable
    windows: SeriesWindows
    held_out: torch.Tensor

    @classmethod
    def build(cls, config: SeriesConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        task, data, objective = cls(), config.data, config.objective
        require(config.model.type == "SeriesDenoiser", "model.type", config.model.type, "leave it out")
        require(config.metrics.every_images == 0, "metrics.every_images", config.metrics.every_images, "set it to 0")
        task.config, task.accelerator, task.parameterization = config, accelerator, build_objective(objective)
        task.table = table = read_series(data.source, data.time_column, data.columns)
        steps = table.values.shape[1]
        training = steps - int(steps * data.held_out)
        task.windows = task.stream = SeriesWindows(
            table, data.length, training, config.run.seed, objective.forecasts, objective.gaps
        )
        fold = None if config.model.delay else periods_of(config, task.windows)
        task.network = SeriesDenoiser(
            in_channels=len(table.names),
            length=data.length,
            **({"periods": fold.periods, "weights": fold.weights} if fold else {"delay": config.model.delay}),
            network_type=config.model.network,
            network=config.model.config,
        )
        task.held_out = _held_out(table, task.windows, training)
        shares = ", ".join(f"{p} ({w:.0%})" for p, w in zip(fold.periods, fold.weights)) if fold else ""
        task.plan = (
            f"SeriesDenoiser: {task.sizes()[0]:,} parameters; variables {', '.join(table.names)}; "
            + (f"periods {shares}.\n" if fold else f"columns of {config.model.delay[1]} steps.\n")
            + course(config.run, "windows", len(task.windows.starts), len(task.held_out), accelerator.num_processes)
        )
        return task

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        return self.noisy(batch["image"], batch, {"known": batch["image"], "mask": batch["mask"]})

    def losses(self, step: Step) -> torch.Tensor:
        """The mean squared error of the unknown steps `(B,)`; of windows that are all known, of all steps."""
        target = self.parameterization.target(step.images, step.noise, step.level)
        unknown = 1 - step.conditions["mask"].float()
        unknown = torch.where(unknown.sum((1, 2), keepdim=True) > 0, unknown, torch.ones_like(unknown))
        error = (step.outputs[-1].float() - target).square() * unknown
        return error.sum((1, 2)) / unknown.sum((1, 2))

    def pipeline(self, network: torch.nn.Module) -> TimeSeriesPipeline:
        windows, table = self.windows, self.table
        scheduler = self.parameterization.scheduler()
        return TimeSeriesPipeline(
            network, scheduler, windows.mean, windows.std, table.names, table.step, self.config.samples.steps
        )

    def preview(self, images: int, log: Any) -> None:
        """The loss of forecasts of held-out windows, at fixed noise; a plot of some series drawn from nothing."""
        if len(self.held_out):
            loss = self._held_out_loss()
            log.scalars(images, {"held_out/loss": loss})
            self.accelerator.print(f"{images:,} windows: held-out loss {loss:.4f}")
        count = self.config.samples.count
        if not count:
            return
        pipeline = self.pipeline(self.network)
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(count, generator=[torch.Generator().manual_seed(k) for k in range(count)]).series
        if self.accelerator.is_main_process:
            lines = {f"series {k}": (np.arange(drawn.shape[-1]), series[0]) for k, series in enumerate(drawn)}
            file = Path(self.config.run.output_dir) / SAMPLES / f"images-{images:012d}.png"
            with suppress(NoMatplotlib):
                write_file(file, Plot(lines, "steps", self.table.names[0]).png())

    def _held_out_loss(self) -> float:
        generator = torch.Generator().manual_seed(0)
        images, batch = self.held_out, {}
        batch["noise"] = torch.randn(images.shape, generator=generator)
        batch["level"] = torch.special.ndtri((torch.arange(len(images)) + 0.5) / len(images))
        mask = torch.zeros_like(images)
        mask[..., : images.shape[-1] // 2] = 1
        device = self.accelerator.device
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.no_grad(), self.accelerator.autocast():
            step = self.noisy(images.to(device), batch, {"known": images.to(device), "mask": mask.to(device)})
            step.outputs = self.call(self.network, step)
            return self.losses(step).mean().item()


def periods_of(config: SeriesConfig, windows: SeriesWindows) -> PeriodFold:
    """The configuration's periods, or the strongest of the longest stretch without gaps, two of which fit a window."""
    if config.model.periods is not None:
        return PeriodFold(config.model.periods)
    complete = np.isfinite(windows.values).all(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], complete.astype(int), [0]])))
    first, last = max(zip(edges[::2], edges[1::2]), key=lambda pair: pair[1] - pair[0])
    return PeriodFold.fit(windows.values[:, first:last], top_k=config.model.top_k, longest=config.data.length // 2)


def _held_out(table: SeriesTable, windows: SeriesWindows, training: int) -> torch.Tensor:
    """Windows of what is not for training, spread evenly; none of them reaches into the training part."""
    rest = (table.values[:, training:] - windows.mean[:, None]) / windows.std[:, None]
    starts = window_starts(rest, windows.length)
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, SCORED).round().astype(int))] if len(starts) else starts
    cut = [rest[:, start : start + windows.length] for start in chosen]
    return torch.from_numpy(np.stack(cut)).float() if cut else torch.zeros(0, len(table.names), windows.length)
