"""Cells that are ordinary training runs: trained, sampled and measured alike, whatever the network.

A cell that was stopped goes on from its checkpoint. One that diverges is a result too: its last loss is `None`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from diffusers import EDMDPMSolverMultistepScheduler
from safetensors.torch import save_file

from brickwork import options
from brickwork.adapters.base import denoiser_of
from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.held_out.paired_loss import PairedSet
from brickwork.eval.metrics.distances import kernel_distance
from brickwork.eval.metrics.feature_sets import extract_features
from brickwork.eval.metrics.reference import Reference, make_reference
from brickwork.eval.report.pictures import grid, save_picture
from brickwork.eval.sampling.pipelines import load_pipeline, to_device
from brickwork.eval.sampling.sample_set import PipelineCall, SamplingSettings
from brickwork.eval.sets.pictures import from_arrays
from brickwork.eval.studies.core import Cell, Stopped, Study, run_study
from brickwork.files import write_file
from brickwork.training.commands.data_split import write_split
from brickwork.training.commands.train import run_script
from brickwork.training.config.config import Configuration, TrainConfig, load_config
from brickwork.training.config.data import DataConfig
from brickwork.training.engine.loop import prepare, train
from brickwork.training.engine.page import read_log
from brickwork.training.engine.previews import PIPELINE
from brickwork.training.engine.runlog import LOG, Diverged
from brickwork.training.tasks.backbone import BackboneTask, build_held_out, build_images

RUN, TRAIN, SAMPLES, FEATURES = "run", "train.yaml", "samples.png", "features.safetensors"
GRID_ROWS, GRID_COLUMNS = 4, 9
# Deviations of a kernel distance are over so many subsets of half the samples.
KD_SUBSETS = 100
# What changes nothing that is learned: where things lie, how pictures are loaded, what is kept on the way.
FREE = ("data.source", "data.num_workers", "model.init_from", "run.output_dir", "run.checkpoint_images",
        "run.keep_checkpoints")  # fmt: skip


def configured(name: str, config: Configuration, stages: Sequence[Callable], report: Callable | None) -> Study:
    """A study whose conditions are a configuration; see `Study`."""
    return Study(name, yaml.safe_load(config.to_yaml()), stages, report, FREE)


def study_script(
    name: str, description: str | None, kind: type[Configuration], made: Callable[[Any, Path], Study]
) -> Callable[..., int]:
    """The `main(arguments=None)` of a study that a file describes.

    Args:
        name: of the script.
        description: its docstring.
        kind: of the configuration.
        made: gives the study, from that and its folder.
    """

    def run(args: argparse.Namespace) -> int:
        study = made(load_config(args.study, args.overrides, kind), args.output)
        return 0 if run_study(study, args.output) else 1

    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("study", help="YAML file of the study, or the name of one that ships")
        parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the study")
        options.add_common(parser, "overrides")
        parser.set_defaults(run=run)

    return partial(run_script, name, description, configure)


def paired_sets(data: DataConfig) -> tuple[PairedSet, PairedSet]:
    """The held-out images, and as many of those that are learned from."""
    images = build_images(data)
    learned, held_out = images.split(data.held_out)
    chosen = [learned[at] for at in np.linspace(0, len(learned) - 1, len(held_out)).astype(int)]
    return build_held_out(images, held_out), build_held_out(images, chosen)


def training_values(config: TrainConfig) -> tuple[dict, dict[str, Any]]:
    """A training run as plain values: what its result depends on, and by dotted keys what it does not."""
    values = yaml.safe_load(config.to_yaml())
    free = {key: values[section].pop(name) for key in FREE for section, name in [key.split(".")]}
    return values, free


def training_cell(
    name: str,
    config: TrainConfig,
    *,
    about: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    reference: Path | None = None,
    describe: Callable[[Any], str] | None = None,
) -> Cell:
    """A cell that trains, in a process of its own (see `train_cell`).

    Args:
        name: of the cell.
        config: of the run, whose folder is `run` in the cell's.
        about: what the result says of the cell: its network, its seed.
        scores: how samples are drawn and measured, `None` for the loss alone.
        reference: what they are measured against.
        describe: a line on its result; by default the loss and the distance.
    """
    values, free = training_values(config)
    identity = {"train": values, "about": about or {}, "scores": scores}
    settings = {"free": free, "reference": None if reference is None else str(reference)}
    return Cell(name, f"{__name__}:train_cell", identity, settings, describe=describe or ending)


def reference_cell(data: DataConfig, scores: Any, file: Path) -> Cell:
    """The cell `reference`: features of the pictures that are trained on, in a file; the result is how many.

    Args:
        data: whose pictures.
        scores: their `extractor` and `protocol`.
        file: of a `Reference`, in the cell's folder.
    """

    def write(folder: Path) -> int:
        write_split(build_images(data), data.held_out, folder / "pictures")
        extractor = load_extractor(scores.extractor)
        to_device(extractor.network)
        reference = make_reference(folder / "pictures" / "train", extractor, scores.protocol)
        reference.save(file)
        return reference.statistics["features"][0]

    return Cell("reference", write)


def ending(result: Mapping[str, Any]) -> str:
    """How a cell ended, in a line."""
    loss, kernel = result["final_loss"], result["kd"]
    text = "diverged" if loss is None else f"held-out loss {loss:.4f}"
    return text + (f", {kernel['name']} {kernel['value']:.4f} ± {kernel['error']:.4f}" if kernel else "")


def read_training(folder: Path, train: Mapping[str, Any], free: Mapping[str, Any]) -> TrainConfig:
    """The run of a cell from `training_values`, put down in its folder as `train.yaml`."""
    values = {section: dict(keys) if isinstance(keys, Mapping) else keys for section, keys in train.items()}
    for key, value in {**free, "run.output_dir": str(folder / RUN)}.items():
        section, name = key.split(".")
        values[section][name] = value
    return load_config(write_file(folder / TRAIN, yaml.safe_dump(values, sort_keys=False, allow_unicode=True)))


def train_cell(
    folder: Path, *, train: dict, about: dict, scores: dict | None, free: dict, reference: str | None
) -> dict[str, Any]:
    """Train, and if asked for draw and measure samples of the averaged weights.

    Args:
        folder: of the cell.
        train, free: see `training_values`.
        about: goes into the result.
        scores: `samples`, `steps`, `guidance_scale`, `batch_size`, and for a distance `extractor` and `protocol`.
        reference: file of a `Reference`, `None` for no distance.

    Returns:
        `about`, `seed`, `learning_rate`, `images`, `batch_size`, `curve` (`[images, held-out loss]` in turn),
        `final_loss`, `kd` and `samples_png`, the last three `None` where there is none.

    Raises:
        Stopped: where the run was asked to stop.
    """
    config = read_training(folder, train, free)
    try:
        images, diverged = run_training(config), False
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        images, diverged = config.run.total_images, True
    if images < config.run.total_images:
        raise Stopped
    points = curve(folder / RUN) + ([[images, None]] if diverged else [])
    result = {
        **about,
        "seed": config.run.seed,
        "learning_rate": config.optimizer.learning_rate,
        "images": images,
        "batch_size": config.run.batch_size,
        "curve": points,
        "final_loss": points[-1][1] if points else None,
        "kd": None,
        "samples_png": None,
    }
    if scores is not None and not diverged:
        pipeline = load_pipeline(str(folder / RUN / PIPELINE))
        pictures = sampling_call(pipeline, scores, scores["samples"], config.run.seed).all(scores["batch_size"])
        shown = pictures[: GRID_ROWS * GRID_COLUMNS]
        save_picture(grid(shown, columns=min(GRID_COLUMNS, len(shown))), folder / SAMPLES)
        kernel = None if reference is None else measure(pictures, scores, reference, folder)
        result |= {"kd": kernel, "samples_png": SAMPLES}
    return result


def run_training(config: TrainConfig) -> int:
    """Images seen when the run ended or was stopped."""
    return train(prepare(BackboneTask, config))


def sampling_call(pipeline, scores: Mapping[str, Any], count: int, seed: int) -> PipelineCall:
    """Calls a network's pipeline with DPM-Solver++ (arXiv 2211.01095) in EDM's noise levels, classes in turn.

    Args:
        pipeline: of the network, of EDM's objective; its scheduler is replaced.
        scores: see `train_cell`.
        count: of pictures.
        seed: of the set.
    """
    sigma_data = pipeline.scheduler.config.sigma_data
    pipeline.register_modules(scheduler=EDMDPMSolverMultistepScheduler(sigma_data=sigma_data))
    pipeline.set_progress_bar_config(disable=True)
    labelled = bool(denoiser_of(pipeline).config.num_classes)
    call = {"num_inference_steps": scores["steps"], "guidance_scale": scores["guidance_scale"] if labelled else 1.0}
    return PipelineCall(pipeline, SamplingSettings(count, seed, "balanced" if labelled else "none", call=call))


def curve(run: Path) -> list[list[float]]:
    """Held-out losses of a run, `[images, loss]` in turn."""
    return [list(point) for point in read_log(run / LOG).get("held_out/loss", [])]


def measure(pictures: np.ndarray, scores: Mapping[str, Any], reference: str, folder: Path) -> dict[str, Any]:
    """The kernel distance of the pictures to the reference; their features are kept for a distance over seeds."""
    real = Reference.load(reference)
    extractor = load_extractor(scores["extractor"])
    to_device(extractor.network)
    images = from_arrays(pictures, "samples")
    found = extract_features(images, extractor, get_protocol(scores["protocol"]), progress=False)
    features = found.outputs["features"].contiguous()
    write_file(folder / FEATURES, lambda path: save_file({"features": features}, path))
    value, error = kernel_distance(real.require_features(), features, KD_SUBSETS, len(features) // 2)
    name = extractor.metric_name("kd")
    return {"value": value, "error": error, "samples": len(features), "steps": scores["steps"], "name": name}
