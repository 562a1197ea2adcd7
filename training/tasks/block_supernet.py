"""The supernet of one stage in a block search, and how it learns without labels: ensemble bootstrapping.

BossNAS (Li et al., arXiv 2103.12424): sampled paths of an online supernet predict what the sampled paths of its moving
average make of another view of the same pictures, on average. Here a view is a noisy picture as a denoiser reads it:
both have one noise level, and each its own noise and shift.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from brickwork.gen.blocks.registry import build_block
from brickwork.gen.conditioning import ClassTimeEmbedding
from brickwork.gen.parameterization import Objective
from brickwork.training.objectives.adversarial import shift_images


@dataclass(frozen=True)
class Choice:
    """What a stage may be: so many layers of one kind of block.

    Attributes:
        block: its name.
        channels: of the stage.
        layers: blocks.
        options: of the block.
    """

    block: str
    channels: int
    layers: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        """The block with its options."""
        return self.block + "".join(f" {name}={value}" for name, value in sorted(self.options.items()))

    @property
    def name(self) -> str:
        """As tables have it."""
        return f"{self.kind}, {self.channels} × {self.layers}"


class Path(nn.Module):
    """A stage as one choice makes it: the way in from the stage above, and its blocks.

    Args:
        condition: embeds the noise level.
        entry: convolution from the stage above.
        blocks: of the choice.
    """

    def __init__(self, condition: nn.Module, entry: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.condition, self.entry, self.blocks = condition, entry, nn.ModuleList(blocks)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` of the stage above, `(B,)` => `(B, channels, H', W')`."""
        temb, hidden_states = self.condition(timestep, None, hidden_states.dtype), self.entry(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, temb)
        return hidden_states


