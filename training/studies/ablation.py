"""`brickwork ablation`: one training run, changed one thing at a time, over several seeds, at equal images or seconds.

Every variant is the same configuration with a few keys of its own. It may start from the weights of another one, grown
or not, or have another one as a teacher. All are scored on the same pictures, noise levels and noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from brickwork.adapters.base import denoiser_of
from brickwork.errors import explained, no_unknown, one_of, shown
from brickwork.eval.held_out.paired_loss import paired_loss
from brickwork.eval.report.blocks import Plot, Report
from brickwork.eval.report.numbers import number
from brickwork.eval.sampling.pipelines import load_pipeline
from brickwork.eval.studies.core import Cell, StudyFolder, compare_pairs, mean_and_spread, run_study, table_of
from brickwork.gen.networks.composite import CompositeDenoiser
from brickwork.training.config.config import DEFAULTS, TrainConfig, merge, nested
from brickwork.training.config.library import CONFIGS
from brickwork.training.config.section import Positive, Section, build, require
from brickwork.training.engine.previews import PIPELINE
from brickwork.training.studies.timed import timing_of
from brickwork.training.studies.trained import RUN, configured, paired_sets, training_cell
from brickwork.training.tasks.backbone import build_images
from brickwork.training.tasks.backbones import TrainedOn, build_model, build_objective

STUDY = "ablation"
REFERENCE = "run:"  # before a variant's name, where a value wants a pipeline: the one that it left
_VARIANT = {"label": str, "start": str, "grow": dict, "once": bool, "set": dict}
_TIMED = {"samples": 2, "steps": 2, "guidance_scale": 1.0, "batch_size": 2}


@dataclass(frozen=True)
class Variant:
    """One of the ways to train.

    Attributes:
        label: in the tables.
        start: the variant whose weights it starts from, of the same seed.
        grow: arguments of `CompositeDenoiser.grow`, for what it starts from.
        once: trained with the first seed only, for others to use: it has no row.
        set: values by dotted keys over the study's own; `run:NAME` stands for the pipeline of another variant.
    """

    label: str
    start: str | None = None
    grow: Mapping[str, Any] | None = None
    once: bool = False
    set: Mapping[str, Any] | None = None

    @property
    def uses(self) -> list[str]:
        """The variants that have to be trained before."""
        found = [self.start] if self.start else []
        _resolved(self.set or {}, found.append)
        return found


def _resolved(value: Any, resolve: Callable[[str], Any]) -> Any:
    """A value in which each reference is what its name stands for."""
    if isinstance(value, Mapping):
        return {key: _resolved(inner, resolve) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, resolve) for inner in value]
    refers = isinstance(value, str) and value.startswith(REFERENCE)
    return resolve(value.removeprefix(REFERENCE)) if refers else value


class AblationSettings(Section):
    """How often, and what is alike."""

    seeds: list[int] = Field(min_length=1, description="a list of at least one seed")
    equal: Literal["images", "seconds"]
    timing_rounds: Positive


class AblationConfig(TrainConfig):
    """A study: the first variant that has a row is the baseline, and the other sections are a training run's."""

    defaults: ClassVar[tuple[Path, ...]] = (DEFAULTS, CONFIGS / "ablation_defaults.yaml")

    variants: dict[str, Any]
    ablation: AblationSettings

    @model_validator(mode="after")
    def _known_variants(self):
        different = len(set(self.ablation.seeds)) == len(self.ablation.seeds)
        require(different, "ablation.seeds", self.ablation.seeds, "give different seeds")
        for name, variant in self.ways.items():
            for used in variant.uses:
                one_of(f"variants.{name}", used, [other for other in self.ways if other != name])
                rule = f"{used!r} uses {self.ways[used].uses} itself, and only one may stand behind another"
                require(not self.ways[used].uses, f"variants.{name}", used, rule)
                of_one = variant.once and not self.ways[used].once
                require(not of_one, f"variants.{name}.once", True, f"give {used!r} `once: true` too, or neither")
        require(bool(self.compared), "variants", list(self.variants), "give one that is not `once: true`")
        return self

    @property
    def ways(self) -> dict[str, Variant]:
        """The variants by name."""
        return {name: _variant(name, values or {}) for name, values in self.variants.items()}

    @property
    def compared(self) -> dict[str, Variant]:
        """Those with a row."""
        return {name: variant for name, variant in self.ways.items() if not variant.once}

    def seeds(self, name: str) -> list[int]:
        """The seeds that a variant is trained with."""
        return self.ablation.seeds[:1] if self.ways[name].once else self.ablation.seeds


