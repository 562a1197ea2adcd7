"""What the averaged weights can do so far: held-out losses, samples and their distances; the pipeline a run leaves."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.metrics.live import LiveMetrics
from brickwork.eval.metrics.reference import Reference
from brickwork.eval.report.pictures import save_picture
from brickwork.eval.sampling.sample_set import SamplingSettings
from brickwork.files import file_digest, put_in_place, write_file
from brickwork.pipelines.objective_file import save_objective
from brickwork.training.config.objective import ObjectiveConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.config.samples import MetricsConfig
from brickwork.training.engine.checkpoints import gathered
from brickwork.training.engine.ema import EMA
from brickwork.training.engine.guards import StopSignal
from brickwork.training.engine.page import run_page
from brickwork.training.engine.runlog import RunLog
from brickwork.training.engine.settings import EngineSettings
from brickwork.training.task import Task

PIPELINE, SAMPLES, PAGE = "pipeline", "samples", "index.html"
UNEVALUATED = "look_due"


def sample_labels(num_classes: int | None, count: int) -> list[int | None]:
    """One label a picture, classes in order, as evenly as `count` allows."""
    if num_classes is None:
        return [None] * count
    if num_classes >= count:
        return [k * num_classes // count for k in range(count)]
    return sorted(k % num_classes for k in range(count))


def draw_samples(pipeline, num_classes: int | None, count: int, steps: int, guidance_scale: float) -> np.ndarray:
    """Pictures uint8 `(count, H, W, 3)`; picture k has the same class and noise however the weights change.

    The frames of a video lie side by side in one picture.
    """
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        class_labels=sample_labels(num_classes, count),
        num_inference_steps=steps,
        guidance_scale=1.0 if num_classes is None else guidance_scale,
        generator=[torch.Generator().manual_seed(k) for k in range(count)],
        output_type="pil",
    )
    drawn = output.frames if hasattr(output, "frames") else [[picture] for picture in output.images]
    return np.stack([np.concatenate([np.asarray(f.convert("RGB")) for f in frames], axis=1) for frames in drawn])


def show_sheet(task: Task, sheet: Image.Image | None, images: int, log: RunLog) -> None:
    """Put a sheet of pictures, if there is one, among the run's samples and into its log; write its page anew."""
    if not task.accelerator.is_main_process:
        return
    folder = log.folder
    if sheet is not None:
        log.picture(images, "samples", np.asarray(sheet))
        save_picture(sheet, folder / SAMPLES / f"images-{images:012d}.png")
    write_file(folder / PAGE, run_page(folder))


def evaluate_averages(
    task: Task, settings: EngineSettings, ema: EMA, images: int, log: RunLog, stop: StopSignal
) -> None:
    """Measure what the averaged weights draw, and show it, where that is due; a stop cancels the measuring."""
    measured, shown = _evaluations_due(task, settings, images)
    if not (measured or shown):
        return
    with ema.applied():
        if measured and not measure(task, images, log, lambda: stop.agreed(task.accelerator)):
            return
        if shown:
            task.preview(images, log)
    if task.accelerator.is_main_process:
        (log.folder / UNEVALUATED).unlink(missing_ok=True)


def note_evaluation(task: Task, settings: EngineSettings, images: int) -> None:
    """Note, before the checkpoint is saved, that its averages are to be evaluated: a killed run makes up for it."""
    if any(_evaluations_due(task, settings, images)) and task.accelerator.is_main_process:
        write_file(Path(settings.run.output_dir) / UNEVALUATED, f"{images}\n")


def is_unevaluated(folder: Path, images: int) -> bool:
    """Whether a run was killed or stopped before it had evaluated the averages that it goes on from."""
    note = folder / UNEVALUATED
    return note.is_file() and note.read_text().strip() == str(images)


def due(images: int, interval: int, settings: RunConfig) -> bool:
    """Whether a step that ended at `images` passed a multiple of `interval`, or was the last; 0 for never."""
    passed = interval > 0 and images // interval > (images - settings.batch_size) // interval
    return passed or (interval > 0 and images >= settings.total_images)


def _evaluations_due(task: Task, settings: EngineSettings, images: int) -> tuple[bool, bool]:
    """Whether distances are to be measured after `images`, and whether pictures are to be shown."""
    measured = task.metrics is not None and due(images, settings.measured_every, settings.run)
    return measured, due(images, settings.run.sample_images, settings.run)


