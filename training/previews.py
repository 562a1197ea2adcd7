"""What the averaged weights can do so far: held-out losses and grids of samples; and the pipeline a run leaves."""

import os
import shutil
from pathlib import Path

import numpy as np
import torch

from brickwork.eval.paired_loss import paired_loss
from brickwork.eval.pictures import grid, save_picture
from brickwork.training.brick_by_brick import pipeline_so_far
from brickwork.training.checkpoints import whole
from brickwork.training.guards import write_text
from brickwork.training.page import run_page

PIPELINE, SAMPLES, PAGE = "pipeline", "samples", "index.html"


def sample_labels(num_classes: int | None, count: int) -> list[int | None]:
    """One label a picture, classes in order, as evenly as `count` allows."""
    if num_classes is None:
        return [None] * count
    if num_classes >= count:
        return [k * num_classes // count for k in range(count)]
    return sorted(k % num_classes for k in range(count))


def draw_samples(pipeline, num_classes: int | None, count: int, steps: int, guidance_scale: float) -> np.ndarray:
    """Pictures uint8 `(count, H, W, 3)`; picture k has the same class and noise however the weights change."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        class_labels=sample_labels(num_classes, count),
        num_inference_steps=steps,
        guidance_scale=1.0 if num_classes is None else guidance_scale,
        generator=[torch.Generator().manual_seed(k) for k in range(count)],
        output_type="pil",
    ).images
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def show(run, network: torch.nn.Module, images: int, log) -> None:
    """Score the averaged weights on the held-out list, and draw a grid of samples.

    Every process does the same, so that sharded networks can be run; the main process writes.
    """
    folder, settings = Path(run.config.run.output_dir), run.config.samples
    if run.held_out is not None:
        with run.accelerator.autocast():
            result = paired_loss(network, run.held_out, run.objective, run.bricks)
        scalars = {"held_out/loss": result["loss"]}
        if len(result["per_brick"]) > 1:
            scalars |= {f"held_out/brick_{i}": loss for i, loss in enumerate(result["per_brick"])}
        scalars |= {f"held_out_at/sigma_{sigma}": loss for sigma, loss in result["per_level"].items()}
        log.scalars(images, scalars)
        run.accelerator.print(f"{images:,} images: held-out paired loss {result['loss']:.4f}")
    if settings.count and run.make_pipeline is not None:
        with run.accelerator.autocast():
            pictures = draw_samples(
                pipeline_so_far(run, network),
                network.config.num_classes,
                settings.count,
                settings.steps,
                settings.guidance_scale,
            )
        if run.accelerator.is_main_process:
            sheet = grid(pictures, columns=min(8, len(pictures)))
            log.picture(images, "samples", np.asarray(sheet))
            save_picture(sheet, folder / SAMPLES / f"images-{images:012d}.png")
    if run.accelerator.is_main_process:
        write_text(folder / PAGE, run_page(folder))


def averaged_copy(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A network of its own on the CPU with the averaged weights, whatever wraps or shards the one in training."""
    copy = type(network).from_config(network.config)
    frozen = {name: whole(tensor) for name, tensor in network.state_dict().items() if name not in weights}
    copy.load_state_dict(frozen | weights)
    return copy.eval()


def export_pipeline(pipeline, folder: Path) -> Path:
    """Write a whole pipeline folder under another name and put it in the place of an earlier one."""
    target, temporary, former = (folder / name for name in (PIPELINE, f".{PIPELINE}.new", f".{PIPELINE}.old"))
    for stale in (temporary, former):
        shutil.rmtree(stale, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    if target.exists():
        os.replace(target, former)
    os.replace(temporary, target)
    shutil.rmtree(former, ignore_errors=True)
    return target
