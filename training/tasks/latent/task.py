"""What tasks on latents and captions share: a Stable Diffusion pipeline, its samples, its step and its plan."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from brickwork.pipelines.stable_diffusion import load_pipeline, objective_of, unet_arguments
from brickwork.training.config.latent import LatentConfig
from brickwork.training.data.captioned import CaptionedStream, LatentCache, captioned_images
from brickwork.training.data.text_cache import encoders_of
from brickwork.training.task import Step
from brickwork.training.tasks.denoising import DenoisingTask
from brickwork.training.tasks.latent.activations import kept_bytes
from brickwork.training.tasks.latent.encoding import EncodeFirst, freeze_encoders
from brickwork.training.tasks.latent.previews import SizePreviews


class LatentTask(DenoisingTask):
    """A UNet, or parts of it, on a pipeline's latents and captions.

    Args:
        config: of the run.
        accelerator: of the run.
        precision: that the encoders are stored in: `no`, `bf16` or `fp16`.

    Attributes:
        base: the pipeline; what is trained is in its UNet.
        previews: what is shown on the way.
    """

    base: Any
    previews: SizePreviews

    def __init__(self, config: LatentConfig, accelerator: Accelerator, precision: str):
        self.config, self.accelerator = config, accelerator
        self.base = load_pipeline(config.model.base, config.model.revision, config.model.variant)
        self.parameterization = objective_of(self.base.scheduler, config.objective.min_snr_gamma)
        freeze_encoders(self.base, precision, accelerator.device)

    def finish(self, stream: CaptionedStream, held_out: np.ndarray) -> None:
        """Take the samples, and state the plan, once what is to be trained is in the UNet."""
        config, unet = self.config, self.base.unet
        if config.run.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if config.model.attention_backend:
            unet.set_attention_backend(config.model.attention_backend)
        self.stream = stream
        self.complete = EncodeFirst(self.base, stream.captioned.captions if stream.cache is None else None)
        self.plan = plan(config, self.base, stream, len(held_out), self.accelerator.num_processes)

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        batch = self.complete(batch)
        return self.noisy(batch["image"], batch, unet_arguments(batch))

    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        return [network(step.sample, step.timestep, **step.conditions).sample]

    def teacher(self, source: str) -> torch.nn.Module:
        pipeline = load_pipeline(source)
        self.check_teacher(source, objective_of(pipeline.scheduler), pipeline.unet.config.in_channels)
        return pipeline.unet

    def preview(self, images: int, log: Any) -> None:
        self.previews.show(self, self.base.unet, images, log)


def open_stream(
    config: LatentConfig, pipeline, accelerator: Accelerator, use_cache: bool = True
) -> tuple[CaptionedStream, np.ndarray]:
    """The samples of a run, and the rows it holds out; a cache is made where it is not there, shared among processes.

    Args:
        config: of the run.
        pipeline: whose encoders are on the device, in the precision of the run.
        accelerator: of the run.
        use_cache: whether to make and open `data.cache`, if the configuration names one.
    """
    images = captioned_images(config, pipeline)
    rows, held_out = images.images.split(config.data.held_out)
    cache = None
    if config.data.cache is not None and use_cache:
        cache = LatentCache(config.data.cache, images, pipeline)
        cache.build(accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        cache.open()
    return CaptionedStream(images, rows, config, pipeline, cache), held_out


def drop_text_encoders(pipeline) -> None:
    """Free their memory, where all embeddings are there already."""
    names = [name for name in pipeline.components if name.startswith("text_encoder")]
    pipeline.register_modules(**dict.fromkeys(names))


def plan(config: LatentConfig, pipeline, stream: CaptionedStream, held_out: int, processes: int) -> str:
    """The figures that follow from a configuration, to be read before the first step."""
    settings, trained = config.run, [p for p in pipeline.unet.parameters() if p.requires_grad]
    networks = [pipeline.unet, pipeline.vae, *encoders_of(pipeline)]
    stored = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    # Beside a trained weight: its gradient and its average in float32, and two moments.
    moments_bytes = 2 if config.optimizer.type == "adamw_8bit" else 8
    stored += sum(p.numel() * (4 + 4 + moments_bytes) for p in trained)
    micro = settings.batch_size // (settings.gradient_accumulation_steps * processes)
    shapes, rows = stream.resolutions.shapes, len(stream.row.rows)
    cut = captions_cut(pipeline, stream.captioned.captions)
    height, width = max(shapes, key=lambda shape: shape[0] * shape[1])
    kept = kept_bytes(pipeline, micro, height // stream.factor, width // stream.factor, settings.mixed_precision)
    return (
        f"{config.model.base}: {sum(p.numel() for p in pipeline.unet.parameters()):,} parameters in the UNet, "
        f"{sum(p.numel() for p in trained):,} of them trained; about {stored / 2**30:.2f} GiB of networks and "
        f"optimiser state, and {kept / 2**30:.2f} GiB that the largest step, {micro} × {height}×{width} pixels, keeps "
        f"for its gradients{' (checkpointed)' if settings.gradient_checkpointing else ''}.\n"
        f"{rows:,} captioned images to train on, {held_out:,} held out; {settings.total_images:,} images are "
        f"{settings.total_images / rows:,.1f} epochs, {-(-settings.total_images // settings.batch_size):,} steps.\n"
        f"{cut}"
        f"{len(shapes)} shapes from {shapes[0][0]}×{shapes[0][1]} to {height}×{width}, one a step: "
        f"{', '.join(f'{h}×{w}' for h, w in shapes[:12])}{' …' if len(shapes) > 12 else ''}.\n"
        f"{settings.batch_size} images a step = {micro} × {settings.gradient_accumulation_steps} accumulated × "
        f"{processes} process(es); precision {settings.mixed_precision}."
    )


def captions_cut(pipeline, captions: list[str]) -> str:
    """A line on captions that are longer than the text encoder takes, if any of the first ten thousand is."""
    tokenizer, captions = pipeline.tokenizer, captions[:10_000]
    limit = tokenizer.model_max_length
    tokens = tokenizer(captions, truncation=True, max_length=limit + 1).input_ids
    cut = sum(len(ids) > limit for ids in tokens)
    return f"{cut:,} of {len(captions):,} captions are cut to the encoder's {limit} tokens.\n" if cut else ""
