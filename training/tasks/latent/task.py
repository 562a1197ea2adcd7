"""What tasks on latents and captions share: a Stable Diffusion pipeline, its samples, its step and its plan."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from brickwork import compat
from brickwork.pipelines.prompts import encoders_of
from brickwork.pipelines.stable_diffusion import is_xl, load_pipeline, objective_of, size_step, unet_arguments
from brickwork.training.config.latent import LatentConfig
from brickwork.training.data.captioned import CaptionedImages, CaptionedStream, LatentCache
from brickwork.training.engine.schedule import course
from brickwork.training.task import Step
from brickwork.training.tasks.denoising import DenoisingTask
from brickwork.training.tasks.latent.encoding import HALF, EncodeFirst, freeze_encoders
from brickwork.training.tasks.latent.previews import SizePreviews


class _Fused(torch.autograd.Function):
    """Attention as fused kernels do it: inputs and output are kept, the matrix of weights is not."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            tensors = dict(zip(("query", "key", "value"), args)) | kwargs
            return _Fused.apply(*(tensors[name] for name in ("query", "key", "value")))
        return function(*args, **kwargs)


def kept_bytes(pipeline, batch: int, height: int, width: int, precision: str) -> int:
    """Bytes that the UNet keeps of a batch of latents, with what of it is trained and checkpointed as it is now.

    Weights are left out. What one checkpointed block computes again comes on top.

    Args:
        pipeline: its UNet with what is to be trained in it, of which a twin without memory is run.
        batch: latents at once.
        height: of a latent.
        width: of a latent.
        precision: of the run; all of the twin is in it, though autocast keeps some of the norms' results in float32.
    """
    unet, dtype = pipeline.unet, HALF[precision]
    with torch.device("meta"):
        twin = torch.nn.Module.to(type(unet).from_config(unet.config).requires_grad_(False), dtype)
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:  # a LoRA keeps what its layer's own weight would
            twin.get_parameter(f"{name.split('.lora_')[0]}.weight" if ".lora_" in name else name).requires_grad_(True)
    if unet.is_gradient_checkpointing:
        twin.enable_gradient_checkpointing()
    kept = {compat.storage_key(parameter.untyped_storage()): None for parameter in twin.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(compat.storage_key(tensor.untyped_storage()), tensor.untyped_storage())
        return tensor

    config = unet.config
    with (
        torch.device("meta"),
        _FusedAttention(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        latents = torch.empty(batch, config.in_channels, height, width, dtype=dtype)
        text = torch.empty(batch, pipeline.tokenizer.model_max_length, config.cross_attention_dim, dtype=dtype)
        added = None
        if is_xl(pipeline):
            pooled = pipeline.text_encoder_2.config.projection_dim
            added = {"text_embeds": torch.empty(batch, pooled, dtype=dtype), "time_ids": torch.empty(batch, 6)}
        twin.train()(latents, torch.zeros(batch), text, added_cond_kwargs=added)
    return sum(storage.nbytes() for storage in kept.values() if storage is not None)


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

    sections = (*DenoisingTask.sections, "resolution", "optimizer")
    base: Any
    previews: SizePreviews

    def __init__(self, config: LatentConfig, accelerator: Accelerator, precision: str):
        self.config, self.accelerator = config, accelerator
        self.base = load_pipeline(config.model.base, config.model.revision, config.model.variant)
        self.parameterization = objective_of(self.base.scheduler, config.objective.min_snr_gamma)
        freeze_encoders(self.base, precision, accelerator.device)

    def finish(self, use_cache: bool, baseline: Callable | None = None) -> None:
        """Open the samples, once what is to be trained is in the UNet, and state the plan.

        Args:
            use_cache: whether to open `data.cache`, if the configuration names one; what is not there is made, shared
                among the processes.
            baseline: see `SizePreviews`.
        """
        config, unet, accelerator = self.config, self.base.unet, self.accelerator
        if config.run.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if config.model.attention_backend:
            unet.set_attention_backend(config.model.attention_backend)
        images = CaptionedImages(config.data, config.resolution, size_step(self.base), config.run.seed)
        rows, held_out = images.images.split(config.data.held_out)
        cache = None
        if config.data.cache is not None and use_cache:
            cache = LatentCache(config.data.cache, images, self.base)
            cache.build(accelerator.process_index, accelerator.num_processes)
            accelerator.wait_for_everyone()
            cache.open()
        self.stream = CaptionedStream(images, rows, config.objective, self.base, config.run.batch_size, cache)
        self.complete = EncodeFirst(self.base, images.captions if cache is None else None)
        self.plan = "\n".join([
            self.memory_needed(),
            *captions_cut(self.base, images.captions),
            shapes_listed(self.stream.resolutions.shapes),
            course(config.run, "captioned images", len(rows), len(held_out), accelerator.num_processes),
        ])  # fmt: skip
        self.previews = SizePreviews(config.samples, self.base, self.stream, held_out, baseline)

    def memory_needed(self) -> str:
        """A line on what the networks and the largest step take."""
        pipeline, run, stream = self.base, self.config.run, self.stream
        trained = [p for p in pipeline.unet.parameters() if p.requires_grad]
        count, learning = (sum(p.numel() for p in some) for some in (pipeline.unet.parameters(), trained))
        networks = [pipeline.unet, pipeline.vae, *encoders_of(pipeline)]
        stored = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
        # Beside a trained weight: its gradient and its average in float32, and two moments.
        moments_bytes = 2 if self.config.optimizer.type == "adamw_8bit" else 8
        stored += sum(p.numel() * (4 + 4 + moments_bytes) for p in trained)
        micro = run.batch_size // (run.gradient_accumulation_steps * self.accelerator.num_processes)
        height, width = max(stream.resolutions.shapes, key=lambda shape: shape[0] * shape[1])
        kept = kept_bytes(pipeline, micro, height // stream.factor, width // stream.factor, run.mixed_precision)
        checkpointed = " (checkpointed)" if run.gradient_checkpointing else ""
        return (
            f"{self.config.model.base}: {count:,} parameters in the UNet, {learning:,} of them trained; about "
            f"{stored / 2**30:.2f} GiB of networks and optimiser state, and {kept / 2**30:.2f} GiB that the largest "
            f"step, {micro} × {height}×{width} pixels, keeps for its gradients{checkpointed}."
        )

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        pixels, batch = batch.get("pixels"), self.complete(batch)
        step = self.noisy(batch["image"], batch, unet_arguments(batch))
        step.pixels = pixels
        return step

    def teacher(self, source: str) -> torch.nn.Module:
        pipeline = load_pipeline(source)
        self.check_teacher(source, objective_of(pipeline.scheduler), pipeline.unet.config.in_channels)
        return pipeline.unet

    def sample_with(self, changes: dict[str, Any]) -> None:
        self.base.register_modules(scheduler=DDIMScheduler.from_config(self.base.scheduler.config, **changes))

    def without_conditions(self, step: Step) -> Step:
        nothing = self.complete.nothing
        if not nothing:
            nothing = {name: tensor[None] for name, tensor in self.stream.cache.texts.no_caption.items()}
        count, device = len(step.sample), step.sample.device
        batch = {name: tensor.to(device).expand(count, *tensor.shape[1:]) for name, tensor in nothing.items()}
        if "added_cond_kwargs" in step.conditions:
            batch["time_ids"] = step.conditions["added_cond_kwargs"]["time_ids"]
        return replace(step, conditions=unet_arguments(batch))

    def preview(self, images: int, log: Any) -> None:
        self.previews.show(self, self.base.unet, images, log)


def drop_text_encoders(pipeline) -> None:
    """Free their memory, where all embeddings are there already."""
    names = [name for name in pipeline.components if name.startswith("text_encoder")]
    pipeline.register_modules(**dict.fromkeys(names))


def shapes_listed(shapes: list[tuple[int, int]]) -> str:
    """A line on the shapes of steps, `(height, width)` from the smallest to the largest."""
    height, width = max(shapes, key=lambda shape: shape[0] * shape[1])
    if len(shapes) == 1:
        return f"All pictures are {height}×{width}."
    listed = ", ".join(f"{h}×{w}" for h, w in shapes[:12])
    return (
        f"{len(shapes)} shapes from {shapes[0][0]}×{shapes[0][1]} to {height}×{width}, one a step: "
        f"{listed}{' …' if len(shapes) > 12 else ''}."
    )


def captions_cut(pipeline, captions: list[str]) -> list[str]:
    """A line on captions that are longer than the text encoder takes, if any of the first ten thousand is."""
    tokenizer, captions = pipeline.tokenizer, captions[:10_000]
    limit = tokenizer.model_max_length
    tokens = tokenizer(captions, truncation=True, max_length=limit + 1).input_ids
    cut = sum(len(ids) > limit for ids in tokens)
    return [f"{cut:,} of {len(captions):,} captions are cut to the encoder's {limit} tokens."] if cut else []
