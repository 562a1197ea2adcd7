"""BossNAS's own test (arXiv 2103.12424) at small size: does a ranking of networks foretell how they end up trained?

    python -m brickwork.training.studies.block_ranking block_ranking -o runs/block-ranking

Every member of a small space of UNets is trained alone, a few with further seeds for the noise of such a ranking.
Beside `brickwork search-blocks`, which rates them without training any to the end, stand what costs less: parameters,
operations, the loss early in training, one network whose members share weights, and how far the trained ones see.
"""

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from brickwork.adapters.base import denoiser_of
from brickwork.eval.held_out.paired_loss import paired_loss
from brickwork.eval.report.blocks import Plot, Report
from brickwork.eval.sampling.pipelines import load_pipeline
from brickwork.eval.studies.core import (
    Cell,
    Study,
    StudyFolder,
    folder_name,
    kendall_tau,
    mean_and_spread,
    table_of,
)
from brickwork.eval.studies.receptive_field import effective_receptive_field
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.training.config.config import DEFAULTS, TrainConfig
from brickwork.training.config.library import CONFIGS
from brickwork.training.config.section import Positive, Section, Share, build
from brickwork.training.engine.previews import PIPELINE
from brickwork.training.studies.block_search import Member, Search, SearchSettings, Space, SpaceSettings
from brickwork.training.studies.trained import RUN, configured, study_script, train_cell, training_cell
from brickwork.training.tasks.backbone import build_held_out, build_images
from brickwork.training.tasks.backbones import build_objective

STUDY = "block-ranking"
SEEN = 0.5, 8  # the noise level at which receptive fields are measured, and the pictures


class RankingSettings(Section):
    """What the ranking is held against."""

    early: Share = Field(description="a share of run.total_images")
    repeated: Positive  # members that are trained with every seed
    seeds: list[int] = Field(min_length=2, description="a list of at least two seeds")
    shared_images: Positive


class RankingConfig(TrainConfig):
    """A space, how its supernets learn, and how each member is trained; `model` is replaced by each."""

    defaults: ClassVar[tuple[Path, ...]] = (
        DEFAULTS, CONFIGS / "block_search_defaults.yaml", CONFIGS / "ablation_defaults.yaml",
    )  # fmt: skip

    space: SpaceSettings
    search: SearchSettings
    ranking: RankingSettings


