"""What tasks on latents and captions show on the way: losses and pictures over sizes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from PIL import Image

from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.report.pictures import GAP, grid
from brickwork.pipelines.latents import encode, pixels_per_latent
from brickwork.pipelines.prompts import encode_captions, encode_no_caption
from brickwork.pipelines.stable_diffusion import PromptedUNet
from brickwork.training.config.samples import PromptSamplesConfig
from brickwork.training.data.captioned import CaptionedStream, Shape
from brickwork.training.data.images import BrokenImage
from brickwork.training.engine.previews import show_sheet
from brickwork.training.engine.runlog import RunLog
from brickwork.training.tasks.denoising import DenoisingTask

# diffusers' Stable Diffusion pipelines refuse other sides, whatever the VAE.
PIPELINE_STEP = 8


def preview_sizes(sizes: Sequence[Sequence[int]], stream: CaptionedStream) -> list[Shape]:
    """What `samples.sizes` says, or else the smallest, the middle and the largest square, and the widest shape.

    Raises:
        ValueError: for sizes that pipelines cannot draw.
    """
    if sizes:
        step = max(PIPELINE_STEP, stream.factor)
        wrong = [size for size in sizes if min(size) < step or size[0] % step or size[1] % step]
        if wrong:
            raise ValueError(f"`samples.sizes` has {wrong}; give heights and widths that are multiples of {step}.")
        return [tuple(size) for size in sizes]
    shapes = [s for s in stream.resolutions.shapes if s[0] % PIPELINE_STEP == s[1] % PIPELINE_STEP == 0]
    squares = [shape for shape in shapes if shape[0] == shape[1]]
    chosen = [squares[0], squares[len(squares) // 2], squares[-1]] if squares else []
    chosen += [max(shapes, key=lambda shape: (shape[1] / shape[0], shape[1]))] if shapes else []
    return list(dict.fromkeys(chosen))


class SizePreviews:
    """Held-out paired losses and grids over sizes, by the averaged weights.

    Everything that needs a text encoder happens when this is built.

    Args:
        settings: what is shown.
        pipeline: what draws, around the network in training.
        stream: of the run.
        held_out: rows that losses are computed on, and whose captions are drawn if no prompts are given.
        baseline: a context in which the network is the one that training began with; shown beside it, once computed.
    """

    def __init__(
        self,
        settings: PromptSamplesConfig,
        pipeline,
        stream: CaptionedStream,
        held_out: np.ndarray,
        baseline: Callable[[], AbstractContextManager] | None = None,
    ):
        self.settings, self.pipeline, self.images = settings, pipeline, stream.captioned
        self.baseline, self.sizes = baseline, preview_sizes(settings.sizes, stream)
        captions = self.images.captions
        rows = held_out if len(held_out) else stream.row.rows
        prompts = self.settings.prompts or [captions[row] for row in rows[: max(1, self.settings.count)]]
        self.prompts = [prompts[n % len(prompts)] for n in range(self.settings.count)]
        self.rows = {
            size: [int(row) for row in held_out if self.images.fits(int(row), size)][: settings.held_out]
            for size in self.sizes
        }
        every = sorted({row for rows in self.rows.values() for row in rows})
        self.number = {row: number for number, row in enumerate(every)}
        self.encode(pipeline)
        self._held_out: dict[Shape, PairedSet] = {}
        self._baseline: tuple[dict[Shape, float], dict[Shape, np.ndarray]] | None = None

    def encode(self, pipeline) -> None:
        """Have the text encoders see what is drawn and scored: again, where they learn."""
        # None is drawn where `count` is 0, but an empty list cannot be encoded.
        self.embeddings = encode_captions(pipeline, self.prompts or [""])
        self.nothing = encode_no_caption(pipeline)
        captions = [self.images.captions[row] for row in self.number]
        self.texts = encode_captions(pipeline, captions) if captions else {}

    def show(self, task: DenoisingTask, unet: torch.nn.Module, images: int, log: RunLog) -> None:
        """Every process does the same, so that sharded networks can be run; the main process writes."""
        # One autocast each: it keeps the weights that it has cast until it ends.
        if self.baseline is not None and self._baseline is None:
            with self.baseline(), task.accelerator.autocast():
                self._baseline = self.losses(unet, task.parameterization), self.draw()
        with task.accelerator.autocast():
            losses, pictures = self.losses(unet, task.parameterization), self.draw()
        before, drawn_before = self._baseline or ({}, {})
        scalars = {f"held_out_at/{h}x{w}": loss for (h, w), loss in losses.items()}
        scalars |= {f"held_out_before_at/{h}x{w}": loss for (h, w), loss in before.items()}
        if losses:
            scalars["held_out/loss"] = float(np.mean(list(losses.values())))
            log.scalars(images, scalars)
            listed = (f"{h}×{w} {loss:.4f}{_beside(before, (h, w))}" for (h, w), loss in losses.items())
            task.accelerator.print(f"{images:,} images: held-out paired loss {', '.join(listed)}")
        picture = None
        if pictures:
            picture = sheet([(drawn_before.get(size), drawn) for size, drawn in pictures.items()])
        show_sheet(task, picture, images, log)

    def losses(self, network: torch.nn.Module, objective) -> dict[Shape, float]:
        """The held-out paired loss at each size that held-out pictures fill."""
        prompted = PromptedUNet(network, self.texts, pixels_per_latent(self.pipeline.vae))
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
        call = prompts | {
            "num_inference_steps": self.settings.steps,
            "guidance_scale": self.settings.guidance_scale,
            "output_type": "np",
        }
        drawn = {}
        for height, width in self.sizes:
            generators = [torch.Generator().manual_seed(k) for k in range(count)]
            pictures = self.pipeline(height=height, width=width, generator=generators, **call).images
            drawn[height, width] = (np.nan_to_num(pictures).clip(0, 1) * 255).round().astype(np.uint8)
        return drawn


def _beside(before: dict[Shape, float], size: Shape) -> str:
    return f" ({before[size]:.4f} before)" if size in before else ""


def sheet(pairs: list[tuple[np.ndarray | None, np.ndarray]]) -> Image.Image:
    """Sizes one below the other: a row of pictures as they were before, if given, and one as they are."""
    rows = []
    for before, now in pairs:
        pictures = list(now) if before is None else [*before, *now]
        rows.append(grid(pictures, columns=len(now)))
    width, height = max(row.width for row in rows), sum(row.height + 4 * GAP for row in rows) - 4 * GAP
    stacked, top = Image.new("RGB", (width, height), "white"), 0
    for row in rows:
        stacked.paste(row, (0, top))
        top += row.height + 4 * GAP
    return stacked
