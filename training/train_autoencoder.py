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

from brickwork.eval.pictures import grid, save_picture
from brickwork.training.arguments import add_run_arguments
from brickwork.training.config import TrainConfig, load_config
from brickwork.training.data.images import LabelledImages, images_of
from brickwork.training.data.stream import TrainingStream
from brickwork.training.guards import write_text
from brickwork.training.loop import Run, train
from brickwork.training.page import run_page
from brickwork.training.previews import PAGE, SAMPLES, averaged_copy

SHOWN, SCORED, MEASURED = 8, 64, 256
STEP = 8


class Reconstruction:
    """L1 plus squared error of a picture coded and decoded, and the weighted KL divergence of its latents.

    Args:
        kl_weight: of the divergence from a standard normal, in nats a latent number.
        min_size: shortest side of the training pictures in pixels.
    """

    def __init__(self, kl_weight: float = 5e-4, min_size: float = 32):
        if kl_weight < 0 or min_size < STEP:
            raise ValueError(
                f"`objective.options` are kl_weight {kl_weight} and min_size {min_size}; give 0 or more, and at least "
                f"{STEP}."
            )
        self.kl_weight, self.min_size = kl_weight, int(min_size)

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Pictures are coded as they are: the log's parts by noise level are parts of no meaning here."""
        return normal

    def loss(self, run: Run, model: torch.nn.Module, batch: dict, bricks=None) -> torch.Tensor:
        """The loss of each picture `(B,)`, at a size of the step's own."""
        pictures = self.at_random_size(batch["image"])
        error = model(pictures, sample_posterior=True).sample.float() - pictures
        return (error.abs() + error.square()).flatten(1).mean(dim=1)

    def divergence(self, batch: dict, taps: dict) -> dict[str, torch.Tensor]:
        """KL divergence of the coded latents, a further objective of the loop."""
        mean, logvar = taps["quant_conv"].float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        return {"kl": self.kl_weight * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()}

    def at_random_size(self, pictures: torch.Tensor) -> torch.Tensor:
        """The whole pictures, smaller, or as large a part of them; small sizes come up in proportion to their speed.

        torch's own random numbers, which the loop seeds for each step.
        """
        largest = pictures.shape[-1]
        sizes = torch.arange(self.min_size, largest + 1, STEP)
        size = int(sizes[torch.multinomial(1 / sizes.float().square(), 1)])
        if torch.rand(()) < 0.5:
            return torch.nn.functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)
        top, left = torch.randint(largest - size + 1, (2,)).tolist()
        return pictures[:, :, top : top + size, left : left + size]


def latent_scale(vae: AutoencoderKL, images: LabelledImages, rows: np.ndarray) -> float:
    """One over the standard deviation of the latents of pictures at half the largest size."""
    side = images.size // 2
    chosen = rows[:: max(1, len(rows) // MEASURED)]
    pictures = torch.stack([torch.from_numpy(images.sample(int(row))[0]) for row in chosen])
    with torch.no_grad():
        small = torch.nn.functional.interpolate(pictures, size=side, mode="bilinear", antialias=True)
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in small.split(16)])
    return 1 / latents.double().std().item()


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
    for key, value, wanted in (
        ("model.type", config.model.type, "AutoencoderKL"),
        ("objective.type", config.objective.type, "reconstruction"),
    ):
        if value != wanted:
            raise ValueError(f"`{key}` is {value!r}; this script trains with {wanted!r}.")
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="train_autoencoder.py"
    )
    add_run_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        run = prepare(load_config(args.config, args.overrides), args.accept_changes)
        if args.dry_run:
            run.accelerator.print(run.config.to_yaml())
        else:
            train(run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
