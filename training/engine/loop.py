"""The training loop, one function to be read from top to bottom, and the parts that are its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed

from brickwork.gen.compiling import compile_blocks
from brickwork.training.config.optimizer import OptimizerConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.data.buckets import STEP, random_numbers
from brickwork.training.data.images import DataLost
from brickwork.training.data.stream import PositionBatches, stream_batches
from brickwork.training.engine.checkpoints import (
    CheckpointFolder,
    frozen_names,
    gathered,
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
)
from brickwork.training.engine.ema import EMA
from brickwork.training.engine.further import FurtherLosses, forward
from brickwork.training.engine.guards import (
    StopSignal,
    check_unchanged,
    note_start,
    on_main_process,
    run_folder,
    versions,
)
from brickwork.training.engine.previews import due, evaluate_averages, is_unevaluated, note_evaluation
from brickwork.training.engine.runlog import RunLog, level_quantiles
from brickwork.training.engine.schedule import begin, learning_rate, phase_at
from brickwork.training.engine.settings import EngineSettings
from brickwork.training.engine.zero import fit_zero
from brickwork.training.objectives import build_objectives, check_names
from brickwork.training.task import Task


def fit_distribution(task: Task, run: RunConfig, optimizer: OptimizerConfig) -> None:
    """Fit the way that accelerate shares a task's network among processes to this network.

    FSDP2 shards block by block, and accelerate refuses a network without one of the kinds of blocks that its class
    names (`_no_split_modules`): a LEGO stack without a pretrained brick, a UNet without one sort of stage. Those that
    it has are enough.

    Raises:
        ValueError: for the first FSDP, which keeps all parameters of a process in one flat tensor, for networks
            that FSDP2 cannot draw with, for Muon, which needs matrices in one piece, and for what DeepSpeed cannot do
            (see `fit_zero`).
    """
    accelerator, network = task.accelerator, task.network
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        fit_zero(task, run, optimizer)
    elif accelerator.is_fsdp2:
        if optimizer.type == "muon":
            raise ValueError(
                "accelerate is set up for FSDP, and `optimizer.type` is 'muon', which needs matrices in one piece; "
                "take adamw, or launch with one_node.yaml of training/configs/accelerate/."
            )
        if task.drawn_in_part:
            raise ValueError(
                f"accelerate is set up for FSDP, but pictures are drawn with a part of a {type(network).__name__}, "
                "which is not gathered alone; launch with one_node.yaml or deepspeed.yaml of "
                "training/configs/accelerate/."
            )
        plugin = accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            kinds = {type(module).__name__ for module in network.modules()}
            named = getattr(network, "_no_split_modules", None) or []
            plugin.transformer_cls_names_to_wrap = [name for name in named if name in kinds]
    elif accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "accelerate is set up for FSDP version 1, whose optimiser states the checkpoints here cannot hold; "
            "training/configs/accelerate/one_node_fsdp2.yaml shards weights, gradients, optimiser and averages alike "
            "(fsdp_version: 2)."
        )


@dataclass
class Run:
    """Everything that a run works with.

    Attributes:
        config: the resolved configuration, of which the engine reads its `settings` and the task its `sections` alone.
        task: what is trained, on what, and what is left of it.
        further: losses beside the task's own.
        settings: what of the configuration is the engine's.
        accept_changes: go on with a configuration or data that differ from the run's so far.
    """

    config: Any
    task: Task
    further: FurtherLosses
    settings: EngineSettings
    accept_changes: bool = False

    @property
    def accelerator(self) -> Accelerator:
        """Devices, processes and precision."""
        return self.task.accelerator


def prepare(kind: type[Task], config: Any, accept_changes: bool = False, dry_run: bool = False) -> Run:
    """A run of a kind of task, built from its configuration; a dry run leaves nothing behind.

    Raises:
        ValueError: for a configuration that describes something else, or things that do not fit together.
    """
    settings = EngineSettings.of(config)
    sections = SimpleNamespace(**{name: getattr(config, name) for name in kind.sections})
    set_seed(settings.run.seed)
    objectives = build_objectives(config.objectives)
    accelerator = Accelerator(
        mixed_precision=settings.run.mixed_precision,
        gradient_accumulation_steps=settings.run.gradient_accumulation_steps,
        kwargs_handlers=kind.handlers(sections),
    )
    task = kind.build(sections, accelerator, dry_run)
    task.phases()  # what does not add up is said now
    accelerator.print(task.plan)
    objectives = [*task.objectives, *objectives]
    check_names(objectives)
    further = FurtherLosses(objectives, task, settings.optimizer, settings.run.seed)
    return Run(config, task, further, settings, accept_changes)


def train(run: Run) -> int:
    """Train until `total_images`, going on from the newest checkpoint of the run's folder.

    Returns:
        Images seen; fewer than `total_images` after SIGTERM or SIGINT.

    Raises:
        ValueError: for a folder in use or of another training, data that cannot be read, gradients that stay
            non-finite, a disk that takes no checkpoint. What was saved is never touched.
    """
    folder = Path(run.settings.run.output_dir)
    fit_distribution(run.task, run.settings.run, run.settings.optimizer)
    with on_main_process(run.accelerator, run_folder(folder)), StopSignal() as stop:
        return _train(run, folder, stop)


def _train(run: Run, folder: Path, stop: StopSignal) -> int:
    task, further, given, accelerator = run.task, run.further, run.settings, run.accelerator
    settings, network = given.run, task.network
    if settings.compile:
        compile_blocks(network, training=True)
    checkpoints = CheckpointFolder(folder / "checkpoints", settings.keep_checkpoints)
    found = checkpoints.newest()
    images = 0 if found is None else found[1]["images"]
    unevaluated = is_unevaluated(folder, images)
    phases, frozen = task.phases(), frozen_names(network)
    # What was saved at the end of a phase is still of that phase.
    phase = phase_at(phases, max(images - settings.batch_size, 0))
    model, optimizer = begin(task, given.optimizer, phase, len(phases) > 1, further.groups)
    ema = EMA(network, given.ema.half_life_images, given.ema.rampup_ratio, frozen)
    resume(run, found, optimizer, ema)
    if accelerator.is_main_process:
        note_start(folder, given.record, images, accelerator, type(model).__name__)

    batches = PositionBatches(
        settings.batch_size, settings.gradient_accumulation_steps, accelerator.process_index,
        accelerator.num_processes, start=images,
    )  # fmt: skip
    loader = iter(stream_batches(task.stream, batches, given.num_workers))
    levels = [f"sigma_{level:.3g}" for level in further.levels(level_quantiles()).tolist()]
    log = RunLog(folder, accelerator, settings.total_images, images, levels, settings.wandb_project, unevaluated)
    if unevaluated:
        evaluate_averages(task, given, ema, images, log, stop)
    try:
        while images < settings.total_images and not stop.agreed(accelerator):
            if images >= phase.end:
                ema.settle()
                phase = phase_at(phases, images)
                model, optimizer = begin(task, given.optimizer, phase, len(phases) > 1, further.groups)
            rate = learning_rate(given.optimizer, images - phase.start, phase.end - phase.start, settings.batch_size)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            number = images // settings.batch_size
            torch.manual_seed(step_seed(settings.seed, number, accelerator.process_index))
            for _ in range(settings.gradient_accumulation_steps):
                batch = next_batch(loader, accelerator.device)
                log.add_broken(batch["broken"], given.max_broken_images)
                with accelerator.accumulate(model):
                    losses, extra, total = compute(run, model, batch, number)
                    accelerator.backward(total)
                log.add(losses, batch["level"], extra)
            norm = accelerator.clip_grad_norm_(network.parameters(), given.optimizer.max_grad_norm)
            finite = log.check_finite(norm, settings.max_nonfinite_steps)
            further.update(rate, given.optimizer.max_grad_norm, finite)
            # An fp16 scaler must see every step: it skips bad ones itself, and lowers its scale.
            if finite or accelerator.scaler is not None:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            images += settings.batch_size
            ema.update(images - phase.start, settings.batch_size)
            log.step(settings.batch_size)
            if due(images, settings.log_images, settings):
                log.write(images, rate)
            note_evaluation(task, given, images)
            if due(images, settings.checkpoint_images, settings):
                save_checkpoint(run, checkpoints, optimizer, ema, images)
            evaluate_averages(task, given, ema, images, log, stop)
    except DataLost:
        if accelerator.num_processes == 1:  # otherwise the others wait in the step, and cannot take part
            save_checkpoint(run, checkpoints, optimizer, ema, images)
        raise
    if images < settings.total_images:
        save_checkpoint(run, checkpoints, optimizer, ema, images)
        accelerator.print(f"Asked to stop: saved at {images:,} images; the same command goes on from there.")
    else:
        task.export({name: gathered(tensor) for name, tensor in ema.state_dict().items()}, folder)
        accelerator.wait_for_everyone()
    log.close()
    return images


def next_batch(loader: Iterator[dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    """The next micro-batch, on the device but for `broken`, which the log reads: that must not wait for the device."""
    batch = next(loader)
    return {
        name: tensor if name == "broken" else tensor.to(device, non_blocking=True) for name, tensor in batch.items()
    }


def compute(
    run: Run, model: torch.nn.Module, batch: dict[str, torch.Tensor], number: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """The losses of a micro-batch.

    Args:
        run: of the loop.
        model: the network, as it is wrapped.
        batch: on the device.
        number: of the optimiser's step.

    Returns:
        The task's loss of each image `(B,)`, further losses by name, and the number to minimise.
    """
    with run.accelerator.autocast():
        step = run.further.rewrite(run.task.step(batch, number), batch["level"])
        step = forward(run.task, model, step, run.further.taps, inner=run.task.network)
        losses = run.task.losses(step)
        extra, weighted = run.further(step)
    return losses, extra, losses.mean() + weighted


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of torch's own random numbers in a step (a network's dropout), so that they need no saving."""
    return int(random_numbers(seed, STEP, step).bit_generator.random_raw()) // 2 + process


