"""Pictures as an autoencoder gives them back."""

from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from brickwork.eval.extractors.features import FIXED_BATCH
from brickwork.eval.sets.pictures import ImageSet, Preparation, batches, decode_ahead, inspect_images, refuse_corrupt
from brickwork.files import new_folder
from brickwork.pipelines import latents

MAKER = "brickwork evaluate reconstruct"


def reconstruct(
    vae: torch.nn.Module, images: ImageSet, preparation: Preparation, output: str | Path, overwrite: bool = False
) -> float:
    """Write a folder of pictures, each coded (as its distribution's mean) and decoded.

    Args:
        vae: on its device.
        images: of one size, a multiple of the pixels of a latent.
        preparation: of each before it is coded.
        output: the folder; it appears when all pictures are in it.
        overwrite: replace what this wrote there before.

    Returns:
        The mean over the pictures of the peak signal-to-noise ratio in dB.

    Raises:
        ValueError: for pictures that cannot be decoded, of several sizes, or of a size that the autoencoder cannot
            code.
    """
    size, step = inspect_images(images, preparation).size, latents.pixels_per_latent(vae)
    if any(side % step for side in size):
        raise ValueError(
            f"`data` has pictures of {size[0]} x {size[1]} pixels, no multiples of the autoencoder's {step}; give "
            "--resolution."
        )
    ratios: list[torch.Tensor] = []
    parts = batches(len(images), FIXED_BATCH)
    with new_folder(output, MAKER, overwrite=overwrite) as folder, tqdm(total=len(images), unit="image") as bar:
        for batch in decode_ahead(images, parts, preparation, size):
            refuse_corrupt(batch.corrupt, images)
            pixels = batch.pixels.to(vae.device) / 127.5 - 1
            given = latents.decode(vae, latents.encode(vae, pixels)).float().clamp(-1, 1)
            given = ((given + 1) * 127.5).round().byte().cpu()
            error = (given.double() - batch.pixels).div(255).square().flatten(1).mean(dim=1)
            ratios.append(-10 * error.clamp_min(1e-10).log10())
            for index, picture in zip(batch.indices, given.permute(0, 2, 3, 1).numpy()):
                Image.fromarray(picture).save(folder / f"{index:06d}.png")
            bar.update(len(batch.indices))
    return torch.cat(ratios).mean().item()
