"""Held-out pictures as networks are scored on them, and their paired loss as an entry of a result."""

import numpy as np
import torch

from brickwork.adapters.base import denoiser_of
from brickwork.errors import count_and_name
from brickwork.eval.extractors.features import weights_digest
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.report.results import Score
from brickwork.eval.sets.pictures import (
    ImageSet,
    Preparation,
    decode,
    inspect_images,
    open_image_set,
    refuse_corrupt,
)
from brickwork.files import digest
from brickwork.gen.parameterization import make_objective
from brickwork.pipelines.labels import resolve_class_labels
from brickwork.pipelines.latents import encode

ENCODED_AT_ONCE = 16


def measure_paired_loss(
    pipeline,
    images: ImageSet,
    preparation: Preparation,
    objective: str = "edm",
    num_levels: int = 8,
    options: dict | None = None,
) -> Score:
    """Score a pipeline's network on held-out pictures with frozen noise.

    Args:
        pipeline: The network is scored in evaluation mode, on pixels, or on the mean of the latents of the pipeline's
            VAE.
        images: Pictures it was not trained on, with labels if it is conditional.
        preparation: Brings them to the training size.
        objective: What the network was trained for, a name of `OBJECTIVES`.
        num_levels: Noise levels a picture is scored at.
        options: Of the objective, such as EDM's `p_mean`, which decide the noise levels.

    Returns:
        The loss; its settings carry the hash of the pictures, so that losses on other pictures are not compared.
    """
    trained_for = make_objective(objective, options or {})
    network = denoiser_of(pipeline)
    batch = decode(images, range(len(images)), preparation, inspect_images(images, preparation).size)
    refuse_corrupt(batch.corrupt, images)
    samples = _samples(pipeline, batch.pixels / 127.5 - 1)
    pairs = PairedSet.from_images(samples, _labels(network, images), num_levels)
    scores = paired_loss(network.eval(), pairs, trained_for)
    data_sha256 = digest(batch.digests.numpy().tobytes())
    settings = {"objective": objective, "levels": num_levels, "seed": 0, "count": len(images), "data": data_sha256}
    if options:
        settings["options"] = options
    if getattr(pipeline, "vae", None) is not None:
        settings["vae"] = weights_digest(pipeline.vae)
    return Score(scores.pop("loss"), settings=settings, details=scores)


