"""Train a backbone on images with class labels.

    accelerate launch training/train_backbone.py --config training/configs/lego_emoji_64_eight_groups.yaml
    accelerate launch training/train_backbone.py --preset dit-s-2 data.source=…

Running the same command again goes on from the newest checkpoint. Values can be set on the command line, in YAML:

    accelerate launch training/train_backbone.py --config … run.total_images=200000 data.size=32
"""

import sys
from functools import partial

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed

from brickwork.eval.held_out.paired_loss import PairedSet
from brickwork.training.commands.train import configure_parser, run_script
from brickwork.training.config.config import TrainConfig
from brickwork.training.data.cache import CachedLatents, TensorCache, load_vae
from brickwork.training.data.canvas import CanvasSettings, CanvasStream
from brickwork.training.data.images import BrokenImage, LabelledImages, images_of
from brickwork.training.data.stream import TrainingStream
from brickwork.training.engine.loop import Run
from brickwork.training.engine.previews import build_metrics
from brickwork.training.tasks.backbones import BACKBONES, build_model, build_objective, plan


def build_images(config: TrainConfig) -> LabelledImages | CachedLatents:
    """Pictures, or their cached latents."""
    images = images_of(config)
    if config.data.latents is None:
        return images
    if config.data.horizontal_flip:
        raise ValueError("`data.horizontal_flip` is true, but latents cannot be mirrored; set it to false.")
    return CachedLatents(images, config.data.latents, load_vae(TensorCache(config.data.latents).source))


def build_stream(config: TrainConfig, images: LabelledImages | CachedLatents, rows) -> TrainingStream:
    """Whole pictures, or with `data.crop_share` crops of canvases among them."""
    data, seed, batch_size = config.data, config.run.seed, config.run.batch_size
    if data.crop_share == 0:
        return TrainingStream(images, rows, seed, data.horizontal_flip, batch_size)
    if data.latents is not None or config.model.type != "LegoTransformer2DModel":
        raise ValueError(
            f"`data.crop_share` is {data.crop_share}, but only LegoTransformer2DModel on pixels learns from crops; "
            "set it to 0."
        )
    canvases = CanvasSettings(data.crop_share, data.crop_scale, data.crop_aspect)
    return CanvasStream(images, rows, seed, data.horizontal_flip, batch_size, canvases=canvases)


def build_held_out(images: LabelledImages | CachedLatents, rows) -> PairedSet | None:
    """The held-out samples in one shape; broken ones are left out, and latents of another shape than the first."""
    stills, labels = [], []
    for row in rows:
        try:
            still = torch.from_numpy(images.still(row))
        except BrokenImage:
            continue
        if not stills or still.shape == stills[0].shape:
            stills.append(still)
            labels.append(int(images.labels[row]))
    if not stills:
        return None
    return PairedSet.from_images(torch.stack(stills), torch.tensor(labels) if images.class_names else None)


def prepare(config: TrainConfig, accept_changes: bool = False) -> Run:
    """Everything that a run needs, built from its configuration."""
    set_seed(config.run.seed)
    accelerator = Accelerator(
        mixed_precision=config.run.mixed_precision,
        gradient_accumulation_steps=config.run.gradient_accumulation_steps,
        # With brick dropout, the bricks that a step leaves out have no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.objective.brick_dropout > 0)],
    )
    objective = build_objective(config)
    images = build_images(config)
    train_rows, held_out_rows = images.split(config.data.held_out)
    vae = getattr(images, "vae", None)
    if vae is not None:
        vae.to(accelerator.device)
    model = build_model(config, images.class_names, images.size, images.channels)
    if config.run.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.model.attention_backend:
        model.set_attention_backend(config.model.attention_backend)
    stream = build_stream(config, images, train_rows)
    accelerator.print(
        plan(config, model, len(train_rows), len(held_out_rows), len(images.class_names), accelerator.num_processes)
    )
    return Run(
        config,
        accelerator,
        model,
        objective,
        stream,
        build_held_out(images, held_out_rows),
        partial(BACKBONES[config.model.type].pipeline, objective=objective, vae=vae),
        build_metrics(config, model.config.num_classes, accelerator),
        accept_changes=accept_changes,
    )


def main(arguments: list[str] | None = None) -> int:
    return run_script("train_backbone.py", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
