"""A run's further objectives at work: their teachers, what they see, what of them is trained, saved and resumed."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from brickwork.errors import one_of
from brickwork.gen.taps import tapped
from brickwork.training.config.optimizer import OptimizerConfig
from brickwork.training.engine.checkpoints import (
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    trained_tensors,
)
from brickwork.training.objectives import Objective
from brickwork.training.task import Step, Task

# Stems of their files in a checkpoint, which has these only where an objective has parameters of its own.
OWN, OWN_OPTIMIZER = "objectives", "objectives_optimizer"


class FurtherLosses:
    """What objectives add to the loss of a task.

    Their own parameters are alike on all processes, which share the gradients; they have an AdamW of their own, beside
    the one of the network, whatever wraps or shards that.

    Args:
        objectives: of the run, the task's own first.
        task: of the run.
        settings: of the optimiser. seed: of the run.

    Raises:
        ValueError: for two of one name, taps that the network or a teacher does not have, teachers that the task
            cannot open.
    """

    def __init__(self, objectives: Sequence[Objective], task: Task, settings: OptimizerConfig, seed: int):
        self.objectives, self.task, self.accelerator = list(objectives), task, task.accelerator
        self.teachers: dict[str, torch.nn.Module] = {}
        for objective in self.objectives:
            for source in objective.teachers.keys() - self.teachers.keys():
                network = task.teacher(source).requires_grad_(False).eval()
                self.teachers[source] = network.to(task.accelerator.device)
            objective.join(task, self.teachers)
            _check_taps(objective, objective.taps, task.network)
            for source, names in (objective.teachers or {None: objective.teacher_taps}).items():
                _check_taps(objective, names, self.teachers.get(source))
            _check_part(objective, task.network)
        self.taps = sorted({name for objective in self.objectives for name in objective.taps})
        if any(type(objective).prepare is not Objective.prepare for objective in self.objectives):
            self._prepare(seed)
        self.own = torch.nn.ModuleDict({objective.type: objective for objective in self.objectives})
        self.own.to(task.accelerator.device)
        self.optimizer = self._optimizer(settings)

    def _prepare(self, seed: int) -> None:
        """Show the objectives one sample, by which they learn the shapes of what they compare."""
        device, network = self.accelerator.device, self.task.network.to(self.accelerator.device)
        batch = {name: tensor[None].to(device) for name, tensor in self.task.stream[0].items()}
        was_training = network.training
        with torch.random.fork_rng(), torch.no_grad(), self.accelerator.autocast():
            torch.manual_seed(seed)
            step = self.task.step(batch, 0)
            # All of the network runs, so that every tap is there.
            step = forward(self.task, network.eval(), replace(step, subnet=None), self.taps)
            seen = self._teachers_see(step)
            for objective in self.objectives:
                objective.prepare(step, _seen_by(objective, seen))
        network.train(was_training)

    def _optimizer(self, settings: OptimizerConfig) -> torch.optim.Optimizer | None:
        groups = [
            {"params": learning, "rate": objective.rate}
            for objective in self.objectives
            if (learning := [parameter for parameter in objective.parameters() if parameter.requires_grad])
        ]
        if not groups:
            return None
        return torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=tuple(settings.betas), weight_decay=settings.weight_decay
        )

    def _teachers_see(self, step: Step) -> dict[str, Step]:
        names: dict[str, set[str]] = {}
        for objective in self.objectives:
            for source, taps in ({} if objective.asks else objective.teachers).items():
                names.setdefault(source, set()).update(taps)
        with torch.no_grad():
            shown = replace(step, subnet=None)
            return {
                source: forward(self.task, self.teachers[source], shown, sorted(taps))
                for source, taps in names.items()
            }

    def levels(self, normal: torch.Tensor) -> torch.Tensor:
        """The noise levels `(N,)` of standard normal numbers `(N,)`, by which the log tells losses apart."""
        levels = self.task.noise_levels(normal)
        for objective in self.objectives:
            levels = objective.levels(normal, levels)
        return levels

    def rewrite(self, step: Step, normal: torch.Tensor) -> Step:
        """The step that the network is shown; see `Objective.rewrite`."""
        for objective in self.objectives:
            step = objective.rewrite(step, normal)
        return step

    def __call__(self, step: Step) -> tuple[dict[str, torch.Tensor], torch.Tensor | float]:
        """Losses by name, each with its weight, and their sum.

        An objective one of whose taps did not run in this step, such as a brick that was left out, sits it out.
        """
        losses: dict[str, torch.Tensor] = {}
        seen = self._teachers_see(step)
        for objective in self.objectives:
            if any(name not in step.taps for name in objective.taps):
                continue
            taps = {name: step.taps[name] for name in objective.taps}
            found = objective(step, taps, _seen_by(objective, seen))
            twice = sorted(losses.keys() & found.keys())
            if twice:
                raise ValueError(f"Two of the objectives {list(self.own)} call a loss {twice[0]!r}; rename one.")
            losses |= {name: objective.weight * loss for name, loss in found.items()}
        return losses, sum(losses.values())

    @property
    def groups(self) -> list[tuple[str, float]]:
        """Prefixes of the network's parameters that are in optimiser groups of objectives, with their rates."""
        return [(objective.part, objective.rate) for objective in self.objectives if objective.part is not None]

    def update(self, rate: float, max_norm: float, finite: bool) -> None:
        """An optimiser's step of their own parameters, left out where gradients are not finite.

        Args:
            rate: the run's learning rate.
            max_norm: of the gradients.
            finite: whether the network's gradients are.
        """
        if self.optimizer is None:
            return
        scaler, parameters = self.accelerator.scaler, [p for p in self.own.parameters() if p.grad is not None]
        for parameter in parameters:
            if self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
            if scaler is not None:
                parameter.grad /= scaler.get_scale()
        if parameters and finite and torch.nn.utils.clip_grad_norm_(parameters, max_norm).isfinite():
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint holds of them, by the stem of its file; nothing where they have no parameters."""
        if self.optimizer is None:
            return {}
        return {OWN: trained_tensors(self.own), OWN_OPTIMIZER: optimizer_tensors(self.optimizer, self.own)}

    def load_state_dict(self, saved: dict[str, dict[str, torch.Tensor]], accept_changes: bool) -> None:
        """Take over a checkpoint's.

        Args:
            saved: tensors of all files of the checkpoint, by stem.
            accept_changes: leave objectives that the checkpoint has no parameters of as they are.

        Raises:
            ValueError: for parameters of other objectives.
        """
        if self.optimizer is None:
            return
        own, moments = trained_tensors(self.own), saved.get(OWN_OPTIMIZER, {})
        tensors = saved.get(OWN, {})
        if accept_changes:
            known = {name for name, tensor in own.items() if name in tensors and tensors[name].shape == tensor.shape}
            own, tensors = ({name: part[name] for name in known} for part in (own, tensors))
            moments = {name: value for name, value in moments.items() if name.rpartition("|")[0] in known}
        load_tensors(own, tensors)
        load_optimizer_tensors(self.optimizer, self.own, moments)


def forward(task: Task, network: torch.nn.Module, step: Step, taps: Sequence[str], inner=None) -> Step:
    """The step as a network sees it: with its outputs, and those of modules within it.

    Args:
        task: of the run.
        network: to call.
        step: to show it.
        taps: names of modules.
        inner: where these are, if the network is wrapped.
    """
    with tapped(network if inner is None else inner, taps) as found:
        outputs = task.call(network, step)
    return replace(step, outputs=outputs, taps=found)


def _seen_by(objective: Objective, seen: dict[str, Step]) -> Step | tuple[Step, ...] | None:
    """What an objective's teacher saw, or several of them in their order."""
    steps = tuple(seen[source] for source in objective.teachers if source in seen)
    return steps if len(steps) > 1 else steps[0] if steps else None


def _check_taps(objective: Objective, names: Sequence[str], network: torch.nn.Module | None) -> None:
    if names and network is None:
        raise ValueError(f"`{objective.type}` reads {list(names)} of a teacher, and has none; give `teacher`.")
    modules = dict(network.named_modules()) if names else {}
    for name in names:
        one_of(f"objectives.{objective.type}.taps", name, modules)


def _check_part(objective: Objective, network: torch.nn.Module) -> None:
    part = objective.part
    if part is not None and not any(name.startswith(part) for name, _ in network.named_parameters()):
        raise ValueError(
            f"`objectives` has {objective.type!r}, which trains {part!r}, and a {type(network).__name__} has no such "
            "part; leave it out."
        )
