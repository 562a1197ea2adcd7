"""The training loop, one function to be read from top to bottom, and the parts that are its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from brickwork.eval.held_out.paired_loss import PairedSet, estimates
from brickwork.eval.metrics.live import LiveMetrics
from brickwork.gen.conditioning import crop_coordinates
from brickwork.gen.parameterization import EDMObjective
from brickwork.gen.taps import tapped
from brickwork.training.config.config import TrainConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.data.buckets import STEP, random_numbers
from brickwork.training.data.images import DataLost
from brickwork.training.data.stream import PositionBatches, TrainingStream, stream_batches
from brickwork.training.engine.checkpoints import (
    CheckpointFolder,
    frozen_names,
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    whole,
)
from brickwork.training.engine.distribution import fit_distribution
from brickwork.training.engine.ema import EMA
from brickwork.training.engine.guards import (
    StopSignal,
    check_unchanged,
    note_start,
    on_main_process,
    run_folder,
    versions,
    write_text,
)
from brickwork.training.engine.previews import averaged_copy, export_pipeline, measure, show
from brickwork.training.engine.runlog import RunLog, level_quantiles
from brickwork.training.engine.schedule import learning_rate
from brickwork.training.tasks.brick_by_brick import Stage, enter, frozen_digest, pipeline_so_far, stage_at, stages_of


def denoising_loss(run: "Run", model: torch.nn.Module, batch: dict, bricks: tuple[int, ...] | None) -> torch.Tensor:
    """The loss of each image `(B,)`, averaged over the estimates of the bricks that ran and learn."""
    images, noise = batch["image"], batch["noise"]
    num_classes, labels = run.model.config.num_classes, None
    if num_classes is not None:
        hidden = batch["label_draw"] < run.config.objective.label_dropout
        labels = torch.where(hidden, num_classes, batch["label"])
    sigma = run.objective.noise_levels(batch["level"])
    sample, timestep = run.objective.network_inputs(images, noise, sigma)
    place = {}
    if "crop" in batch:
        place["coordinates"] = crop_coordinates(batch["crop"], *images.shape[-2:])
    outputs = estimates(model, sample, timestep, labels, bricks, **place)
    learning = [output for output in outputs if output.requires_grad] or outputs
    return torch.stack([run.objective.losses(output, images, noise, sigma) for output in learning]).mean(dim=0)


@dataclass
class Run:
    """Everything that a run works with; another task brings another of these, and the loop stays.

    Attributes:
        config: the resolved configuration.
        accelerator: devices, processes and precision.
        model: the network; parameters that do not require gradients stay as they are and are not saved.
        objective: noise levels, network inputs, losses (see `brickwork.gen.parameterization`).
        stream: samples by position.
        held_out: the frozen list that the averaged weights are scored on, if any.
        make_pipeline: network => pipeline, for sample grids, metrics and the final export.
        metrics: distances to a reference that the averaged weights are measured by, every `metrics.every_images`.
        loss: `(run, model, batch, bricks)` => loss of each image `(B,)`.
        objectives: further losses, each `(batch, taps)` => `{name: loss}`, added up.
        taps: names of modules whose outputs these get to see, as `{name: output}`.
        preview: `(run, network, images, log)`: what is shown of the averaged weights on the way.
        export: averaged weights, run folder => what the run leaves; by default the whole pipeline in `pipeline/`.
        accept_changes: go on with a configuration or data that differ from the run's so far.
        bricks: the bricks trained so far and now, which is what is shown and left; `None` for all.
        frozen: a checksum of the bricks that do not learn.
    """

    config: TrainConfig
    accelerator: Accelerator
    model: torch.nn.Module
    objective: EDMObjective
    stream: TrainingStream
    held_out: PairedSet | None = None
    make_pipeline: Callable | None = None
    metrics: LiveMetrics | None = None
    loss: Callable[..., torch.Tensor] = denoising_loss
    objectives: Sequence[Callable[[dict, dict], dict[str, torch.Tensor]]] = ()
    taps: Sequence[str] = ()
    preview: Callable[..., None] = show
    export: Callable[[dict[str, torch.Tensor], Path], None] | None = None
    accept_changes: bool = False
    bricks: tuple[int, ...] | None = None
    frozen: str | None = None


def train(run: Run) -> int:
    """Train until `total_images`, going on from the newest checkpoint of the run's folder.

    Returns:
        Images seen; fewer than `total_images` after SIGTERM or SIGINT.

    Raises:
        ValueError: for a folder in use or of another training, data that cannot be read, gradients that stay
            non-finite, a disk that takes no checkpoint. What was saved is never touched.
    """
    folder, accelerator = Path(run.config.run.output_dir), run.accelerator
    fit_distribution(run)
    with on_main_process(accelerator, run_folder(folder)), StopSignal() as stop:
        return _train(run, folder, stop)


def _train(run: Run, folder: Path, stop: StopSignal) -> int:
    config, accelerator, network = run.config, run.accelerator, run.model
    settings = config.run
    if settings.compile:
        network.compile_repeated_blocks(fullgraph=True)
    checkpoints = CheckpointFolder(folder / "checkpoints", settings.keep_checkpoints)
    found = checkpoints.newest()
    images = 0 if found is None else found[1]["images"]
    look_owed = owes_a_look(run, images)
    stages, frozen, run.frozen = stages_of(config, network), frozen_names(network), frozen_digest(network)
    # What was saved at the end of a stage is still of that stage.
    stage = stage_at(stages, max(images - settings.batch_size, 0))
    model, optimizer = enter(run, stage, len(stages) > 1)
    ema = EMA(network, config.ema.half_life_images, config.ema.rampup_ratio, frozen)
    resume(run, found, optimizer, ema)
    if accelerator.is_main_process:
        note_start(folder, config, images, accelerator, type(model).__name__)

    batches = PositionBatches(
        settings.batch_size, settings.gradient_accumulation_steps, accelerator.process_index,
        accelerator.num_processes, start=images,
    )  # fmt: skip
    loader = iter(stream_batches(run.stream, batches, config.data.num_workers))
    log = RunLog(folder, accelerator, settings.total_images, images, _level_names(run), settings.wandb_project)
    if look_owed:
        look_at_averages(run, ema, images, log, stop)
    try:
        while images < settings.total_images and not stop.agreed(accelerator):
            if images >= stage.end:
                ema.settle()
                stage = stage_at(stages, images)
                model, optimizer = enter(run, stage, len(stages) > 1)
            rate = learning_rate(config, images - stage.start, stage.end - stage.start)
            for group in optimizer.param_groups:
                group["lr"] = rate
            step = images // settings.batch_size
            torch.manual_seed(step_seed(settings.seed, step, accelerator.process_index))
            bricks = draw_bricks(config, getattr(network, "num_bricks", 0), step, stage)
            for _ in range(settings.gradient_accumulation_steps):
                batch = next_batch(loader, accelerator.device)
                log.add_broken(batch["broken"], config.data.max_broken_images)
                with accelerator.accumulate(model):
                    with accelerator.autocast(), tapped(network, run.taps) as taps:
                        losses = run.loss(run, model, batch, bricks)
                        extra = further_losses(run.objectives, batch, taps)
                    accelerator.backward(losses.mean() + sum(extra.values()))
                log.add(losses, batch["level"], extra)
            norm = accelerator.clip_grad_norm_(network.parameters(), config.optimizer.max_grad_norm)
            # An fp16 scaler must see every step: it skips bad ones itself, and lowers its scale.
            if log.check_finite(norm, settings.max_nonfinite_steps) or accelerator.scaler is not None:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            images += settings.batch_size
            ema.update(images - stage.start, settings.batch_size)
            log.step(settings.batch_size)
            if _due(images, settings.log_images, settings):
                log.write(images, rate)
            note_look(run, images)
            if _due(images, settings.checkpoint_images, settings):
                save_checkpoint(run, checkpoints, optimizer, ema, images)
            look_at_averages(run, ema, images, log, stop)
    except DataLost:
        if accelerator.num_processes == 1:  # otherwise the others wait in the step, and cannot take part
            save_checkpoint(run, checkpoints, optimizer, ema, images)
        raise
    if images < settings.total_images:
        save_checkpoint(run, checkpoints, optimizer, ema, images)
        accelerator.print(f"Asked to stop: saved at {images:,} images; the same command goes on from there.")
    else:
        export(run, ema, folder)
    log.close()
    return images


def next_batch(loader: Iterator[dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    """The next micro-batch, on the device but for `broken`, which the log reads: that must not wait for the device."""
    batch = next(loader)
    return {
        name: tensor if name == "broken" else tensor.to(device, non_blocking=True) for name, tensor in batch.items()
    }


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of torch's own random numbers in a step (a network's dropout), so that they need no saving."""
    return int(random_numbers(seed, STEP, step).bit_generator.random_raw()) // 2 + process


