"""Further losses by name: what an objective is, and how a configuration's list becomes some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch

from brickwork.errors import explained, no_unknown, one_of
from brickwork.gen.registry import Registry
from brickwork.training.task import Step, Task

REGISTRY = Registry("objective", positional=True)


class Objective(torch.nn.Module, ABC):
    """A loss beside a task's own: `(step, taps, teacher) -> {name: loss}`.

    Its parameters, if it has any, are trained, saved and resumed with the run, by an optimiser group of their own.

    Args:
        weight: of its losses in the sum.
        rate: of its optimiser group, over the run's learning rate.

    Attributes:
        taps: names of modules of the network whose outputs it reads.
        teacher: a trained network to learn from, as the task opens it; `None` for none.
        teacher_taps: names of modules of the teacher whose outputs it reads.
        asks: whether it calls its teachers itself, so that they need not see every step.
        part: the prefix of parameters of the network that are in its optimiser group, not in the run's.
    """

    type: ClassVar[str] = ""  # its name in a configuration, under which it is saved too
    taps: tuple[str, ...] = ()
    teacher: str | None = None
    teacher_taps: tuple[str, ...] = ()
    part: str | None = None
    asks: bool = False

    def __init__(self, weight: float = 1.0, rate: float = 1.0):
        super().__init__()
        for key, value in (("weight", weight), ("rate", rate)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"`{key}` is {value!r}; give 0 or a positive number.")
        self.weight, self.rate = float(weight), float(rate)

    @property
    def teachers(self) -> dict[str, tuple[str, ...]]:
        """All that it learns from, by name or folder, with the modules of each whose outputs it reads."""
        return {} if self.teacher is None else {self.teacher: self.teacher_taps}

    def join(self, task: Task, networks: Mapping[str, torch.nn.Module]) -> None:
        """Learn of the task and of the teachers by name; called once, before `prepare`."""

    def levels(self, normal: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """The noise levels `(N,)` that standard normal numbers `(N,)` become, given the task's own."""
        return levels

    def rewrite(self, step: Step, normal: torch.Tensor) -> Step:
        """The step that the network is shown in place of the task's, of standard normal numbers `(B,)`."""
        return step

    def prepare(self, step: Step, teacher: Step | tuple[Step, ...] | None) -> None:
        """Make own parameters, from a step as network and teacher see it; called once, before the first one."""

    @abstractmethod
    def forward(
        self, step: Step, taps: Mapping[str, torch.Tensor], teacher: Step | tuple[Step, ...] | None
    ) -> dict[str, torch.Tensor]:
        """Losses by name, each one number.

        Args:
            step: with the network's outputs.
            taps: outputs of the modules that it asked for, by name.
            teacher: the same step with the teacher's outputs and taps, without gradients; of several a tuple.
        """


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Make a class that the configuration can name: `objectives: [{type: NAME, weight: …}]`.

    Raises:
        ValueError: for a name that is taken.
    """

    def register(kind: type[Objective]) -> type[Objective]:
        REGISTRY.register(name)(kind).type = name
        return kind

    return register


def objectives_from(entries: Iterable[Any]) -> list[Objective]:
    """The objectives of a configuration's `objectives`.

    Args:
        entries: each `type` and that class's arguments.

    Raises:
        ValueError: for an unknown type or argument, with what comes near, and values that do not fit.
    """
    made: list[Objective] = []
    for number, entry in enumerate(entries):
        key, options = f"objectives[{number}]", dict(entry)
        kind = one_of(f"{key}.type", options.pop("type", None), REGISTRY.classes)
        no_unknown(key, options, REGISTRY.keywords(kind.type), kind.type)
        with explained(f"`{key}` ({kind.type})", TypeError, ValueError):
            made.append(kind(**options))
    return made


def check_names(objectives: Iterable[Objective]) -> None:
    """Raise a `ValueError` where two objectives have one name, under which both would be logged and saved."""
    names = [objective.type for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`objectives` has {name!r} twice; give each once, with its weight.")