def multilayer(dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """BYOL's projection and prediction (arXiv 2006.07733)."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim)
    )


class StageSupernet(nn.Module):
    """All choices of a stage; choices of one kind and width share their layers.

    Args:
        choices: of the stage.
        in_dim: channels of the stage above, or of the pictures.
        stride: 2 where the stage halves the sides.
        shared: settings of all blocks; a block takes those it knows.
        cond_dim: width of the condition.
        project_dim: width of the projections that are compared.
    """

    def __init__(
        self, choices: Sequence[Choice], in_dim: int, stride: int, shared: dict[str, Any], cond_dim: int = 64,
        project_dim: int = 64,
    ):  # fmt: skip
        super().__init__()
        self.choices = list(choices)
        self.condition = ClassTimeEmbedding(cond_dim, None)
        widths = dict.fromkeys(choice.channels for choice in choices)
        self.entries = nn.ModuleDict(
            {str(width): nn.Conv2d(in_dim, width, 3, stride=stride, padding=1) for width in widths}
        )
        self.layers = nn.ModuleDict()
        for choice in choices:
            if self._key(choice) not in self.layers:
                self.layers[self._key(choice)] = nn.ModuleList()
            layers = self.layers[self._key(choice)]
            while len(layers) < choice.layers:
                layers.append(build_block(choice.block, choice.channels, cond_dim, shared, choice.options))
        self.widen = nn.ModuleDict({str(width): nn.Linear(width, project_dim) for width in widths})
        self.project = multilayer(project_dim, 2 * project_dim, project_dim)
        self.predict = multilayer(project_dim, 2 * project_dim, project_dim)

    @staticmethod
    def _key(choice: Choice) -> str:
        return f"{choice.kind} {choice.channels}".replace(".", "_")

    def path(self, choice: Choice) -> Path:
        """The choice alone, with these weights."""
        layers = self.layers[self._key(choice)][: choice.layers]
        return Path(self.condition, self.entries[str(choice.channels)], layers)

    def projection(self, choice: Choice, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What a choice makes of the stage above, `(B, project_dim)`."""
        pooled = self.path(choice)(hidden_states, timestep).mean(dim=(2, 3))
        return self.project(self.widen[str(choice.channels)](pooled))


@dataclass(frozen=True)
class Views:
    """Two noisy views of the same pictures as the stage reads them, at the same noise levels."""

    first: torch.Tensor
    second: torch.Tensor
    timestep: torch.Tensor


def make_views(images: torch.Tensor, objective: Objective, above: Sequence[Path], generator: torch.Generator) -> Views:
    """Two views through the fixed stages above.

    Args:
        images: `(B, C, H, W)` in [-1, 1].
        objective: says how noise is added and scaled.
        above: the fixed stages, from the highest resolution down.
        generator: of shifts and noise.
    """
    sigma, seen = objective.noise_levels(torch.randn(len(images), generator=generator)), []
    for _ in range(2):
        moved = shift_images(images, 1 / 8, "reflect", generator)
        noise = torch.randn(images.shape, generator=generator)
        sample, timestep = objective.network_inputs(moved, noise, sigma)
        with torch.no_grad():
            for path in above:
                sample = path(sample, timestep)
        seen.append(sample)
    return Views(*seen, timestep)


@torch.no_grad()
def ensemble(twin: StageSupernet, choices: Sequence[Choice], hidden_states: torch.Tensor, timestep) -> torch.Tensor:
    """The mean of the choices' projections, each of length 1: what all of them together see, `(B, project_dim)`."""
    return torch.stack([normalize(twin.projection(c, hidden_states, timestep), dim=1) for c in choices]).mean(dim=0)


def distance(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """BYOL's loss, the squared distance of the two at length 1: 0 to 4."""
    return (2 - 2 * cosine_similarity(prediction, target, dim=1)).mean()


def bootstrap_losses(
    supernet: StageSupernet, twin: StageSupernet, choices: Sequence[Choice], views: Views
) -> Iterator[torch.Tensor]:
    """The loss of each choice in turn, so that its graph can go before the next.

    A choice predicts from one view what the ensemble of the same choices in the moving average makes of the other;
    both ways round.
    """
    pairs = [(views.first, views.second), (views.second, views.first)]
    targets = [ensemble(twin, choices, other, views.timestep) for _, other in pairs]
    for choice in choices:
        found = [supernet.predict(supernet.projection(choice, view, views.timestep)) for view, _ in pairs]
        yield sum(distance(prediction, target) for prediction, target in zip(found, targets))


@dataclass(frozen=True)
class Learning:
    """How a supernet learns.

    Attributes:
        steps: of the optimiser. batch: pictures a step. paths: choices sampled a step.
        learning_rate: of AdamW.
        momentum: of the moving average.
        seed: of everything.
    """

    steps: int
    batch: int
    paths: int
    learning_rate: float
    momentum: float
    seed: int


def train_stage(
    supernet: StageSupernet, above: Sequence[Path], images: torch.Tensor, objective: Objective, learning: Learning
) -> tuple[StageSupernet, list[float]]:
    """Train a stage's supernet.

    Args:
        supernet: trained in place.
        above: the fixed stages above.
        images: `(N, C, H, W)` to learn from.
        objective: says how noise is added and scaled.
        learning: how.

    Returns:
        Its moving average, and the mean loss of each step.
    """
    generator = torch.Generator().manual_seed(learning.seed)
    twin = copy.deepcopy(supernet).requires_grad_(False)
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=learning.learning_rate)
    count, losses = min(learning.paths, len(supernet.choices)), []
    for _ in range(learning.steps):
        rows = torch.randint(len(images), (learning.batch,), generator=generator)
        views = make_views(images[rows], objective, above, generator)
        order = torch.randperm(len(supernet.choices), generator=generator)[:count].tolist()
        total = 0.0
        for loss in bootstrap_losses(supernet, twin, [supernet.choices[i] for i in order], views):
            (loss / count).backward()
            total += loss.item() / count
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for slow, fast in zip(twin.parameters(), supernet.parameters()):
                slow.lerp_(fast, 1 - learning.momentum)
        losses.append(total)
    return twin, losses


@torch.no_grad()
def rate_choices(
    supernet: StageSupernet, twin: StageSupernet, above: Sequence[Path], images: torch.Tensor, objective: Objective,
    seed: int,
) -> dict[str, float]:  # fmt: skip
    """How far each choice is from the ensemble of all, by name; the nearer, the better (the paper's section 3.3).

    Norms take the statistics of the batch, as a choice's own running ones are mixed with the others' (the authors
    recompute them for each).
    """
    views = make_views(images, objective, above, torch.Generator().manual_seed(seed))
    losses = bootstrap_losses(supernet.train(), twin.train(), supernet.choices, views)
    return {choice.name: float(loss) / 2 for choice, loss in zip(supernet.choices, losses)}
