"""Train MaxViT's one-step generator against a discriminator.

    accelerate launch training/train_gan.py --config training/configs/maxvit_gan.yaml

Running the same command again goes on from the newest checkpoint. The run leaves `pipeline/`, a `OneStepPipeline`.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from brickwork.eval.report.pictures import grid, save_picture
from brickwork.gen.networks.gan import MaxViTGAN2DModel
from brickwork.pipelines.one_step import OneStepPipeline
from brickwork.training.commands.train import add_run_arguments, run_script, train_as_asked
from brickwork.training.config.config import TrainConfig, require_task
from brickwork.training.data.images import images_of
from brickwork.training.data.stream import TrainingStream
from brickwork.training.engine.guards import write_text
from brickwork.training.engine.loop import Run
from brickwork.training.engine.page import run_page
from brickwork.training.engine.previews import PAGE, SAMPLES, build_metrics
from brickwork.training.objectives.adversarial import NonSaturatingObjective, discriminator_losses


def make_pipeline(network: MaxViTGAN2DModel) -> OneStepPipeline:
    """What samples from the trained pair."""
    return OneStepPipeline(network.generator)


def show(run: Run, network: torch.nn.Module, images: int, log) -> None:
    """A grid of what the averaged generator draws, from the same noise every time."""
    count = run.config.samples.count
    if not count:
        return
    with run.accelerator.autocast():
        seeds = [torch.Generator().manual_seed(k) for k in range(count)]
        pictures = make_pipeline(network)(count, seeds).images
    if run.accelerator.is_main_process:
        folder = Path(run.config.run.output_dir)
        sheet = grid(np.stack([np.asarray(picture) for picture in pictures]), columns=min(8, count))
        log.picture(images, "samples", np.asarray(sheet))
        save_picture(sheet, folder / SAMPLES / f"images-{images:012d}.png")
        write_text(folder / PAGE, run_page(folder))


def prepare(config: TrainConfig, accept_changes: bool = False) -> Run:
    """Everything that a run needs, built from its configuration.

    Raises:
        ValueError: for a configuration that describes something else than a `MaxViTGAN2DModel`, or sizes that do not
            fit.
    """
    require_task(config, "MaxViTGAN2DModel", "non_saturating")
    set_seed(config.run.seed)
    accelerator = Accelerator(
        mixed_precision=config.run.mixed_precision,
        gradient_accumulation_steps=config.run.gradient_accumulation_steps,
    )
    images = images_of(config)
    try:
        objective = NonSaturatingObjective(**config.objective.options)
        model = MaxViTGAN2DModel(sample_size=config.data.size, in_channels=images.channels, **config.model.config)
    except TypeError as error:
        raise ValueError(f"`objective.options` or `model.config` has a value that does not fit: {error}.") from None
    latent_dim, numbers = model.generator.config.latent_dim, images.channels * config.data.size**2
    if latent_dim > numbers:
        raise ValueError(f"`latent_dim` is {latent_dim}, more than the {numbers} numbers of an image; lower it.")
    rows, _ = images.split(config.data.held_out)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.generator, model.discriminator)]
    accelerator.print(
        f"Generator {counts[0]:,} parameters, discriminator {counts[1]:,}; {len(rows):,} images to train on; "
        f"{config.run.total_images:,} images are {config.run.total_images / len(rows):,.1f} epochs."
    )
    return Run(
        config,
        accelerator,
        model,
        objective,
        TrainingStream(images, rows, config.run.seed, config.data.horizontal_flip, config.run.batch_size),
        make_pipeline=make_pipeline,
        metrics=build_metrics(config, None, accelerator, call={}),
        loss=objective.loss,
        objectives=[discriminator_losses],
        preview=show,
        accept_changes=accept_changes,
    )


def configure_parser(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.set_defaults(run=partial(train_as_asked, prepare=prepare))


def main(arguments: list[str] | None = None) -> int:
    return run_script("train_gan.py", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