@dataclass
class Ranking:
    """The cells of the study."""

    config: RankingConfig
    output: Path

    @cached_property
    def search(self) -> Search:
        """The search whose ratings are tested."""
        images = build_images(self.config.data)
        return Search(Space(self.config, images.channels), self.output, images)

    @cached_property
    def members(self) -> dict[str, Member]:
        """Every member of the space."""
        return {" | ".join(choice.name for choice in member): member for member in self.search.space.members()}

    def training(self, name: str, seed: int, share: float = 1.0) -> TrainConfig:
        """The run of a member, or of the first share of one."""
        values = self.config.model_dump(exclude={"space", "search", "ranking"})
        network = self.search.space.network(self.members[name])
        values["model"] |= {"type": BlockUNet2DModel.__name__, "preset": None, "config": network}
        batch = values["run"]["batch_size"]
        total = max(1, round(share * values["run"]["total_images"] / batch)) * batch
        values["run"] |= {"seed": seed, "total_images": total, "sample_images": total}
        if share < 1:  # as a run is when it gets there: its rate has not begun to fall
            values["optimizer"]["cooldown_images"] = 0
        return build(TrainConfig, values)

    def trained(self, results: Mapping[str, Any]) -> list[Cell]:
        """Each member with the first seed, in full and the beginning alone; some with the other seeds."""
        first, *others = self.config.ranking.seeds
        names = list(self.members)
        repeated = [names[at] for at in np.linspace(0, len(names) - 1, self.config.ranking.repeated).astype(int)]
        runs = {_cell(name, first): self.training(name, first) for name in names}
        runs |= {f"early/{folder_name(name)}": self.training(name, first, self.config.ranking.early) for name in names}
        runs |= {_cell(name, seed): self.training(name, seed) for seed in others for name in repeated}
        # In this process: importing everything takes as long as a short run.
        return [replace(training_cell(cell, config), run=train_cell) for cell, config in runs.items()]

    def fields(self, results: Mapping[str, Any]) -> list[Cell]:
        """How far each trained member sees."""
        return [Cell(f"fields/{folder_name(name)}", self.see, {"member": name}) for name in self.members]

    def see(self, folder: Path, *, member: str) -> float:
        """The mean distance in pixels from which a trained member's output is influenced, on held-out pictures."""
        pictures, objective = build_images(self.config.data), build_objective(self.config.objective)
        clean = build_held_out(pictures, pictures.split(self.config.data.held_out)[1][: SEEN[1]]).images
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        sample, timestep = objective.network_inputs(clean, noise, torch.full((len(clean),), SEEN[0]))
        run = self.output / _cell(member, self.config.ranking.seeds[0]) / RUN / PIPELINE
        field = effective_receptive_field(denoiser_of(load_pipeline(str(run))), float(timestep[0]), sample)
        return float((1 - field.within()).sum())

    def shared(self, results: Mapping[str, Any]) -> list[Cell]:
        """The network whose members share their weights."""
        return [Cell("shared", self.train_shared, {"images": self.config.ranking.shared_images})]

    def train_shared(self, folder: Path, *, images: int) -> dict[str, float]:
        """Train all members at once, one drawn a step (arXiv 1904.00420), and score each with the shared weights.

        Returns:
            The held-out loss of each member by name.
        """
        config = self.config
        torch.manual_seed(config.run.seed)
        draw, generator = random.Random(config.run.seed), torch.Generator().manual_seed(config.run.seed)
        pictures = build_images(config.data)
        learned, held_out = (build_held_out(pictures, rows) for rows in pictures.split(config.data.held_out))
        supernet = SharedUNets(self.search.space, self.members, pictures.class_names, pictures.channels)
        optimizer = torch.optim.AdamW(supernet.parameters(), lr=config.optimizer.learning_rate, weight_decay=0.0)
        objective = build_objective(config.objective)
        for _ in range(images // config.run.batch_size):
            network = supernet.networks[draw.choice(list(self.members))]
            rows = torch.randint(len(learned.images), (config.run.batch_size,), generator=generator)
            clean, labels = learned.images[rows], None if learned.labels is None else learned.labels[rows]
            sigma = objective.noise_levels(torch.randn(len(clean), generator=generator))
            noise = torch.randn(clean.shape, generator=generator)
            sample, timestep = objective.network_inputs(clean, noise, sigma)
            estimate = network(sample, timestep, class_labels=labels).sample
            objective.losses(estimate, clean, noise, sigma).mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {
            name: paired_loss(network.eval(), held_out, objective)["loss"]
            for name, network in supernet.networks.items()
        }

    def predictors(self, results: Mapping[str, Any]) -> dict[str, list[float]]:
        """What each way says of the members, in their order; the less, the better it takes one to be."""
        space, stages = self.search.space, range(len(self.search.space.stages))
        ratings = [results[f"stages/{stage}"]["ratings"] for stage in stages]
        draw = random.Random(0)
        return {
            "`search-blocks`, ensemble bootstrapping": [
                sum(of[choice.name] for of, choice in zip(ratings, member)) for member in self.members.values()
            ],
            "shared weights, one member a step": [results["shared"][name] for name in self.members],
            f"loss after {self.config.ranking.early:.0%} of training": [
                results[f"early/{folder_name(name)}"]["final_loss"] for name in self.members
            ],
            "more operations": [-space.count(member)[0] for member in self.members.values()],
            "more parameters": [-space.count(member)[1] for member in self.members.values()],
            "seeing further, once trained": [-results[f"fields/{folder_name(name)}"] for name in self.members],
            "chance": [draw.random() for _ in self.members],
        }

    def report(self, folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
        """How well each way agrees with the trained networks, and how well these agree with themselves."""
        results, first = folder.results(), self.config.ranking.seeds[0]
        losses = [results[_cell(name, first)]["final_loss"] for name in self.members]
        predictors = self.predictors(results)
        rows = [
            {"way": way, "tau": kendall_tau(values, losses), "rho": spearman_rho(values, losses)}
            for way, values in predictors.items()
        ]
        columns = {
            "a ranking by": lambda row: row["way"],
            "Kendall's τ": lambda row: f"{row['tau']:+.2f}",
            "Spearman's ρ": lambda row: f"{row['rho']:+.2f}",
        }
        seeds = {
            name: [
                found["final_loss"] for seed in self.config.ranking.seeds if (found := results.get(_cell(name, seed)))
            ]
            for name in self.members
        }
        spreads = [mean_and_spread(values)[1] for values in seeds.values() if len(values) > 1]
        noise, spread = float(np.sqrt(np.mean(np.square(spreads)))), mean_and_spread(losses)[1]
        count = len(losses)
        chance = np.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))
        given = self.at_equal_operations(predictors, losses)
        text = (
            f"{count} networks, trained alone on {self.config.run.total_images:,} images: held-out losses "
            f"{min(losses):.4f} to {max(losses):.4f}, standard deviation {spread:.4f}; over the seeds of "
            f"{len(spreads)} of them {noise:.4f}. By chance τ is 0 ± {chance:.2f}. At equal operations (their "
            f"ranks taken out of both) seeing further agrees with a lower loss by ρ {given:+.2f}."
        )
        order = np.argsort(losses)
        best = table_of(
            [list(self.members)[at] for at in [*order[:3], *order[-3:]]],
            {
                "network, the three best and worst": lambda name: name,
                "held-out loss": lambda name: f"{results[_cell(name, first)]['final_loss']:.4f}",
                "MFLOP": lambda name: f"{self.search.space.count(self.members[name])[0] / 1e6:.0f}",
            },
        )
        plots = {
            f"{way}, τ {row['tau']:+.2f}": (_ranks(predictors[way]), losses) for way, row in zip(predictors, rows)
        }
        plot = Plot(plots, "rank foretold", "held-out loss when trained", points=True, name="ranking")
        values = {"ways": rows, "losses": dict(zip(self.members, losses)), "seeds": seeds, "predictors": predictors}
        return Report("Does a ranking of blocks hold?", [text, table_of(rows, columns), best, plot]), values

    def at_equal_operations(self, predictors: Mapping[str, list[float]], losses: list[float]) -> float:
        """The partial rank correlation of how far members see and their losses, given their operations."""
        ranks = [_ranks(values) for values in (predictors["seeing further, once trained"], losses)]
        given = np.stack([np.ones(len(losses)), _ranks(predictors["more operations"])], axis=1)
        left = [np.asarray(one) - given @ np.linalg.lstsq(given, one, rcond=None)[0] for one in ranks]
        return float(np.corrcoef(*left)[0, 1])


