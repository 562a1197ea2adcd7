"""What tasks on latents and captions share: their samples, their plan, and what they show on the way."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.report.pictures import GAP, grid, save_picture
from brickwork.pipelines.latents import encode
from brickwork.training.config.latent import LatentConfig
from brickwork.training.data.captioned import CaptionedStream, LatentCache, Shape, captioned_images
from brickwork.training.data.images import BrokenImage
from brickwork.training.data.text_cache import encode_captions, encode_no_caption, encoders_of
from brickwork.training.engine.guards import write_text
from brickwork.training.engine.page import run_page
from brickwork.training.engine.previews import PAGE, SAMPLES
from brickwork.training.tasks.latent.activations import kept_bytes
from brickwork.training.tasks.latent.stable_diffusion import (
    EncodeFirst,
    PromptedUNet,
    vae_factor,
)

# diffusers' Stable Diffusion pipelines refuse other sides, whatever the VAE.
PIPELINE_STEP = 8


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


def encoding_loss(stream: CaptionedStream, pipeline) -> EncodeFirst:
    """The loss that suits a stream's batches."""
    return EncodeFirst(pipeline, stream.captioned.captions if stream.cache is None else None)


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


def preview_sizes(config: LatentConfig, stream: CaptionedStream) -> list[Shape]:
    """What `samples.sizes` says, or else the smallest, the middle and the largest square, and the widest shape.

    Raises:
        ValueError: for sizes that pipelines cannot draw.
    """
    if config.samples.sizes:
        step = max(PIPELINE_STEP, stream.factor)
        wrong = [size for size in config.samples.sizes if min(size) < step or size[0] % step or size[1] % step]
        if wrong:
            raise ValueError(f"`samples.sizes` has {wrong}; give heights and widths that are multiples of {step}.")
        return [tuple(size) for size in config.samples.sizes]
    shapes = [s for s in stream.resolutions.shapes if s[0] % PIPELINE_STEP == s[1] % PIPELINE_STEP == 0]
    squares = [shape for shape in shapes if shape[0] == shape[1]]
    chosen = [squares[0], squares[len(squares) // 2], squares[-1]] if squares else []
    chosen += [max(shapes, key=lambda shape: (shape[1] / shape[0], shape[1]))] if shapes else []
    return list(dict.fromkeys(chosen))


class SizePreviews:
    """For `Run.preview`: held-out paired losses and grids over sizes, by the averaged weights.

    Everything that needs a text encoder happens when this is built.

    Args:
        config: of the run.
        pipeline: what draws, around the network in training.
        stream: of the run.
        held_out: rows that losses are computed on, and whose captions are drawn if no prompts are given.
        baseline: a context in which the network is the one that training began with; shown beside it, once computed.
    """

    def __init__(
        self,
        config: LatentConfig,
        pipeline,
        stream: CaptionedStream,
        held_out: np.ndarray,
        baseline: Callable[[], AbstractContextManager] | None = None,
    ):
        self.settings, self.pipeline, self.images = config.samples, pipeline, stream.captioned
        self.baseline, self.sizes = baseline, preview_sizes(config, stream)
        captions = self.images.captions
        rows = held_out if len(held_out) else stream.row.rows
        prompts = self.settings.prompts or [captions[row] for row in rows[: max(1, self.settings.count)]]
        self.prompts = [prompts[n % len(prompts)] for n in range(self.settings.count)]
        # None is drawn where `count` is 0, but an empty list cannot be encoded.
        self.embeddings = encode_captions(pipeline, self.prompts or [""])
        self.nothing = encode_no_caption(pipeline)
        self.rows = {size: self._scored(held_out, size) for size in self.sizes}
        every = sorted({row for rows in self.rows.values() for row in rows})
        self.number = {row: number for number, row in enumerate(every)}
        self.texts = encode_captions(pipeline, [captions[row] for row in every]) if every else {}
        self._held_out: dict[Shape, PairedSet] = {}
        self._baseline: tuple[dict[Shape, float], dict[Shape, np.ndarray]] | None = None

    def _scored(self, held_out: np.ndarray, size: Shape) -> list[int]:
        fitting = [int(row) for row in held_out if self.images.fits(int(row), size)]
        return fitting[: self.settings.held_out]

    def __call__(self, run, network: torch.nn.Module, images: int, log) -> None:
        """Every process does the same, so that sharded networks can be run; the main process writes."""
        # One autocast each: it keeps the weights that it has cast until it ends.
        if self.baseline is not None and self._baseline is None:
            with self.baseline(), run.accelerator.autocast():
                self._baseline = self.losses(network, run.objective), self.draw()
        with run.accelerator.autocast():
            losses, pictures = self.losses(network, run.objective), self.draw()
        before, drawn_before = self._baseline or ({}, {})
        scalars = {f"held_out_at/{h}x{w}": loss for (h, w), loss in losses.items()}
        scalars |= {f"held_out_before_at/{h}x{w}": loss for (h, w), loss in before.items()}
        if losses:
            scalars["held_out/loss"] = float(np.mean(list(losses.values())))
            log.scalars(images, scalars)
            listed = (f"{h}×{w} {loss:.4f}{_beside(before, (h, w))}" for (h, w), loss in losses.items())
            run.accelerator.print(f"{images:,} images: held-out paired loss {', '.join(listed)}")
        if run.accelerator.is_main_process:
            folder = Path(run.config.run.output_dir)
            if pictures:
                picture = sheet([(drawn_before.get(size), drawn) for size, drawn in pictures.items()])
                log.picture(images, "samples", np.asarray(picture))
                save_picture(picture, folder / SAMPLES / f"images-{images:012d}.png")
            write_text(folder / PAGE, run_page(folder))

    def losses(self, network: torch.nn.Module, objective) -> dict[Shape, float]:
        """The held-out paired loss at each size that held-out pictures fill."""
        prompted = PromptedUNet(network, self.texts, vae_factor(self.pipeline))
        sets = {size: self._pairs(size) for size in self.sizes}
        return {
            size: paired_loss(prompted, pairs, objective, batch_size=8)["loss"]
            for size, pairs in sets.items()
            if pairs is not None
        }

    def _pairs(self, size: Shape) -> PairedSet | None:
        if size not in self._held_out:
            vae, latents, numbers = self.pipeline.vae, [], []
            for row in self.rows[size]:
                try:
                    pixels = self.images.pixels(row, size)[None].to(vae.device)
                except BrokenImage:
                    continue
                latents.append(encode(vae, pixels)[0].cpu())
                numbers.append(self.number[row])
            if not latents:
                return None
            self._held_out[size] = PairedSet.from_images(torch.stack(latents), torch.tensor(numbers))
        return self._held_out[size]

    def draw(self) -> dict[Shape, np.ndarray]:
        """Pictures uint8 `(count, H, W, 3)` of each size; prompts and noise stay as the weights change."""
        if not self.settings.count:
            return {}
        device, count = self.pipeline.vae.device, self.settings.count
        prompts = {name: tensor.to(device) for name, tensor in self.embeddings.items()}
        for name, tensor in self.nothing.items():
            prompts[f"negative_{name}"] = tensor.to(device).expand(count, *tensor.shape[1:])
        return {
            (height, width): self._rounded(
                self.pipeline(
                    **prompts,
                    height=height,
                    width=width,
                    num_inference_steps=self.settings.steps,
                    guidance_scale=self.settings.guidance_scale,
                    generator=[torch.Generator().manual_seed(k) for k in range(count)],
                    output_type="np",
                ).images
            )
            for height, width in self.sizes
        }

    @staticmethod
    def _rounded(pictures: np.ndarray) -> np.ndarray:
        return (np.nan_to_num(pictures).clip(0, 1) * 255).round().astype(np.uint8)


def _beside(before: dict[Shape, float], size: Shape) -> str:
    return f" ({before[size]:.4f} before)" if size in before else ""


def sheet(pairs: list[tuple[np.ndarray | None, np.ndarray]]) -> Image.Image:
    """Sizes one below the other: a row of pictures as they were before, if given, and one as they are."""
    rows = []
    for before, now in pairs:
        pictures = list(now) if before is None else [*before, *now]
        rows.append(grid(pictures, columns=len(now)))
    width, height = max(row.width for row in rows), sum(row.height + 4 * GAP for row in rows) - 4 * GAP
    whole, top = Image.new("RGB", (width, height), "white"), 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height + 4 * GAP
    return whole