def _variant(name: str, values: Any) -> Variant:
    require(isinstance(values, dict), f"variants.{name}", values, f"give a mapping with some of {', '.join(_VARIANT)}")
    no_unknown(f"variants.{name}", values, _VARIANT, "a variant")
    for key, value in values.items():
        kind = _VARIANT[key]
        require(isinstance(value, kind), f"variants.{name}.{key}", value, f"give a {kind.__name__}")
    require("grow" not in values or "start" in values, f"variants.{name}.grow", values.get("grow"), "name its `start`")
    return Variant(**{"label": name} | values)


@dataclass
class Ablation:
    """The cells of a study in a folder."""

    config: AblationConfig
    output: Path

    def pipeline(self, name: str, seed: int) -> Path:
        """What a run leaves."""
        seed = seed if seed in self.config.seeds(name) else self.config.ablation.seeds[0]
        return self.output / cell_name(name, seed) / RUN / PIPELINE

    def run(self, name: str, seed: int, images: int | None = None) -> TrainConfig:
        """The training run of a variant, of so many images; its rate rises and falls in the same shares of it. A
        `ValueError` names the variant whose values are wrong."""
        variant = self.config.ways[name]
        values = self.config.model_dump(exclude={"variants", "ablation"})
        for key, value in (variant.set or {}).items():
            values = merge(values, nested(key, _resolved(value, lambda used: str(self.pipeline(used, seed)))))
        if variant.start is not None:
            start = self.pipeline(variant.start, seed)
            values["model"]["init_from"] = str(self.grown(name, seed) if variant.grow is not None else start)
            if variant.grow is not None:
                values["model"] |= {"type": CompositeDenoiser.__name__, "preset": None, "config": {}}
        planned = values["run"]["total_images"]
        total = images or planned
        for key in ("warmup_images", "cooldown_images"):  # the same share of a shorter run
            values["optimizer"][key] = round(values["optimizer"][key] * total / planned)
        values["run"] |= {"seed": seed, "total_images": total}
        values["run"]["sample_images"] = values["run"]["sample_images"] or total
        with explained(f"`variants.{name}`", ValueError):
            return build(TrainConfig, values)

    def check(self, name: str, data: TrainedOn) -> None:
        """Raise a `ValueError` for a variant whose configuration or whose network cannot be built."""
        run = self.run(name, self.config.ablation.seeds[0])
        with explained(f"`variants.{name}`", ValueError):
            if run.model.init_from is None:
                with torch.device("meta"):
                    build_model(run.model, run.objective, data)

    def grown(self, name: str, seed: int) -> Path:
        """The folder of what a variant's start becomes, made once it is trained."""
        variant, folder = self.config.ways[name], self.output / "grown" / f"{name}-seed{seed}"
        if not folder.exists() and self.pipeline(variant.start, seed).exists():
            CompositeDenoiser.grow(self.pipeline(variant.start, seed), **variant.grow).save_pretrained(folder)
        return folder

    def cells(self, used: bool, results: Mapping[str, Any]) -> list[Cell]:
        """The runs that others use, or the others."""
        behind = {other for variant in self.config.ways.values() for other in variant.uses}
        names = [name for name in self.config.ways if (name in behind) == used]
        length = partial(self.length, results)
        return [
            training_cell(cell_name(name, seed), self.run(name, seed, length(name)), about={"variant": name})
            for seed in self.config.ablation.seeds
            for name in names
            if seed in self.config.seeds(name)
        ]

    def timing(self, results: Mapping[str, Any]) -> list[Cell]:
        """What a training step of each variant costs."""
        runs = {name: self.run(name, self.config.ablation.seeds[0]) for name in self.config.compared}
        return [timing_of(runs, _TIMED, self.config.ablation.timing_rounds)]

    def length(self, results: Mapping[str, Any], name: str) -> int | None:
        """The images of a run in whole batches, as many as take the baseline the images that its configuration says;
        `None` for just those."""
        others = [used for variant in self.config.ways.values() for used in variant.uses]
        if self.config.ablation.equal == "images" or "timing" not in results or name in others:
            return None
        costs = results["timing"]["networks"]
        run, first = self.run(name, self.config.ablation.seeds[0]).run, next(iter(costs))
        wanted = run.total_images * costs[first]["seconds_per_image"] / costs[name]["seconds_per_image"]
        return max(1, round(wanted / run.batch_size)) * run.batch_size

    def scores(self, results: Mapping[str, Any]) -> list[Cell]:
        """One cell a run: its averaged weights on the same held-out pictures, and on as many that it learned from."""
        return [
            Cell(f"losses/{name}-seed{seed}", self.score, {"variant": name, "seed": seed})
            for name in self.config.compared
            for seed in self.config.seeds(name)
            if results[cell_name(name, seed)]["final_loss"] is not None
        ]

    def score(self, folder: Path, *, variant: str, seed: int) -> dict[str, float]:
        """The paired losses of a finished run."""
        network = denoiser_of(load_pipeline(str(self.pipeline(variant, seed)))).eval()
        objective, sets = build_objective(self.config.objective), paired_sets(self.config.data)
        losses = [paired_loss(network, pairs, objective)["loss"] for pairs in sets]
        return dict(zip(("held_out", "learned"), losses))

    def rows(self, results: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A row a variant: means over the seeds, and the differences to the baseline seed by seed."""
        losses = {
            name: {
                seed: found for seed in self.config.seeds(name) if (found := results.get(f"losses/{name}-seed{seed}"))
            }
            for name in self.config.compared
        }
        held_out = {name: {seed: loss["held_out"] for seed, loss in of.items()} for name, of in losses.items()}
        baseline, rows = held_out[next(iter(losses))], []
        for name, of in losses.items():
            runs = [results[key] for seed in of if (key := cell_name(name, seed)) in results]
            mean, spread = mean_and_spread(list(held_out[name].values())) if of else (None, None)
            below, above = compare_pairs(held_out[name], baseline), compare_pairs(baseline, held_out[name])
            rows.append({
                "variant": name, "label": self.config.ways[name].label, "loss": mean, "spread": spread,
                "images": runs[0]["images"] if runs else None, "seeds": len(of),
                "gap": mean_and_spread([f["held_out"] - f["learned"] for f in of.values()])[0] if of else None,
                "change": above.mean, "change_spread": above.spread,
                "verdict": "lower" if below.exceeds else "higher" if above.exceeds else "within the spread",
                **results["timing"]["networks"][name],
            })  # fmt: skip
        return rows

    def report(self, folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
        """The table, and how the held-out losses fell where they were looked at on the way."""
        results = folder.results()
        if "timing" not in results:
            return Report(STUDY, ["Nothing is finished yet."]), {"rows": []}
        rows = self.rows(results)
        unit = results["timing"]["unit"]
        first = rows[0]["variant"]
        columns = {
            "variant": lambda row: row["label"],
            "parameters": lambda row: f"{row['parameters']:,}",
            f"{unit} for 1,000 images": lambda row: f"{1e3 * row['seconds_per_image']:.1f}",
            "images": lambda row: None if row["images"] is None else f"{row['images']:,}",
            "held-out loss": lambda row: (
                "diverged" if row["loss"] is None else number(row["loss"], row["spread"])
            ),
            "over that on learned pictures": lambda row: None if row["gap"] is None else f"{row['gap']:+.4f}",
            f"change to {rows[0]['label']}": lambda row: (
                "" if row["variant"] == first or row["change"] is None
                else f"{number(row['change'], row['change_spread'], signed=True)}, {row['verdict']}"
            ),
        }  # fmt: skip
        text = (
            f"Means over {len(self.config.ablation.seeds)} seeds ± their standard deviation, of averaged weights, at "
            f"equal {self.config.ablation.equal}. Changes are taken seed by seed; one counts as lower or higher if "
            f"its mean exceeds its spread and no seed reverses it. Seconds are {unit} of a training step "
            f"({results['timing']['device']})."
        )
        curves = {
            f"{row['label']}, seed {seed}": tuple(zip(*course))
            for row in rows
            for seed in self.config.seeds(row["variant"])
            if len(course := (results.get(cell_name(row["variant"], seed)) or {}).get("curve", [])) > 1
        }
        blocks = [text, table_of(rows, columns)]
        if curves:
            blocks.append(Plot(curves, "images", "held-out loss", name="curves"))
        return Report(f"Ablation: {', '.join(row['label'] for row in rows)}", blocks), {"rows": rows}


def cell_name(name: str, seed: int) -> str:
    """Of a run."""
    return f"cells/{name}-seed{seed}"


def run_ablation(config: AblationConfig, output_dir: str | Path, dry_run: bool = False, jobs: int = 1) -> bool:
    """Train what is not there yet, score it, and write the report.

    Args:
        config: of the study.
        output_dir: its folder; finished runs are kept.
        dry_run: check every variant, say what there is, and no more.
        jobs: processes at a time.

    Raises:
        ValueError: for variants that cannot be trained, and a folder of another study.
    """
    ablation = Ablation(config, Path(output_dir))
    stages = [partial(ablation.cells, True), ablation.timing, partial(ablation.cells, False), ablation.scores]
    study = configured(STUDY, config, stages, ablation.report)
    study.open(output_dir, write=False)
    runs = [(name, seed) for name in config.ways for seed in config.seeds(name)]
    images = build_images(config.data)
    for name in config.ways:
        ablation.check(name, TrainedOn(images.class_names, config.data.size, images.channels))
    print(f"{len(runs)} runs of {len(config.ways)} variants: {shown(list(config.ways))}.")
    return not dry_run and run_study(study, output_dir, jobs)