def save_checkpoint(run: Run, checkpoints: CheckpointFolder, optimizer, ema: EMA, images: int) -> None:
    """Save everything that a run needs to go on; all processes take part."""
    scaler = run.accelerator.scaler
    checkpoints.save(
        images,
        {
            "model": ema.followed,
            "ema": ema.state_dict(),
            "optimizer": optimizer_tensors(optimizer, run.task.network),
            **run.further.state_dict(),
        },
        {
            "config": run.settings.record,
            "data": run.task.stream.fingerprint,
            "frozen": run.task.fixed,
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
    task, (tensors, state) = run.task, found
    if not run.accept_changes:
        check_unchanged(state, run.settings, task.stream.fingerprint, task.network)
        if state.get("frozen", task.fixed) != task.fixed:
            raise ValueError(
                f"The run in {run.settings.run.output_dir!r} began with other weights in the parts that do not learn "
                "than `model.init_from` or `model.wrap` holds now; put those back, or train into another "
                "`run.output_dir`; --accept-changes goes on nevertheless."
            )
    load_tensors(ema.followed, tensors["model"])
    load_optimizer_tensors(optimizer, task.network, tensors["optimizer"])
    ema.load_state_dict(tensors["ema"])
    run.further.load_state_dict(tensors, run.accept_changes)
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.accelerator.print(f"Going on from {state['images']:,} images.")
