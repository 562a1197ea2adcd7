"""`brickwork train PICTURES` where pictures have captions: a Stable Diffusion pipeline goes on learning from them.

A text-to-image model from nothing takes days that a folder of one's own does not pay for. So the small one that ships
is trained whole, or, where `model.base` names another, a LoRA over its UNet.
"""

from typing import Any

import torch

from brickwork.errors import counted
from brickwork.eval.sampling.pipelines import pipeline_class
from brickwork.hub import shipped_names
from brickwork.options import as_overrides
from brickwork.pipelines.latents import pixels_per_latent
from brickwork.pipelines.stable_diffusion import is_xl, load_pipeline
from brickwork.training.commands.looked_at import SMALL_SET, Pictures, lengths, passes_per_second
from brickwork.training.config.config import given_values, load_config
from brickwork.training.config.latent import TextToImageConfig

BASE = "model.base"
BATCH_ON_CPU, BATCH_ON_GPU = 16, 64
OVERHEAD = 1.5  # of VAE, text encoder, optimiser, averages and reading, over the UNet's two passes


def shipped_base() -> str:
    """The weights that ship and draw from text."""
    return next(name for name in shipped_names() if pipeline_class(name) == "StableDiffusionPipeline")


def wanted(found: Pictures, overrides: list[str]) -> bool:
    """Whether pictures go to a text-to-image model: where they have captions and no classes, unless a value is given
    that such a model does not have; or where its base is named."""
    given = given_values(overrides)
    if BASE in given:
        return True
    try:
        load_config(None, overrides, TextToImageConfig)
    except ValueError:
        return False
    return bool(found.captions) and not found.classes


def choose(found: Pictures, output: str, overrides: list[str]) -> tuple[list[str], list[str]]:
    """What to train on captioned pictures.

    Args:
        found: the pictures.
        output: the run's folder.
        overrides: `section.key=value` that beat what is chosen.

    Returns:
        The choice as `section.key=value`, the overrides behind it; and lines that say what was chosen and why.

    Raises:
        ValueError: where it cannot be told which column has the captions, or overrides do not fit.
    """
    given = given_values(overrides)
    column = given.get("data.caption_column") or caption_column(found)
    base = given.get(BASE, shipped_base())
    whole = base in shipped_names()
    pipeline = load_pipeline(base, given.get("model.revision"), given.get("model.variant"))
    native = pipeline.unet.config.sample_size * pixels_per_latent(pipeline.vae)
    size = given.get("resolution.max_size", given.get("resolution.min_size", native))
    most = BATCH_ON_GPU if torch.cuda.is_available() else BATCH_ON_CPU
    batch = min(most if whole else max(1, most // 16), found.count, given.get("run.total_images", most))
    chosen: dict[str, Any] = {BASE: base, "data.source": found.source, "run.output_dir": output}
    chosen |= {"data.image_column": found.columns["image_column"], "data.caption_column": column}
    chosen |= {
        "data.held_out": 0.05 if found.count >= SMALL_SET else 0.0,
        "data.max_upscale": max(1.0, size / found.least),
    }
    chosen |= {"resolution.min_size": size, "resolution.max_size": size, "samples.guidance_scale": 3.0}
    chosen |= {"parts.train": "unet_and_text" if whole else "lora", "run.batch_size": batch}
    chosen |= {"optimizer.learning_rate": 3e-4 if whole else 1e-4}
    config = load_config(None, [*as_overrides(chosen), *overrides], TextToImageConfig)
    rate = images_per_second(pipeline, config)
    chosen |= lengths(found, rate, config.run.batch_size, given.get("run.total_images"))
    values = [*as_overrides(chosen), *overrides]
    return values, _say(found, load_config(None, values, TextToImageConfig), rate)


def images_per_second(pipeline, config: TextToImageConfig) -> float:
    """How many captioned images this machine trains on in a second, from a few passes of the UNet."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet, kind = pipeline.unet.to(device), pipeline.unet.config
    batch = max(1, config.run.batch_size // config.run.gradient_accumulation_steps)
    side, tokens = config.resolution.max_size // pixels_per_latent(pipeline.vae), pipeline.tokenizer.model_max_length
    sample = torch.zeros(batch, kind.in_channels, side, side, device=device)
    given = {"encoder_hidden_states": torch.zeros(batch, tokens, kind.cross_attention_dim, device=device)}
    if is_xl(pipeline):
        pooled = kind.projection_class_embeddings_input_dim - 6 * kind.addition_time_embed_dim
        further = {"text_embeds": torch.zeros(batch, pooled), "time_ids": torch.zeros(batch, 6)}
        given["added_cond_kwargs"] = {name: tensor.to(device) for name, tensor in further.items()}
    timestep = torch.zeros(batch, device=device)
    passes = passes_per_second(device, lambda: unet(sample, timestep, **given).sample.square().mean())
    return batch * passes / OVERHEAD


def caption_column(found: Pictures) -> str:
    """The column with the captions.

    Raises:
        ValueError: where there is none, or several could be meant.
    """
    if len(found.captions) == 1:
        return found.captions[0]
    which = f"could be {' or '.join(map(repr, found.captions))}" if found.captions else "is not there"
    raise ValueError(f"The column with the captions {which}; say which with `data.caption_column`.")


def _say(found: Pictures, config: TextToImageConfig, rate: float) -> list[str]:
    run, size, base = config.run, config.resolution.max_size, config.model.base
    trained = {"lora": "a LoRA over its UNet", "unet": "its UNet"}.get(config.parts.train, "its UNet and text encoder")
    lines = [
        f"{found.source}: {found.count:,} pictures with captions ({config.data.caption_column}), no classes; shorter "
        f"side {found.side} pixels.",
        f"Chosen: text to image, from {base}: {trained} at {size} pixels, precision {run.mixed_precision}, "
        f"{counted(run.batch_size)} a step.",
        f"Length: {run.total_images:,} images, {run.total_images / found.count:,.1f} times each, about "
        f"{max(1, round(run.total_images / rate / 60))} min at {rate:,.0f} images/s.",
        f"The run is in {run.output_dir}; values behind the folder beat these, such as {BASE}=FOLDER_OR_HUB_NAME of a "
        f"larger Stable Diffusion. Without captions: add --preset tiny-lego.",
    ]
    if run.total_images and config.parts.train != "lora":
        lines.append(f"Then: brickwork generate {run.output_dir} --prompt TEXT")
    return lines
