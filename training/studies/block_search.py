"""`brickwork search-blocks`: which blocks, widths and depths for a UNet, rated without training any to the end.

BossNAS (Li et al., arXiv 2103.12424) on our registry of blocks. Stage by stage, from the highest resolution down, a
supernet learns by ensemble bootstrapping (`tasks.block_supernet`), its choices are rated by their distance to the
ensemble of all, and the best is fixed before the next stage. Members of the space are ranked by the sum of their
stages' ratings, within a budget of operations.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from pydantic import Field
from safetensors.torch import load_file, save_file

from brickwork import compat
from brickwork.errors import advice, explained, no_unknown
from brickwork.eval.held_out.paired_loss import PairedSet
from brickwork.eval.report.blocks import Code, Plot, Report
from brickwork.eval.report.numbers import in_units
from brickwork.eval.studies.core import Cell, StudyFolder, run_study, table_of
from brickwork.files import write_file
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.config.config import DEFAULTS, Configuration
from brickwork.training.config.data import DataConfig
from brickwork.training.config.library import CONFIGS
from brickwork.training.config.run import RunConfig
from brickwork.training.config.section import Number, Positive, Section, Share, require
from brickwork.training.data.images import LabelledImages, images_of
from brickwork.training.studies.trained import configured
from brickwork.training.tasks.backbone import build_held_out
from brickwork.training.tasks.block_supernet import Choice, Learning, StageSupernet, rate_choices, train_stage
from brickwork.training.tasks.block_supernet import Path as StagePath

STUDY, WINNER, WEIGHTS = "search-blocks", "winner.yaml", "fixed.safetensors"
SHOWN = 10  # members in the report
CHECKED = 12  # of the cheapest members, whose operations are counted before anything is trained
_STAGE_KEYS = {"blocks", "channels", "layers"}


class SpaceSettings(Section):
    """What there is to choose from."""

    stages: list[dict[str, Any]] = Field(min_length=1, description="a list of at least one stage")
    config: dict[str, Any]
    depth: Positive | None
    budget: Number | None


class SearchSettings(Section):
    """How the supernets learn and are rated."""

    steps: Positive
    paths: Positive
    learning_rate: Number = Field(gt=0, description="a positive rate")
    momentum: Share
    rated: int = Field(ge=2, description="at least 2 pictures")


class SearchConfig(Configuration):
    """A search; `run.seed` and `run.batch_size` are read of the run."""

    defaults: ClassVar[tuple[Path, ...]] = (DEFAULTS, CONFIGS / "block_search_defaults.yaml")

    space: SpaceSettings
    search: SearchSettings
    data: DataConfig
    run: RunConfig


Member = tuple[Choice, ...]  # of each stage, from the highest resolution down


def read_stages(stages: Sequence[Mapping[str, Any]]) -> list[list[Choice]]:
    """The choices of each stage.

    Raises:
        ValueError: naming the stage and what is wrong with it.
    """
    found = []
    for number, stage in enumerate(stages):
        key = f"space.stages[{number}]"
        if set(stage) != _STAGE_KEYS:
            wrong = sorted(set(stage) ^ _STAGE_KEYS)
            raise ValueError(f"`{key}` has {sorted(stage)}; {advice(wrong[0], sorted(_STAGE_KEYS), 'give all of')}")
        for name in _STAGE_KEYS:
            require(isinstance(stage[name], list) and stage[name], f"{key}.{name}", stage[name], "give a list")
        for name in ("channels", "layers"):
            positive = all(isinstance(value, int) and value >= 1 for value in stage[name])
            require(positive, f"{key}.{name}", stage[name], "give whole numbers from 1 up")
        kinds = [{"type": kind} if isinstance(kind, str) else dict(kind) for kind in stage["blocks"]]
        for kind in kinds:
            require(isinstance(kind.get("type"), str), f"{key}.blocks", kind, "give names, or mappings with a `type`")
        choices = [
            Choice(kind["type"], width, layers, {name: value for name, value in kind.items() if name != "type"})
            for kind, width, layers in itertools.product(kinds, stage["channels"], stage["layers"])
        ]
        require(len({choice.name for choice in choices}) == len(choices), key, stage, "name each choice once")
        found.append(choices)
    return found


@dataclass
class Space:
    """The networks to choose from.

    Args:
        config: of the search.
        channels: of the pictures.
    """

    config: SearchConfig
    channels: int = 3
    counted: dict[tuple, tuple[int, int]] = field(default_factory=dict)

    @cached_property
    def stages(self) -> list[list[Choice]]:
        """The choices of each stage."""
        return read_stages(self.config.space.stages)

    def network(self, member: Member) -> dict[str, Any]:
        """The configuration of a member, as `BlockUNet2DModel` takes it."""
        return {
            "block_types": [choice.block for choice in member],
            "block_out_channels": [choice.channels for choice in member],
            "layers_per_block": [choice.layers for choice in member],
            "stage_options": [choice.options for choice in member],
            **self.config.space.config,
        }

    def count(self, member: Member) -> tuple[int, int]:
        """Operations of a forward pass of one image, and parameters; a `ValueError` for one that cannot be built."""
        key, size = tuple(choice.name for choice in member), self.config.data.size
        if key not in self.counted:
            with torch.device("meta"):
                network = BlockUNet2DModel(sample_size=size, in_channels=self.channels, **self.network(member))
            parameters = sum(parameter.numel() for parameter in network.parameters())
            self.counted[key] = network.subnets(size, size)["full"], parameters
        return self.counted[key]

    @cached_property
    def costs(self) -> list[dict[str, int]]:
        """About what each choice costs more than the first of its stage, by name."""
        first = tuple(choices[0] for choices in self.stages)
        base = self.count(first)[0]
        return [
            {c.name: self.count((*first[:stage], c, *first[stage + 1 :]))[0] - base for c in choices}
            for stage, choices in enumerate(self.stages)
        ]

    def estimate(self, member: Member) -> int:
        """About what a member costs beyond the first of all."""
        return sum(costs[choice.name] for costs, choice in zip(self.costs, member))

    def members(self) -> Iterator[Member]:
        """All networks of the wanted depth, whatever they cost."""
        depth = self.config.space.depth
        for member in itertools.product(*self.stages):
            if depth is None or sum(choice.layers for choice in member) == depth:
                yield member

    def fits(self, member: Member) -> bool:
        """Whether a member is within the budget; those far above by estimate are not counted."""
        budget = self.config.space.budget
        if budget is None:
            return True
        first = tuple(choices[0] for choices in self.stages)
        return self.count(first)[0] + self.estimate(member) <= 1.5 * budget and self.count(member)[0] <= budget

    def check(self) -> int:
        """How many networks there are, fitting or not.

        Raises:
            ValueError: where none has the wanted depth, or none fits.
        """
        settings, members = self.config.space, list(self.members())
        own = {"block_types", "block_out_channels", "layers_per_block", "stage_options", "sample_size", "in_channels"}
        known = compat.constructor_keys(BlockUNet2DModel) - own
        no_unknown("space.config", settings.config, known, "the members of a space")
        if not members:
            totals = [sum(depths) for depths in itertools.product(*([c.layers for c in s] for s in self.stages))]
            raise ValueError(
                f"`space.depth` is {settings.depth}, and the stages together have {min(totals)} to {max(totals)} "
                "layers; give such a number, or null."
            )
        cheapest = sorted(members, key=self.estimate)[:CHECKED]
        if not any(self.fits(member) for member in cheapest):
            least = min(self.count(member)[0] for member in cheapest)
            raise ValueError(
                f"`space.budget` is {settings.budget:g}, and no member of the space is within it: the cheapest needs "
                f"{least:,} operations. Raise it, or put narrower or fewer layers into `space.stages`."
            )
        return len(members)


def search_blocks(config: SearchConfig, output_dir: str | Path, dry_run: bool = False) -> bool:
    """Search, or go on with a search, and write its report and the winner's configuration.

    Args:
        config: of the search.
        output_dir: its folder; finished stages are kept.
        dry_run: check everything, say what there is, and no more.

    Raises:
        ValueError: for a space that cannot be built or has no feasible member, and a folder of another search.
    """
    configured(STUDY, config, [], None).open(output_dir, write=False)
    images = images_of(config.data)
    space = Space(config, images.channels)
    count, numbers = space.check(), [len(choices) for choices in space.stages]
    print(f"{count:,} members: {' × '.join(map(str, numbers))} choices of {len(numbers)} stages.")
    if dry_run:
        return False
    search = Search(space, Path(output_dir), images)
    stages = [partial(search.cells, number) for number in range(len(space.stages))]
    return run_study(configured(STUDY, config, stages, search.report), output_dir)


@dataclass
class Search:
    """The cells of a search, one a stage."""

    space: Space
    output: Path
    images: LabelledImages

    def cells(self, number: int, results: Mapping[str, Any]) -> list[Cell]:
        """The stage's supernet, trained on what the stages above have fixed."""
        compute = partial(self.train, number, results)
        return [Cell(f"stages/{number}", compute, {"stage": number}, describe=lambda found: f"best: {found['best']}")]

    @cached_property
    def pictures(self) -> tuple[torch.Tensor, torch.Tensor]:
        """To learn from, and to rate on, `(N, C, H, W)` in [-1, 1]."""
        data, wanted = self.space.config.data, self.space.config.search.rated
        learned, held_out = (build_held_out(self.images, rows) for rows in self.images.split(data.held_out))
        if not isinstance(learned, PairedSet) or held_out is None or len(held_out.images) < 2:
            raise ValueError(
                f"`data.held_out` is {data.held_out}, which leaves too few pictures on one side; give a share between "
                "0 and 1 that leaves two to rate on."
            )
        return learned.images, held_out.images[:wanted]

    def supernet(self, number: int, above: Sequence[Choice]) -> StageSupernet:
        """The fresh supernet of a stage; a `ValueError` names the stage whose blocks cannot be built."""
        torch.manual_seed(self.space.config.run.seed + number)
        in_dim = above[-1].channels if above else self.space.channels
        with explained(f"`space.stages[{number}]`", ValueError):
            return StageSupernet(self.space.stages[number], in_dim, 2 if above else 1, self.space.config.space.config)

    def fixed(self, results: Mapping[str, Any], number: int) -> tuple[list[Choice], list[StagePath]]:
        """The best choices of the stages above, and their trained paths."""
        choices: list[Choice] = []
        paths = []
        for stage in range(number):
            names = {choice.name: choice for choice in self.space.stages[stage]}
            choice = names[results[f"stages/{stage}"]["best"]]
            path = self.supernet(stage, choices).path(choice)
            path.load_state_dict(load_file(self.output / "stages" / str(stage) / WEIGHTS))
            paths.append(path.eval().requires_grad_(False))
            choices.append(choice)
        return choices, paths

    def train(self, number: int, results: Mapping[str, Any], folder: Path, stage: int) -> dict[str, Any]:
        """Train and rate one stage, and fix its best choice that some member within the budget has."""
        config, (learned, rated) = self.space.config, self.pictures
        above, paths = self.fixed(results, number)
        supernet, search = self.supernet(number, above), config.search
        learning = Learning(
            search.steps, min(config.run.batch_size, len(learned)), search.paths, search.learning_rate,
            search.momentum, config.run.seed + number,
        )  # fmt: skip
        twin, losses = train_stage(supernet, paths, learned, EDMObjective(), learning)
        ratings = rate_choices(supernet, twin, paths, rated, EDMObjective(), config.run.seed)
        order = sorted(self.space.stages[number], key=lambda choice: ratings[choice.name])
        best = next(choice for choice in order if self.can_be_completed((*above, choice)))
        state = {key: tensor.contiguous() for key, tensor in supernet.path(best).state_dict().items()}
        write_file(folder / WEIGHTS, partial(save_file, state))
        return {"ratings": ratings, "losses": losses, "best": best.name}

    def can_be_completed(self, begun: Member) -> bool:
        """Whether a member within the budget begins so."""
        ways = [m for m in self.space.members() if [c.name for c in m[: len(begun)]] == [c.name for c in begun]]
        return any(self.space.fits(member) for member in sorted(ways, key=self.space.estimate)[:CHECKED])

    def ranking(self, results: Mapping[str, Any]) -> list[tuple[float, Member]]:
        """The best members within the budget, with the sums of their ratings."""
        ratings = [results[f"stages/{number}"]["ratings"] for number in range(len(self.space.stages))]
        rated = [(sum(of[c.name] for of, c in zip(ratings, member)), member) for member in self.space.members()]
        fitting = (pair for pair in sorted(rated, key=lambda pair: pair[0]) if self.space.fits(pair[1]))
        return list(itertools.islice(fitting, SHOWN))

    def report(self, folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
        """The ranking, each stage's ratings, and the winner, whose configuration is written beside."""
        results = folder.results()
        ranking = self.ranking(results)
        text = self.winner(ranking[0][1])
        write_file(folder.path / WINNER, text)
        columns = {"rating": lambda row: f"{row[0]:.4f}"}
        stages = range(len(self.space.stages))
        columns |= {f"stage {stage + 1}": lambda row, stage=stage: row[1][stage].name for stage in stages}
        columns |= {
            "operations": lambda row: in_units(self.space.count(row[1])[0], "FLOP"),
            "parameters": lambda row: f"{self.space.count(row[1])[1]:,}",
        }
        blocks: list = [
            "The best members within the budget, by the sum of their stages' distances to the ensemble (0 to 4 each; "
            f"the less, the better). The first is in {WINNER}: `brickwork train --config {WINNER}`.",
            table_of(ranking, columns),
        ]
        curves = {}
        for number in stages:
            found = results[f"stages/{number}"]
            curves[f"stage {number + 1}"] = range(1, len(found["losses"]) + 1), found["losses"]
            rows = sorted(found["ratings"].items(), key=lambda pair: pair[1])
            columns = {"choice": lambda row: row[0], "distance": lambda row: f"{row[1]:.4f}"}
            blocks += [f"## Stage {number + 1}", table_of(rows, columns)]
        blocks += [Plot(curves, "step", "bootstrapping loss", name="losses"), Code(text, "The winner")]
        values = {
            "ranking": [{"rating": value, **self.space.network(member)} for value, member in ranking],
            "stages": results,
        }
        return Report("Search for blocks", blocks), values

    def winner(self, member: Member) -> str:
        """A configuration that `train_backbone.py` takes."""
        data = self.space.config.data.model_dump()
        model = {"type": "BlockUNet2DModel", "preset": None, "config": self.space.network(member)}
        return yaml.safe_dump({"model": model, "data": data}, sort_keys=False, allow_unicode=True)
