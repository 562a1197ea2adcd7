"""Distillation of a teacher's answer: the network learns to say what a trained one says of the same noisy images."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step


@register_objective("output")
class OutputObjective(Objective):
    """The mean squared error to the teacher's output.

    Args:
        teacher: a pipeline, by folder or name, that was trained for the same objective.
        weight: of the loss.
    """

    def __init__(self, teacher: str, weight: float = 1.0):
        super().__init__(weight)
        self.teacher = teacher

    def prepare(self, step: Step, teacher: Step) -> None:
        ours, theirs = (tuple(seen.outputs[-1].shape[1:]) for seen in (step, teacher))
        if ours != theirs:
            raise ValueError(f"`teacher` is {self.teacher!r}, whose output is {theirs}; this network's is {ours}.")

    def forward(self, step: Step, taps: Mapping[str, torch.Tensor], teacher: Step) -> dict[str, torch.Tensor]:
        return {"output": F.mse_loss(step.outputs[-1].float(), teacher.outputs[-1].float())}
