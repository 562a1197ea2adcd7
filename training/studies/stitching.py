"""What stitched networks (SN-Net, arXiv 2302.06586) are worth in a denoiser, and whether fewer steps are worth more.

    python -m brickwork.training.studies.stitching stitching -o runs/stitching

Two networks are trained, stitched by least squares and, for comparison, at random, and both are tuned. Every stitch is
scored by the paired loss; samples of some are measured beside the two networks', beside one network for high noise and
the other for low, and beside the large one in fewer steps.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from brickwork.adapters.base import denoiser_of
from brickwork.eval.held_out.subnet_losses import subnet_losses
from brickwork.eval.report.blocks import Plot, Report
from brickwork.eval.report.numbers import in_units
from brickwork.eval.sampling.pipelines import load_pipeline
from brickwork.eval.studies.core import Cell, Study, StudyFolder, compare_pairs, folder_name, table_of
from brickwork.gen.networks.stitched import StitchedDenoiser
from brickwork.gen.subnets import evenly
from brickwork.pipelines.schedules import SubnetSchedule, subnet_names
from brickwork.training.config.config import DEFAULTS, TrainConfig
from brickwork.training.config.library import CONFIGS
from brickwork.training.config.section import Number, Positive, Section, Share
from brickwork.training.engine.previews import PIPELINE
from brickwork.training.studies.battle import ScoreSettings
from brickwork.training.studies.trained import (
    RUN,
    configured,
    measure,
    reference_cell,
    sampling_call,
    study_script,
    training_cell,
)
from brickwork.training.tasks.backbone import build_held_out, build_images
from brickwork.training.tasks.backbones import build_objective

STUDY, STARTS = "stitching", ("least squares", "random")
REFERENCE = Path("reference") / "pictures.safetensors"


class StitchingSettings(Section):
    """What is stitched, and what it is held against."""

    anchors: dict[str, dict[str, Any]] = Field(min_length=2, max_length=2, description="two networks by name")
    tuning_images: Positive
    tuning_rate: Number
    shown: Positive
    fewer_steps: list[int]
    switches: list[Share]
    calibration: Positive


class StitchingConfig(TrainConfig):
    """A study: how each of the two is trained is a training run's."""

    defaults: ClassVar[tuple[Path, ...]] = (DEFAULTS, CONFIGS / "ablation_defaults.yaml")

    stitching: StitchingSettings
    scores: ScoreSettings