def draw_bricks(config: TrainConfig, num_bricks: int, step: int, stage: Stage | None = None) -> tuple[int, ...] | None:
    """The bricks that a step runs, alike on all processes; `None` for the whole network.

    All of its stage, or on a share of the steps a random subset of them.
    """
    if num_bricks == 0:
        return None
    random, stage = random_numbers(config.run.seed, STEP, step), stage or Stage(0, 0, tuple(range(num_bricks)))
    if random.random() >= config.objective.brick_dropout:
        return stage.runs
    bricks = range(num_bricks) if stage.runs is None else stage.runs
    subset = int(random.integers(1, 2 ** len(bricks)))
    return stage.with_a_learner(tuple(brick for brick in bricks if subset >> brick & 1))


def further_losses(objectives: Sequence[Callable], batch: dict, taps: dict) -> dict[str, torch.Tensor]:
    """What the run's further objectives add to the loss, by name."""
    losses: dict[str, torch.Tensor] = {}
    for objective in objectives:
        losses |= objective(batch, taps)
    return losses


def save_checkpoint(run: Run, checkpoints: CheckpointFolder, optimizer, ema: EMA, images: int) -> None:
    """Save everything that a run needs to go on; all processes take part."""
    scaler = run.accelerator.scaler
    checkpoints.save(
        images,
        {
            "model": ema.followed,
            "ema": ema.state_dict(),
            "optimizer": optimizer_tensors(optimizer, run.model),
        },
        {
            "config": run.config.to_yaml(),
            "data": run.stream.fingerprint,
            "frozen": run.frozen,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "versions": versions(),
        },
        write=run.accelerator.is_main_process,
    )
    run.accelerator.wait_for_everyone()


