"""Which bricks of a LEGO stack learn, and when: all at once, some of them, or one after another from the lowest up.

The paper (arXiv 2310.06389) says that bricks can be trained one after another and that the lower ones may come from
elsewhere; its authors released neither. A run is a row of stages. In each some bricks learn, those below them run
without gradients, and those above do not run at all. When a stage ends, its averaged weights become the weights, so
that the next brick refines what sampling will hand it; optimiser, averages' ramp and learning rate begin anew.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from brickwork.files import digest
from brickwork.pipelines.schedules import BrickSchedule
from brickwork.training.config.objective import ObjectiveConfig
from brickwork.training.task import Phase


@dataclass(frozen=True)
class Stage(Phase):
    """A part of a run in which some bricks learn.

    Attributes:
        learns: bricks that learn; empty for a network without bricks, all of which learns.
        runs: bricks that run; `None` for all.
    """

    learns: tuple[int, ...] = ()
    runs: tuple[int, ...] | None = None

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


def stages_of(
    objective: ObjectiveConfig, network: torch.nn.Module, total: int = 0, comes_trained: bool = False
) -> list[Stage]:
    """The stages of a run, in order; one for most.

    Args:
        objective: which bricks learn, and for how many images each.
        network: in training.
        total: images of the run.
        comes_trained: whether the network, or its lowest brick, holds weights from elsewhere.

    Raises:
        ValueError: for bricks that the network does not have, or images that do not add up.
    """
    if not hasattr(network, "num_bricks"):
        for key in ("train_bricks", "brick_images"):
            if getattr(objective, key) is not None:
                raise ValueError(f"`objective.{key}` is given, but a {type(network).__name__} has no bricks.")
        return [Stage(0, total)]
    learners, images = _learners(objective.train_bricks, network, comes_trained), objective.brick_images
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


def _learners(given: list[int] | None, network: torch.nn.Module, comes_trained: bool) -> tuple[int, ...]:
    """The bricks that learn in the run: those of `objective.train_bricks`, or all but one that came trained."""
    bricks = range(network.num_bricks)
    if given is None:
        trained = comes_trained and network.config.pretrained_brick is not None
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
    if missing and not comes_trained:
        raise ValueError(
            f"`objective.train_bricks` is {list(learners)}, so the bricks {missing} would stay as they were drawn at "
            "random; train them too, or take them from `model.init_from` or `model.wrap`."
        )
    return learners


def freeze(objective: ObjectiveConfig, network: torch.nn.Module, comes_trained: bool) -> None:
    """Freeze what learns in no stage of a run; frozen parameters are neither averaged nor saved.

    Raises:
        ValueError: see `stages_of`.
    """
    if not hasattr(network, "num_bricks"):
        return
    stages = stages_of(objective, network, comes_trained=comes_trained)
    learns = set().union(*(stage.parameters(network) for stage in stages))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in learns)


def frozen_digest(network: torch.nn.Module) -> str | None:
    """A checksum of the bricks' weights that stay as they are, `None` where all learn.

    Checkpoints do not hold them: they come from `model.init_from` or `model.wrap` each time.
    """
    if not hasattr(network, "num_bricks"):
        return None
    frozen = [(name, p) for name, p in network.named_parameters() if not p.requires_grad]
    parts = (part for name, p in frozen for part in (name, p.detach().float().cpu().numpy().tobytes()))
    return digest(*parts) if frozen else None


def draw_bricks(
    random: np.random.Generator, dropout: float, num_bricks: int, stage: Stage | None = None
) -> tuple[int, ...] | None:
    """The bricks that a step runs; `None` for all.

    All of its stage, or on a share `dropout` of the steps a random subset of them, with the last one that
    learns where it has none.
    """
    stage = stage or Stage(0, 0, tuple(range(num_bricks)))
    if random.random() >= dropout:
        return stage.runs
    bricks = range(num_bricks) if stage.runs is None else stage.runs
    subset = int(random.integers(1, 2 ** len(bricks)))
    drawn = tuple(brick for brick in bricks if subset >> brick & 1)
    return drawn if set(drawn) & set(stage.learns) else (*drawn, stage.learns[-1])


def without_later_bricks(pipeline: Any, network: torch.nn.Module, bricks: tuple[int, ...] | None) -> Any:
    """A pipeline with a schedule that leaves out the bricks whose turn has not come; `None`: there are none."""
    if bricks is not None:
        later = range(bricks[-1] + 1, network.num_bricks)
        pipeline.brick_schedule = BrickSchedule.from_rules(network, dict.fromkeys(later))
    return pipeline