@dataclass
class Stitching:
    """The cells of the study in a folder."""

    config: StitchingConfig
    output: Path

    def run(self, **sections: dict[str, Any]) -> TrainConfig:
        """A training run of the study with other values."""
        own = {name: getattr(self.config, name) for name in TrainConfig.model_fields}
        own |= {name: own[name].replace(**values) for name, values in sections.items() if name != "objectives"}
        own |= {name: value for name, value in sections.items() if name == "objectives"}
        run = own["run"]
        return TrainConfig(**own | {"run": run.replace(sample_images=run.total_images)})

    def anchor(self, name: str) -> Path:
        """The pipeline that an anchor's run leaves."""
        return self.output / "anchors" / name / RUN / PIPELINE

    def anchors(self, results: Mapping[str, Any]) -> list[Cell]:
        """The two networks."""
        config = self.config.model.config
        return [
            training_cell(f"anchors/{name}", self.run(model={"config": config | values}))
            for name, values in self.config.stitching.anchors.items()
        ]

    def stitched(self, results: Mapping[str, Any]) -> list[Cell]:
        """The stitched network from both starts."""
        return [Cell(f"stitched/{folder_name(start)}", self.stitch, {"start": start}) for start in STARTS]

    def stitch(self, folder: Path, *, start: str) -> dict[str, int]:
        """Stitch the anchors; the operations of each subnet."""
        anchors = [self.anchor(name) for name in self.config.stitching.anchors]
        model = StitchedDenoiser.from_anchors(anchors, list(self.calibration()))
        if start == "random":
            torch.manual_seed(self.config.run.seed)
            for module in model.stitching.modules():
                if isinstance(module, torch.nn.Conv2d):
                    module.reset_parameters()
        pipeline = load_pipeline(str(anchors[-1]))
        whole = type(pipeline)(transformer=model, scheduler=pipeline.scheduler)
        whole.save_pretrained(folder / PIPELINE)
        return model.subnets(self.config.data.size, self.config.data.size)

    def calibration(self) -> Iterator[dict[str, Any]]:
        """Batches of noisy training pictures, at noise levels of training, as arguments of a network."""
        images, objective = build_images(self.config.data), build_objective(self.config.objective)
        rows = images.split(self.config.data.held_out)[0][: self.config.stitching.calibration]
        pictures, generator = build_held_out(images, rows), torch.Generator().manual_seed(0)
        for start in range(0, len(pictures.images), 32):
            clean = pictures.images[start : start + 32]
            sigma = objective.noise_levels(torch.randn(len(clean), generator=generator))
            sample, timestep = objective.network_inputs(clean, torch.randn(clean.shape, generator=generator), sigma)
            labels = None if pictures.labels is None else pictures.labels[start : start + 32]
            yield {"sample": sample, "timestep": timestep, "class_labels": labels}

    def tuned(self, results: Mapping[str, Any]) -> list[Cell]:
        """Both, trained on: a random subnet a step, taught by the large anchor."""
        teacher = str(self.anchor(list(self.config.stitching.anchors)[-1]))
        settings = self.config.stitching
        return [
            training_cell(
                f"tuned/{folder_name(start)}",
                self.run(
                    model={
                        "type": StitchedDenoiser.__name__, "config": {},
                        "init_from": str(self.output / "stitched" / folder_name(start) / PIPELINE),
                    },
                    optimizer={"learning_rate": settings.tuning_rate},
                    run={"total_images": settings.tuning_images},
                    objectives=[{"type": "output", "teacher": teacher, "weight": 1.0}],
                ),
            )
            for start in STARTS
        ]  # fmt: skip

    def networks(self) -> dict[str, Path]:
        """The stitched pipelines by what was done to them."""
        made = {f"{start}, untuned": self.output / "stitched" / folder_name(start) / PIPELINE for start in STARTS}
        return made | {
            f"{start}, tuned": self.output / "tuned" / folder_name(start) / RUN / PIPELINE for start in STARTS
        }

    def scored(self, results: Mapping[str, Any]) -> list[Cell]:
        """The paired loss of every subnet of each."""
        return [Cell(f"losses/{folder_name(name)}", self.score, {"network": name}) for name in self.networks()]

    def score(self, folder: Path, *, network: str) -> dict[str, list[float]]:
        """The loss of each held-out picture, over eight noise levels, by subnet."""
        images, objective = build_images(self.config.data), build_objective(self.config.objective)
        pairs = build_held_out(images, images.split(self.config.data.held_out)[1])
        model = denoiser_of(load_pipeline(str(self.networks()[network]))).eval()
        losses = subnet_losses(model, pairs, objective, None, subnet_names(model))
        return {name: values.mean(axis=0).tolist() for name, values in losses.items()}

    def ways(self, results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Ways to draw: `network`, `schedule` by the share of steps from the noisy end, and `steps`."""
        settings, steps = self.config.stitching, self.config.scores.steps
        small, large = "anchor-0", "anchor-1"
        tuned = f"{STARTS[0]}, tuned"
        costs = results[f"stitched/{folder_name(STARTS[0])}"]
        stitches = sorted((name for name in costs if "+" in name), key=costs.get)
        chosen = evenly(stitches, settings.shown)
        untouched = f"{STARTS[0]}, untuned"
        ways = {name: {"network": untouched, "schedule": [[1.0, name]], "steps": steps} for name in (small, large)}
        ways |= {
            f"{large}, {count} steps": {"network": untouched, "schedule": [[1.0, large]], "steps": count}
            for count in settings.fewer_steps
        }
        ways |= {
            f"{small} for {share:.0%}, then {large}": {
                "network": untouched, "schedule": [[share, small], [1.0, large]], "steps": steps,
            }
            for share in settings.switches
        }  # fmt: skip
        return ways | {
            f"{name}, {'tuned' if network == tuned else 'untuned'}": {
                "network": network, "schedule": [[1.0, name]], "steps": steps,
            }
            for name in chosen
            for network in (untouched, tuned)
        }  # fmt: skip

    def references(self, results: Mapping[str, Any]) -> list[Cell]:
        """What samples are measured against: the training pictures."""
        data, scores = self.config.data, self.config.scores
        return [] if scores.extractor is None else [reference_cell(data, scores, self.output / REFERENCE)]

    def drawn(self, results: Mapping[str, Any]) -> list[Cell]:
        """The samples of each way, from the same noise and classes; none without an extractor."""
        if self.config.scores.extractor is None:
            return []
        return [Cell(f"samples/{folder_name(name)}", self.draw, way) for name, way in self.ways(results).items()]

    def draw(self, folder: Path, *, network: str, schedule: list, steps: int) -> dict[str, Any]:
        """Draw and measure; the distance and the operations of one picture."""
        scores = self.config.scores.model_dump() | {"steps": steps}
        pipeline = load_pipeline(str(self.networks()[network]))
        model, size = denoiser_of(pipeline), self.config.data.size
        call = sampling_call(pipeline, scores, scores["samples"], self.config.run.seed)
        pipeline.scheduler.set_timesteps(steps)
        sigmas = pipeline.scheduler.sigmas[:steps].tolist()
        names = [next(name for share, name in schedule if at < share * steps - 1e-9) for at in range(steps)]
        pipeline.schedule = SubnetSchedule.from_levels(model, dict(zip(sigmas, names)))
        costs = model.subnets(size, size)
        found = measure(call.all(scores["batch_size"]), scores, str(self.output / REFERENCE), folder)
        return {"kd": found, "operations": sum(costs[name] for name in names)}

    def report(self, folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
        """Losses by cost, and distances by cost."""
        results = folder.results()
        costs = results[f"stitched/{folder_name(STARTS[0])}"]
        losses = {name: results[f"losses/{folder_name(name)}"] for name in self.networks()}
        rows = [
            {"subnet": name, "operations": costs[name], **{way: np.mean(of[name]) for way, of in losses.items()}}
            for name in sorted(costs, key=costs.get)
        ]
        columns = {"subnet": lambda row: row["subnet"], "MFLOP": lambda row: f"{row['operations'] / 1e6:.0f}"}
        columns |= {way: lambda row, way=way: f"{row[way]:.4f}" for way in losses}
        stitches = [name for name in costs if "+" in name]
        by_start = {
            stage: compare_pairs(
                *([np.mean(losses[f"{start}, {stage}"][name]) for name in stitches] for start in STARTS)
            )
            for stage in ("untuned", "tuned")
        }
        said = " ".join(
            f"{stage.capitalize()}, a random start is {by.mean:+.4f} ± {by.spread or 0:.4f} above least squares over "
            f"{len(stitches)} stitches, {len(by.reversed)} of them reversed."
            for stage, by in by_start.items()
            if stitches
        )
        course = {way: ([row["operations"] / 1e6 for row in rows], [row[way] for row in rows]) for way in losses}
        plot = Plot(course, "MFLOP of a forward pass", "held-out loss", points=True, name="stitching")
        blocks = [f"One seed, paired pictures. {said}", table_of(rows, columns), plot]
        ways = self.ways(results)
        drawn = {name: found for name in ways if (found := results.get(f"samples/{folder_name(name)}"))}
        if drawn:
            blocks.append(_distances(drawn))
        return Report("Stitched networks", blocks), {"rows": rows, "drawn": drawn}


def _distances(drawn: Mapping[str, Any]) -> Any:
    """The ways to draw by their operations."""
    return table_of(
        sorted(drawn, key=lambda name: drawn[name]["operations"]),
        {
            "drawn by": lambda name: name,
            "operations a picture": lambda name: in_units(drawn[name]["operations"], "FLOP"),
            next(iter(drawn.values()))["kd"]["name"]: lambda name: (
                f"{drawn[name]['kd']['value']:.4f} ± {drawn[name]['kd']['error']:.4f}"
            ),
        },
    )


def stitching(config: StitchingConfig, output: Path) -> Study:
    """Train, stitch, tune, score, and write the report."""
    study = Stitching(config, output)
    stages = [study.anchors, study.stitched, study.tuned, study.scored, study.references, study.drawn]
    return configured(STUDY, config, stages, study.report)


main = study_script(STUDY, __doc__, StitchingConfig, stitching)

if __name__ == "__main__":
    sys.exit(main())