@torch.no_grad()
def _samples(pipeline, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels `(count, 3, height, width)` in [-1, 1] => what a pipeline's (or a bare) network denoises, on the CPU."""
    if getattr(pipeline, "vae", None) is None:
        return pixels
    if not hasattr(pipeline, "encode"):
        raise ValueError(
            f"paired: {type(pipeline).__name__} denoises latents of text to image; the paired loss is for pipelines"
            " of brickwork"
        )
    scale = pipeline.vae_scale_factor
    if pixels.shape[-1] % scale or pixels.shape[-2] % scale:
        raise ValueError(
            f"paired: pictures of {pixels.shape[-1]}x{pixels.shape[-2]} for a VAE that shrinks by {scale}; pass"
            f" --resolution with a multiple of {scale}"
        )
    return torch.cat([pipeline.encode(part).cpu() for part in pixels.split(ENCODED_AT_ONCE)])


def held_out_pairs(model, data, num_pairs: int, seed: int = 0) -> tuple[PairedSet, int]:
    """Pictures brought to what a network was trained on, each met with as many noises as makes `num_pairs`.

    Args:
        model: a pipeline with a `vae` or without, or a bare network of pixels.
        data: an `ImageSet`, or what `open_image_set` opens: pictures that the network was not trained on, with labels
            if it is conditional. Their centre squares are brought to the training size.
        num_pairs: pictures and noises; of more pictures than that, an even selection is used.
        seed: of the noise.

    Returns:
        The frozen list, and how many different pictures are in it, which come round in the same order.

    Raises:
        ValueError: for pictures below the training size, corrupt ones, and labels missing or out of range.
    """
    images = data if isinstance(data, ImageSet) else open_image_set(data)
    network = denoiser_of(model, "model")
    classes = network.config.get("num_classes")
    if classes is not None and images.labels is None:
        raise ValueError(
            f"data: {images.source} has no labels, but the network has {classes} classes; give them in a column or a "
            "metadata.jsonl, called 'label', or write the run's own with `brickwork data split`"
        )
    samples, chosen = _chosen_samples(model, network, images, num_pairs)
    labels, order = _labels(network, images), torch.arange(num_pairs) % len(chosen)
    chosen_labels = None if labels is None else labels[chosen][order]
    return PairedSet.from_images(samples[order], chosen_labels, num_levels=1, seed=seed), len(chosen)


def captioned_pairs(pipeline, data, num_pairs: int, seed: int = 0) -> tuple[PairedSet, list[str]]:
    """`held_out_pairs` for text to image.

    Args:
        pipeline: such as a `StableDiffusionPipeline`.
        data, num_pairs, seed: as there; the pictures have captions.

    Returns:
        The frozen list, whose labels are numbers of captions, and the caption of each different picture in it.
    """
    images = data if isinstance(data, ImageSet) else open_image_set(data)
    if images.texts is None:
        raise ValueError(
            f"data: {images.source} has no captions, but a {type(pipeline).__name__} draws from text; give every "
            "picture one in a column or a metadata.jsonl, called 'text', or in a .txt of its name"
        )
    samples, chosen = _chosen_samples(pipeline, denoiser_of(pipeline), images, num_pairs)
    order = torch.arange(num_pairs) % len(chosen)
    pairs = PairedSet.from_images(samples[order], order, num_levels=1, seed=seed)
    return pairs, [images.texts[number] for number in chosen]


def _chosen_samples(model, network, images: ImageSet, count: int) -> tuple[torch.Tensor, list[int]]:
    """What the network sees of an even selection of at most `count` pictures, and their numbers."""
    if count < 1:
        raise ValueError(f"num_pairs: got {count}, need at least 1")
    vae, channels = getattr(model, "vae", None), network.config.in_channels
    if vae is None and channels != 3:
        raise ValueError(
            f"data: {images.source} holds RGB pictures, but the network reads {channels} channels; pass the pipeline "
            "with its VAE, or a PairedSet of latents"
        )
    side = network.config.sample_size * getattr(model, "vae_scale_factor", 1)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), count)).round().astype(int)).tolist()
    _refuse_small(images, chosen, side)
    preparation = Preparation(side, convert=True)
    inspect_images(images, preparation)
    batch = decode(images, chosen, preparation, (side, side))
    refuse_corrupt(batch.corrupt, images)
    parts = (batch.pixels / 127.5 - 1).split(ENCODED_AT_ONCE)
    return torch.cat([encode(vae, part).cpu() for part in parts]), chosen


def _refuse_small(images: ImageSet, chosen: list[int], side: int) -> None:
    sizes = {images.names[i]: images.open(i).size for i in chosen}
    small = [f"{name} {width}x{height}" for name, (width, height) in sizes.items() if min(width, height) < side]
    if small:
        raise ValueError(
            f"data: {count_and_name(small)} of {len(chosen)} pictures of {images.source} are smaller than the "
            f"training size, {side}x{side}; enlarged they would be blurred, so leave them out or give larger ones"
        )


def _labels(network, images: ImageSet) -> torch.Tensor | None:
    num_classes = network.config.get("num_classes")
    if num_classes is None:
        return None
    if images.labels is None:
        return torch.full((len(images),), num_classes)
    try:
        return torch.tensor(resolve_class_labels(list(images.labels), num_classes, network.config.get("id2label")))
    except ValueError as error:
        raise ValueError(
            f"The labels of {images.source} do not fit the network: {error} Or write the run's own with `brickwork "
            "data split`."
        ) from None
