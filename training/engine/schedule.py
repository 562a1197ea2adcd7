"""The optimiser, its parts of a run, and the course of its rate in images."""

import math
from collections.abc import Sequence

import torch

from brickwork.errors import counted
from brickwork.training.config.optimizer import OptimizerConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.engine.muon import Muon
from brickwork.training.task import Phase, Task


def learning_rate(optimizer: OptimizerConfig, images: int, total: int, batch_size: int) -> float:
    """The rate of the step that begins at `images` images: a linear rise, the chosen course, a linear fall to zero.

    Args:
        optimizer: the course and its highest rate.
        images: since the course began.
        total: images of the course from its beginning to its end.
        batch_size: images of a step.
    """
    rise = min(1.0, (images + batch_size) / max(optimizer.warmup_images, 1))
    fall = min(1.0, (total - images) / optimizer.cooldown_images) if optimizer.cooldown_images else 1.0
    course = 1.0
    if optimizer.schedule == "cosine":
        course = (1 + math.cos(math.pi * min(1.0, images / total))) / 2
    elif optimizer.schedule == "inverse_sqrt":
        course = 1 / math.sqrt(max(images / optimizer.decay_images, 1.0))
    return optimizer.learning_rate * rise * course * max(fall, 0.0)


def course(run: RunConfig, data: str, rows: int, held_out: int, processes: int) -> str:
    """How long a run is and how its steps are divided, to be read before the first one.

    Args:
        run: of the run.
        data: what it learns from, such as `"captioned images"`.
        rows: number of these.
        held_out: number of those that it does not learn from.
        processes: that share a step.
    """
    micro = run.batch_size // (run.gradient_accumulation_steps * processes)
    data = data.replace("images", "image", 1) if rows == 1 else data
    return (
        f"{rows:,} {data} to train on, {held_out:,} held out; {run.total_images:,} images are "
        f"{run.total_images / rows:,.1f} epochs, {counted(-(-run.total_images // run.batch_size), 'step')}.\n"
        f"{counted(run.batch_size)} a step = {micro} × {run.gradient_accumulation_steps} accumulated × {processes} "
        f"process(es); precision {run.mixed_precision}."
    )


def phase_at(phases: Sequence[Phase], images: int) -> Phase:
    """The phase of the step that begins at `images` images; the last one for what comes after."""
    return next((phase for phase in phases if images < phase.end), phases[-1])


def begin(
    task: Task, settings: OptimizerConfig, phase: Phase, several: bool = False, parts: Sequence[tuple[str, float]] = ()
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Begin a phase: the network, wrapped for its processes with what learns in it, and an optimiser for that.

    Args:
        task: whose `phase` this becomes.
        settings: of the optimiser.
        phase: to begin.
        several: whether the run has more than one.
        parts: see `build_optimizer`.

    Raises:
        ValueError: for several phases of a sharded network.
    """
    accelerator, network = task.accelerator, task.network
    if several:
        if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
            raise ValueError(
                "`objective.brick_images` is given, but sharded networks cannot be thawed part by part; launch with "
                "DDP, or train one brick a run (`objective.train_bricks`, `model.init_from`)."
            )
        accelerator.free_memory()  # lets go of the last phase's wrapper and optimiser
        learns = phase.parameters(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in learns)
    task.phase = phase
    network.train()  # what is frozen for good sees to itself
    return accelerator.prepare(network, build_optimizer(settings, network, accelerator.device, parts))


def build_optimizer(
    settings: OptimizerConfig, network: torch.nn.Module, device: torch.device, parts: Sequence[tuple[str, float]] = ()
) -> torch.optim.Optimizer:
    """The optimiser of the parameters that are not frozen: AdamW, fused where torch can, with 8-bit states, or Muon.

    Args:
        settings: kind, rate and decay.
        network: to train.
        device: that it will be on.
        parts: prefixes of parameters that have a group of their own, with its rate over the run's.
    """
    groups = [{"params": [], "rate": 1.0}, *({"params": [], "rate": rate} for _, rate in parts)]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            own = next((number for number, (prefix, _) in enumerate(parts, 1) if name.startswith(prefix)), 0)
            groups[own]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    options = {"lr": settings.learning_rate, "betas": tuple(settings.betas), "weight_decay": settings.weight_decay}
    if settings.type == "adamw":
        return torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"), **options)
    if settings.type == "muon":
        return Muon(groups, **options)
    try:
        import bitsandbytes
    except ImportError:
        raise ValueError(
            f"`optimizer.type` is {settings.type!r}, which needs bitsandbytes; pip install it, or take adamw."
        ) from None
    return bitsandbytes.optim.AdamW8bit(groups, **options)
