"""Train a small `AutoencoderKL` on pictures of every size between `objective.options.min_size` and `data.size`.

    accelerate launch training/train_autoencoder.py --config training/configs/miniature_vae.yaml

Running the same command again goes on from the newest checkpoint. The run leaves `vae/`, whose scaling factor makes
the standard deviation of the training pictures' latents one.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL

from brickwork.eval.report.pictures import grid, save_picture
from brickwork.training.commands.train import add_run_arguments, run_script, train_as_asked
from brickwork.training.config.config import TrainConfig, require_task
from brickwork.training.data.images import LabelledImages, images_of
from brickwork.training.data.stream import TrainingStream
from brickwork.training.engine.guards import write_text
from brickwork.training.engine.loop import Run
from brickwork.training.engine.page import run_page
from brickwork.training.engine.previews import PAGE, SAMPLES, averaged_copy
from brickwork.training.tasks.latent.autoencoding import Reconstruction, latent_scale

SHOWN, SCORED = 8, 64


def show(images: LabelledImages, rows: np.ndarray, run: Run, network: torch.nn.Module, seen: int, log) -> None:
    """PSNR of held-out pictures at several sizes, and a sheet of some of them above what became of them."""
    if not len(rows):
        return
    pictures = torch.stack([torch.from_numpy(images.sample(int(row))[0]) for row in rows[:SCORED]])
    pictures = pictures.to(run.accelerator.device)
    scalars, sheet = {}, []
    for size in (run.objective.min_size, images.size // 2, images.size):
        small = torch.nn.functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)
        with run.accelerator.autocast():
            decoded = torch.cat([network(part).sample.float() for part in small.split(8)])
        error = ((decoded.clamp(-1, 1) - small.clamp(-1, 1)) / 2).square().flatten(1).mean(1)
        scalars[f"held_out/psnr_{size}"] = (-10 * error.log10()).mean().item()
        if size == images.size // 2:
            sheet = [*small[:SHOWN], *decoded[:SHOWN]]
    log.scalars(seen, scalars)
    run.accelerator.print(f"{seen:,} images: " + ", ".join(f"{name} {value:.2f}" for name, value in scalars.items()))
    if run.accelerator.is_main_process:
        folder = Path(run.config.run.output_dir)
        arrays = [((one.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy() for one in sheet]
        save_picture(grid(np.stack(arrays), columns=len(arrays) // 2), folder / SAMPLES / f"images-{seen:012d}.png")
        write_text(folder / PAGE, run_page(folder))


def prepare(config: TrainConfig, accept_changes: bool = False) -> Run:
    """Everything that a run needs, built from its configuration.

    Raises:
        ValueError: for a configuration that describes something else than an `AutoencoderKL`.
    """
    require_task(config, "AutoencoderKL", "reconstruction")
    set_seed(config.run.seed)
    accelerator = Accelerator(
        mixed_precision=config.run.mixed_precision,
        gradient_accumulation_steps=config.run.gradient_accumulation_steps,
    )
    try:
        objective = Reconstruction(**config.objective.options)
        model = AutoencoderKL(**config.model.config)
    except TypeError as error:
        raise ValueError(f"`objective.options` or `model.config` has a value that does not fit: {error}.") from None
    if config.model.init_from:
        model = AutoencoderKL.from_pretrained(config.model.init_from).float()
    images = images_of(config)
    train_rows, held_out_rows = images.split(config.data.held_out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    accelerator.print(
        f"AutoencoderKL: {parameters:,} parameters; {len(train_rows):,} images to train on, {len(held_out_rows):,} "
        f"held out; {config.run.total_images:,} images are {config.run.total_images / len(train_rows):,.1f} epochs."
    )

    def export(weights: dict[str, torch.Tensor], folder: Path) -> None:
        vae = averaged_copy(model, weights)
        vae.register_to_config(scaling_factor=round(latent_scale(vae, images, train_rows), 5))
        vae.save_pretrained(folder / "vae")
        accelerator.print(f"The averaged weights are in {folder / 'vae'}; scaling factor {vae.config.scaling_factor}.")

    return Run(
        config,
        accelerator,
        model,
        objective,
        TrainingStream(images, train_rows, config.run.seed, config.data.horizontal_flip, config.run.batch_size),
        loss=objective.loss,
        objectives=[objective.divergence],
        taps=["quant_conv"],
        preview=partial(show, images, held_out_rows),
        export=export,
        accept_changes=accept_changes,
    )


def configure_parser(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.set_defaults(run=partial(train_as_asked, prepare=prepare))


def main(arguments: list[str] | None = None) -> int:
    return run_script("train_autoencoder.py", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
