"""The paired held-out denoising loss of a pipeline's network, as an entry of a result."""

import hashlib

import torch

from brickwork.eval.image_sets import ImageSet, Preparation, decode, inspect_images, refuse_corrupt
from brickwork.eval.messages import choice_error
from brickwork.eval.paired_loss import PairedSet, paired_loss
from brickwork.eval.results import MetricValues
from brickwork.eval.sampling import denoiser_of
from brickwork.gen.objectives import OBJECTIVES


def measure_paired_loss(
    pipeline, images: ImageSet, preparation: Preparation, objective: str = "edm", num_levels: int = 8, seed: int = 0
) -> dict:
    """Score a pipeline's network on held-out pictures with frozen noise.

    Args:
        pipeline: Of pixels; the network is scored in evaluation mode.
        images: Pictures it was not trained on, with labels if it is conditional.
        preparation: Brings them to the training size.
        objective: What the network was trained for, a name of `OBJECTIVES`.
        num_levels: Noise levels a picture is scored at.
        seed: Of the noise.

    Returns:
        The entry; its settings carry the hash of the pictures, so that losses on other pictures are not compared.
    """
    if objective not in OBJECTIVES:
        raise choice_error("objective", objective, OBJECTIVES)
    if getattr(pipeline, "vae", None) is not None:
        raise ValueError("paired: this pipeline denoises latents; the paired loss is for networks of pixels")
    network = denoiser_of(pipeline)
    batch = decode(images, range(len(images)), preparation, inspect_images(images, preparation).size)
    refuse_corrupt(batch.corrupt, images)
    pairs = PairedSet.from_images(batch.pixels / 127.5 - 1, _labels(network, images), num_levels, seed)
    scores = paired_loss(network.eval(), pairs, OBJECTIVES[objective]())
    data_sha256 = hashlib.sha256(batch.digests.numpy().tobytes()).hexdigest()
    settings = {"objective": objective, "levels": num_levels, "seed": seed, "count": len(images), "data": data_sha256}
    details = {key: scores[key] for key in ("per_brick", "per_level")}
    return MetricValues(settings, values=[scores["loss"]]).to_dict() | details


def _labels(network, images: ImageSet) -> torch.Tensor | None:
    num_classes = network.config.get("num_classes")
    if num_classes is None:
        return None
    if images.labels is None:
        return torch.full((len(images),), num_classes)
    wrong = sorted({label for label in images.labels if not isinstance(label, int) or not 0 <= label <= num_classes})
    if wrong:
        raise ValueError(
            f"paired: {images.source} has the labels {wrong[:5]}, the network's classes are 0 to {num_classes - 1};"
            f' number them so ({num_classes} is "no class")'
        )
    return torch.tensor(list(images.labels))