class SharedUNets(torch.nn.Module):
    """UNets whose equal choices of a stage are the same modules, and which share everything else.

    Args:
        space: of the networks; the choices of a stage must have one width.
        members: by name.
        class_names: of the data.
        channels: of the pictures.
    """

    def __init__(self, space: Space, members: Mapping[str, Member], class_names: list[str], channels: int):
        super().__init__()
        shared = {
            "sample_size": space.config.data.size, "in_channels": channels, "num_classes": len(class_names) or None,
        }  # fmt: skip
        self.networks, pool = {}, {}
        for name, member in members.items():
            network = BlockUNet2DModel(**shared, **space.network(member))
            for path, choice in _parts(network, member):
                parent, _, child = path.rpartition(".")
                kept = pool.setdefault((path, choice), network.get_submodule(path))
                setattr(network.get_submodule(parent), child, kept)
            self.networks[name] = network.train()
        self.pool = torch.nn.ModuleList(pool.values())


def _parts(network: BlockUNet2DModel, member: Member) -> list[tuple[str, str]]:
    """The modules of a network, each with what decides which they are: the choice of its stage, or nothing."""
    lowest, parts = len(member) - 1, [("mid_block", member[-1].name)]
    parts += [(path, "") for path in ("condition", "conv_in", "norm_out", "conv_out")]
    for stage, choice in enumerate(member):
        for path in (f"down_blocks.{stage}", f"up_blocks.{lowest - stage}"):
            children = network.get_submodule(path).named_children()
            parts += [(f"{path}.{child}", choice.name if child == "blocks" else "") for child, _ in children]
    return parts


def spearman_rho(first: list[float], second: list[float]) -> float:
    """Agreement of two orders by their ranks (Spearman 1904), 1 for the same and -1 for the reverse."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: list[float]) -> list[float]:
    """From 1 up; ties share the mean of theirs."""
    return pd.Series(values).rank().tolist()


def _cell(name: str, seed: int) -> str:
    return f"members/{folder_name(name)}-seed{seed}"


def ranking(config: RankingConfig, output: Path) -> Study:
    """Train, rate, and write the report."""
    study = Ranking(config, output)
    study.search.space.check()
    rated = [partial(study.search.cells, number) for number in range(len(study.search.space.stages))]
    return configured(STUDY, config, [study.trained, study.fields, study.shared, *rated], study.report)


main = study_script("block_ranking", __doc__, RankingConfig, ranking)

if __name__ == "__main__":
    sys.exit(main())
