"""Feature distillation (FitNets, Romero et al., arXiv 1412.6550): a network's features tell a teacher's."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step


@register_objective("features")
class FeaturesObjective(Objective):
    """The mean squared error between the teacher's features and the network's, after a 1×1 projection that learns.

    Args:
        teacher: a pipeline, by folder or name, that was trained for the same objective.
        taps: a module of the network => the module of the teacher whose output its own should tell, both of one shape
            but for their channels.
        weight: of the loss, a mean over the taps.
        rate: of the projections, over the run's learning rate.
    """

    def __init__(self, teacher: str, taps: dict[str, str], weight: float = 1.0, rate: float = 1.0):
        super().__init__(weight, rate)
        if not isinstance(taps, dict) or not taps:
            raise ValueError(f"`taps` is {taps!r}; give modules of the network and the teacher, such as {{mid: mid}}.")
        self.teacher, self.pairs = teacher, dict(taps)
        self.taps, self.teacher_taps = tuple(taps), tuple(dict.fromkeys(taps.values()))
        self.axes: list[int] = []

    def prepare(self, step: Step, teacher: Step) -> None:
        projections = []
        for ours, theirs in self.pairs.items():
            have, want = step.taps[ours].shape, teacher.taps[theirs].shape
            self.axes.append(axis := channel_axis(have, want, ours, theirs))
            projections.append(torch.nn.Linear(have[axis], want[axis]))
        self.projections = torch.nn.ModuleList(projections)

    def forward(self, step: Step, taps: Mapping[str, torch.Tensor], teacher: Step) -> dict[str, torch.Tensor]:
        errors = []
        for (ours, theirs), axis, project in zip(self.pairs.items(), self.axes, self.projections):
            projected = project(taps[ours].movedim(axis, -1)).movedim(-1, axis)
            errors.append(F.mse_loss(projected.float(), teacher.taps[theirs].float()))
        return {"features": torch.stack(errors).mean()}


def channel_axis(have: torch.Size, want: torch.Size, ours: str, theirs: str) -> int:
    """The axis of the channels: the one in which two shapes differ; in equal ones the last of tokens, else the second.

    Args:
        have: shape of the network's features, such as `(B, C, H, W)`, `(B, C, F, H, W)` or `(B, tokens, C)`.
        want: shape of the teacher's.
        ours: the network's module, for the error.
        theirs: the teacher's.

    Raises:
        ValueError: where more than the channels differ.
    """
    different = [axis for axis, (mine, other) in enumerate(zip(have, want)) if mine != other]
    if len(have) != len(want) or len(different) > 1 or different == [0]:
        raise ValueError(
            f"`taps` pairs {ours!r} with {theirs!r}, whose outputs are {tuple(have[1:])} and {tuple(want[1:])} an "
            "image; pair modules whose outputs differ in their channels alone."
        )
    return different[0] if different else 2 if len(have) == 3 else 1