def measure(task: Task, images: int, log: RunLog, cancelled: Callable[[], bool]) -> bool:
    """Log the distances of what the averaged weights draw to the reference; all processes share the drawing.

    Returns:
        Whether that was done, not cancelled.
    """
    with task.accelerator.autocast():
        values = task.metrics.measure(task.pipeline(task.network), cancelled)
    if values is None:
        return False
    log.scalars(images, {f"metrics/{name}": value for name, value in values.items()})
    listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    task.accelerator.print(f"{images:,} images: {listed}")
    show_sheet(task, None, images, log)
    return True


def build_metrics(
    settings: MetricsConfig, size: int, num_classes: int | None, accelerator: Accelerator, call: dict | None = None
) -> LiveMetrics | None:
    """What `metrics` of a configuration asks for, checked before the first step; `None` where it asks for nothing.

    Args:
        settings: that section.
        size: side of the training pictures in pixels.
        num_classes: of the network, whose labels are then drawn evenly.
        accelerator: of the run.
        call: arguments of the pipeline; by default size, steps and guidance.

    Raises:
        ValueError: for a reference that cannot be read, is of another size than the training's, or needs an extractor
            that cannot be had.
    """
    if not settings.every_images:
        return None
    made_by = f"`brickwork evaluate ref DATA --resolution {size}`"
    if settings.reference is None:
        raise ValueError(f"`metrics.reference` is null; name a file that {made_by} wrote.")
    reference = Reference.load(settings.reference)
    width, height = reference.info["size"]
    if (width, height) != (size, size):
        raise ValueError(
            f"`metrics.reference` is {settings.reference!r}, of pictures of {width}x{height}, but `data.size` is "
            f"{size}; make another with {made_by}."
        )
    with accelerator.local_main_process_first():  # which fetches the weights, if they are not there
        weights = settings.weights
        extractor = load_extractor(reference.info["extractor"]["name"], weights, weights and file_digest(weights))
    extractor.network.to(accelerator.device)
    if call is None:
        guidance = 1.0 if num_classes is None else settings.guidance_scale
        call = {"height": height, "width": width, "num_inference_steps": settings.steps, "guidance_scale": guidance}
    labels = "none" if num_classes is None else "balanced"
    metrics = LiveMetrics(
        reference, extractor, SamplingSettings(settings.count, labels=labels, call=call), settings.batch_size
    )
    measured = f"{', '.join(metrics.titles)} ({metrics.conditions})"
    accelerator.print(f"Every {settings.every_images:,} images {settings.count:,} samples are measured: {measured}.")
    return metrics


def averaged_copy(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A network of its own on the CPU with the averaged weights, whatever wraps or shards the one in training."""
    copy = type(network).from_config(network.config)
    frozen = {name: gathered(tensor) for name, tensor in network.state_dict().items() if name not in weights}
    copy.load_state_dict(frozen | weights)
    return copy.eval()


def export_pipeline(pipeline, folder: Path, objective: ObjectiveConfig | None = None, card: str = "") -> Path:
    """Write a pipeline folder under another name, let it replace an earlier one, and say where it is.

    Args:
        pipeline: to write.
        folder: the run's.
        objective: what its network was trained for, noted beside it.
        card: a README in Markdown, if any.
    """
    target, temporary = folder / PIPELINE, folder / f".{PIPELINE}.new"
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    if objective is not None:
        save_objective(temporary, objective.type, objective.options)
    if card:
        write_file(temporary / "README.md", card)
    put_in_place(temporary, target)
    tqdm.write(f"The pipeline with the averaged weights is in {target}.")
    return target


def leave_pipeline(task: Task, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Leave `pipeline/` in the run's folder, with the averaged weights by name; whoever draws with it gets what the
    run's samples show."""
    shown = task.config.samples
    network = averaged_copy(task.network, weights)  # by all processes: what is frozen may be sharded too
    if not task.accelerator.is_main_process:
        return
    pipeline = task.pipeline(network)
    if "guidance_scale" in pipeline.config:  # ours with classes remember it
        guided = shown.guidance_scale != 1 and network.config.get("num_classes") is not None
        pipeline.register_to_config(
            num_inference_steps=shown.steps, guidance_scale=shown.guidance_scale if guided else None
        )
    export_pipeline(pipeline, folder, task.config.objective)
