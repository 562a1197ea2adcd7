"""Which bricks of a LEGO stack learn, and when: all at once, some of them, or one after another from the lowest up.

The paper (arXiv 2310.06389) says that bricks can be trained one after another and that the lower ones may come from
elsewhere; its authors released neither. A run is a row of stages. In each some bricks learn, those below them run
without gradients, and those above do not run at all. When a stage ends, its averaged weights become the weights, so
that the next brick refines what sampling will hand it; optimiser, averages' ramp and learning rate begin anew.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from brickwork.pipelines.schedules import BrickSchedule
from brickwork.training.engine.schedule import build_optimizer


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        start: images at which it begins.
        end: images at which it ends.
        learns: bricks that learn; empty for a network without bricks, all of which learns.
        runs: bricks that run; `None` for all.
    """

    start: int
    end: int
    learns: tuple[int, ...] = ()
    runs: tuple[int, ...] | None = None

    def with_a_learner(self, bricks: tuple[int, ...]) -> tuple[int, ...]:
        """A subset of the bricks that run, with the last one that learns where it has none."""
        return bricks if set(bricks) & set(self.learns) else (*bricks, self.learns[-1])

    def parameters(self, network: torch.nn.Module) -> set[str]:
        """The names of what learns.

        The condition is every brick's, so it learns only while no brick that reads it is frozen: with the first ones.
        """
        if not self.learns:
            return {name for name, _ in network.named_parameters()}
        own = [brick for brick in range(self.learns[-1] + 1) if network.bricks[brick] in network.own_bricks]
        prefixes = [f"bricks.{brick}." for brick in self.learns]
        if own and set(own) <= set(self.learns):
            prefixes.append("condition.")
        return {name for name, _ in network.named_parameters() if name.startswith(tuple(prefixes))}


def stages_of(config: Any, network: torch.nn.Module) -> list[Stage]:
    """The stages of a run, in order; one for most.

    Raises:
        ValueError: for bricks that the network does not have, or images that do not add up.
    """
    total = config.run.total_images
    if not hasattr(network, "num_bricks"):
        for key in ("train_bricks", "brick_images"):
            if getattr(config.objective, key, None) is not None:
                raise ValueError(f"`objective.{key}` is given, but a {type(network).__name__} has no bricks.")
        return [Stage(0, total)]
    learners, images = _learners(config, network), config.objective.brick_images
    if images is None:
        return [_stage(0, total, learners, network)]
    if len(images) != len(learners):
        raise ValueError(
            f"`objective.brick_images` is {images}, but the bricks {list(learners)} learn; give one number for each."
        )
    if sum(images) < total:
        raise ValueError(
            f"`run.total_images` is {total}, but `objective.brick_images` add up to {sum(images)}; make it that, or "
            "less to stop before."
        )
    ends = [sum(images[: number + 1]) for number in range(len(images))]
    return [_stage(end - n, end, (brick,), network) for brick, n, end in zip(learners, images, ends)]


def _stage(start: int, end: int, learns: tuple[int, ...], network: torch.nn.Module) -> Stage:
    runs = tuple(range(learns[-1] + 1))
    return Stage(start, end, learns, None if len(runs) == network.num_bricks else runs)


def _learners(config: Any, network: torch.nn.Module) -> tuple[int, ...]:
    """The bricks that learn in the run: those of `objective.train_bricks`, or all but one that came trained."""
    bricks, given = range(network.num_bricks), config.objective.train_bricks
    from_elsewhere = bool(config.model.init_from or config.model.wrap)
    if given is None:
        trained = from_elsewhere and network.config.pretrained_brick is not None
        learners = tuple(bricks[1:] if trained else bricks)
    else:
        learners = tuple(given)
    if not learners:
        raise ValueError(
            "`objective.train_bricks` is null, which leaves a pretrained brick as it is, and there is no other; set "
            "it to [0] to train that one, or say in `model.config` what bricks come on top."
        )
    if learners[-1] >= len(bricks):
        raise ValueError(f"`objective.train_bricks` is {list(learners)}; this stack has the bricks 0 to {bricks[-1]}.")
    missing = sorted(set(range(learners[-1])) - set(learners))
    if missing and not from_elsewhere:
        raise ValueError(
            f"`objective.train_bricks` is {list(learners)}, so the bricks {missing} would stay as they were drawn at "
            "random; train them too, or take them from `model.init_from` or `model.wrap`."
        )
    return learners


def freeze(config: Any, network: torch.nn.Module) -> None:
    """Freeze what learns in no stage of a run; frozen parameters are neither averaged nor saved.

    Raises:
        ValueError: see `stages_of`.
    """
    if not hasattr(network, "num_bricks"):
        return
    learns = set().union(*(stage.parameters(network) for stage in stages_of(config, network)))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in learns)


def frozen_digest(network: torch.nn.Module) -> str | None:
    """A checksum of the bricks' weights that stay as they are, `None` where all learn.

    Checkpoints do not hold them: they come from `model.init_from` or `model.wrap` each time.
    """
    if not hasattr(network, "num_bricks"):
        return None
    frozen = [(name, p) for name, p in network.named_parameters() if not p.requires_grad]
    digest = hashlib.sha256()
    for name, parameter in frozen:
        digest.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest() if frozen else None


def stage_at(stages: list[Stage], images: int) -> Stage:
    """The stage of the step that begins at `images` images; the last one for what comes after."""
    return next((stage for stage in stages if images < stage.end), stages[-1])


def enter(run: Any, stage: Stage, several: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Begin a stage: the network, wrapped for its processes with what learns in it, and an optimiser for that.

    Args:
        run: of the loop; its `bricks` become those of the stage.
        stage: to begin.
        several: whether the run has more than one.

    Raises:
        ValueError: for several stages of a sharded network.
    """
    accelerator, network = run.accelerator, run.model
    if several:
        if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
            raise ValueError(
                "`objective.brick_images` is given, but sharded networks cannot be thawed brick by brick; launch with "
                "DDP, or train one brick a run (`objective.train_bricks`, `model.init_from`)."
            )
        accelerator.free_memory()  # lets go of the last stage's wrapper and optimiser
        learns = stage.parameters(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in learns)
    run.bricks = stage.runs
    network.train()  # a pretrained brick does so only while it learns
    return accelerator.prepare(network, build_optimizer(run.config, network, accelerator.device))


def pipeline_so_far(run: Any, network: torch.nn.Module) -> Any:
    """The run's pipeline, with a schedule that leaves out the bricks whose turn has not come."""
    pipeline = run.make_pipeline(network)
    if run.bricks is not None:
        later = range(run.bricks[-1] + 1, network.num_bricks)
        pipeline.brick_schedule = BrickSchedule.from_rules(network, dict.fromkeys(later))
    return pipeline