def resume(run: Run, found: tuple[dict, dict] | None, optimizer, ema: EMA) -> None:
    """Take over a checkpoint's tensors and state, if there is one."""
    if found is None:
        return
    tensors, state = found
    if not run.accept_changes:
        check_unchanged(state, run.config, run.stream.fingerprint, run.model)
        if state.get("frozen", run.frozen) != run.frozen:
            raise ValueError(
                f"The run in {run.config.run.output_dir!r} began with other weights in the bricks that do not learn "
                "than `model.init_from` or `model.wrap` holds now; put those back, or train into another "
                "`run.output_dir`; --accept-changes goes on nevertheless."
            )
    load_tensors(ema.followed, tensors["model"])
    load_optimizer_tensors(optimizer, run.model, tensors["optimizer"])
    ema.load_state_dict(tensors["ema"])
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.accelerator.print(f"Going on from {state['images']:,} images.")


def look_at_averages(run: Run, ema: EMA, images: int, log: RunLog, stop: StopSignal) -> None:
    """Measure what the averaged weights draw, and show it, where that is due; a stop cancels the measuring."""
    measured, shown = _looks_due(run, images)
    if not (measured or shown):
        return
    with ema.applied():
        if measured and not measure(run, run.model, images, log, lambda: stop.agreed(run.accelerator)):
            return
        if shown:
            run.preview(run, run.model, images, log)
    if run.accelerator.is_main_process:
        _look_note(run).unlink(missing_ok=True)


def note_look(run: Run, images: int) -> None:
    """Note, before the checkpoint is saved, that its averages are to be looked at: a killed run makes up for it."""
    if any(_looks_due(run, images)) and run.accelerator.is_main_process:
        write_text(_look_note(run), f"{images}\n")


def owes_a_look(run: Run, images: int) -> bool:
    """Whether a run was killed or stopped before it had looked at the averages that it goes on from."""
    return _look_note(run).is_file() and _look_note(run).read_text().strip() == str(images)


def _looks_due(run: Run, images: int) -> tuple[bool, bool]:
    """Whether distances are to be measured after `images`, and whether pictures are to be shown."""
    settings = run.config.run
    measured = run.metrics is not None and _due(images, run.config.metrics.every_images, settings)
    return measured, _due(images, settings.sample_images, settings)


def _look_note(run: Run) -> Path:
    return Path(run.config.run.output_dir) / "look_due"


def export(run: Run, ema: EMA, folder: Path) -> None:
    """Leave the averaged weights as the run's result."""
    weights = {name: whole(tensor) for name, tensor in ema.state_dict().items()}
    if run.export is not None:
        if run.accelerator.is_main_process:
            run.export(weights, folder)
    elif run.make_pipeline is not None:
        network = averaged_copy(run.model, weights)  # by all processes: what is frozen may be sharded too
        if run.accelerator.is_main_process:
            path = export_pipeline(pipeline_so_far(run, network), folder, run.config.objective)
            run.accelerator.print(f"The pipeline with the averaged weights is in {path}.")
    run.accelerator.wait_for_everyone()


def _due(images: int, interval: int, settings: RunConfig) -> bool:
    """Whether a step that ended at `images` passed a multiple of `interval`, or was the last; 0 for never."""
    passed = interval > 0 and images // interval > (images - settings.batch_size) // interval
    return passed or (interval > 0 and images >= settings.total_images)


def _level_names(run: Run) -> list[str]:
    return [f"sigma_{sigma:.3g}" for sigma in run.objective.noise_levels(level_quantiles()).tolist()]
