"""One cell of a battle, in a process of its own: an ordinary training run, and what its samples are worth.

    python -m brickwork.training.studies.battle.cell '{"network": …, "folder": …, …}'

`brickwork battle` starts these. A cell that was stopped goes on from its checkpoint; `cell.json` says that it is done.
One that diverges is done too: its last loss is `None`.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import EDMDPMSolverMultistepScheduler
from safetensors.torch import save_file

from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.metrics.distances import kernel_distance
from brickwork.eval.metrics.feature_sets import extract_features
from brickwork.eval.metrics.reference import Reference
from brickwork.eval.report.pictures import grid, save_picture
from brickwork.eval.sampling.pipelines import load_pipeline, place
from brickwork.eval.sampling.sample_set import PipelineCall, SamplingSettings, denoiser_of
from brickwork.eval.sets.pictures import from_arrays, write_atomically
from brickwork.training.config.config import load_config
from brickwork.training.engine.guards import write_text
from brickwork.training.engine.loop import train
from brickwork.training.engine.previews import PIPELINE
from brickwork.training.engine.runlog import LOG, Diverged
from brickwork.training.train_backbone import prepare

RESULT, TRAIN, SAMPLES, FEATURES = "cell.json", "train.yaml", "samples.png", "features.safetensors"
GRID_ROWS, GRID_COLUMNS = 4, 9
# Deviations of a kernel distance are over so many subsets of half the samples.
KD_SUBSETS = 100


def sampling_call(pipeline, scores: dict, count: int, seed: int) -> PipelineCall:
    """Calls a network's pipeline with DPM-Solver++ (arXiv 2211.01095) in EDM's noise levels, classes in turn.

    Args:
        pipeline: of the network, of EDM's objective; its scheduler is replaced.
        scores: the battle's `scores`.
        count: of pictures.
        seed: of the set.
    """
    sigma_data = pipeline.scheduler.config.sigma_data
    pipeline.register_modules(scheduler=EDMDPMSolverMultistepScheduler(sigma_data=sigma_data))
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": scores["steps"], "guidance_scale": scores["guidance_scale"]}
    labels = "balanced" if denoiser_of(pipeline).config.num_classes else "none"
    if labels == "none":
        call["guidance_scale"] = 1.0
    return PipelineCall(pipeline, SamplingSettings(count, seed, labels, call=call))


def draw(call: PipelineCall, batch_size: int) -> torch.Tensor:
    """All pictures of a set, uint8 `(count, H, W, 3)`."""
    count = call.settings.count
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    return torch.cat([torch.from_numpy(call(batch)) for batch in batches])


def curve(run: Path) -> list[list[float]]:
    """Held-out losses of a run, `[images, loss]` in turn."""
    if not (run / LOG).is_file():  # it diverged at once
        return []
    lines = [json.loads(line) for line in (run / LOG).read_text(encoding="utf-8").splitlines()]
    return [[line["images"], line["held_out/loss"]] for line in lines if "held_out/loss" in line]


def measure(pictures: torch.Tensor, scores: dict, reference: str, folder: Path) -> dict:
    """The kernel distance of the pictures to the reference; their features are kept for a distance over seeds."""
    real = Reference.load(reference)
    extractor = load_extractor(scores["extractor"])
    place(extractor.network)
    images = from_arrays(pictures.numpy(), "samples")
    found = extract_features(images, extractor, get_protocol(scores["protocol"]), progress=False)
    features = found.outputs["features"].contiguous()
    write_atomically(folder / FEATURES, lambda path: save_file({"features": features}, path))
    value, error = kernel_distance(real.require_features(), features, KD_SUBSETS, len(features) // 2)
    name = extractor.metric_name("kd")
    return {"value": value, "error": error, "samples": len(features), "steps": scores["steps"], "name": name}


def run_cell(task: dict) -> bool:
    """Train a cell, and if asked for draw and measure samples of its averaged weights.

    Args:
        task: `network`, `label`, `seed`, `folder`, `reference` (a file, or `None` for no distances), and `scores`
            (`None` for the loss alone).

    Returns:
        Whether it is done, not stopped.
    """
    folder, scores = Path(task["folder"]), task["scores"]
    config = load_config(folder / TRAIN)
    try:
        images, diverged = train(prepare(config)), False
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        images, diverged = config.run.total_images, True
    if images < config.run.total_images:
        return False
    points = curve(folder / "run") + ([[images, None]] if diverged else [])
    result = {key: task[key] for key in ("network", "label", "seed")} | {
        "learning_rate": config.optimizer.learning_rate,
        "images": images,
        "batch_size": config.run.batch_size,
        "curve": points,
        "final_loss": points[-1][1],
        "kd": None,
        "samples_png": None,
    }
    if scores is not None and not diverged:
        pipeline = load_pipeline(str(folder / "run" / PIPELINE))
        pictures = draw(sampling_call(pipeline, scores, scores["samples"], task["seed"]), scores["batch_size"])
        shown = pictures[: GRID_ROWS * GRID_COLUMNS].numpy()
        save_picture(grid(shown, columns=min(GRID_COLUMNS, len(shown))), folder / SAMPLES)
        kernel = None if task["reference"] is None else measure(pictures, scores, task["reference"], folder)
        result |= {"kd": kernel, "samples_png": SAMPLES}
    write_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the cell that the one argument describes as JSON; 3 says that it was stopped and has saved."""
    task = json.loads((arguments or sys.argv[1:])[0])
    try:
        return 0 if run_cell(task) else 3
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
