"""What a ResAdapter is worth, against the model without it and against a plain LoRA of its size: a table, a picture.

    python training/studies/resolution_proof.py --output runs/miniature/proof \\
        --general runs/miniature/general/pipeline --general-data data/miniature/fluent.parquet \\
        --personal runs/miniature/personal/pipeline --personal-data data/miniature/twemoji.parquet \\
        --adapter runs/miniature/resadapter/adapter/official --lora runs/miniature/lora

Every cell of the table is kept in the output folder; the same command again goes on with what is missing. Two
processes may share the work, `--only general` and `--only personal`, before one without it puts all together.

- **Held-out paired loss**: the plain squared error of the predicted noise on drawings that no training saw, the same
  noise and noise levels for all, in groups of four drawings whose differences give the standard error. Beside it the
  same on as many training drawings, because a model that remembers these has much to lose there.
- **KD**: the kernel distance of EfficientNet-Lite0 features between pictures drawn for captions of the training set
  and the style's training drawings at that size.
- **Style kept**: the share of pictures that a linear probe on the same features takes for the personalised style; the
  probe is learned on training drawings of both styles and is tested on held-out ones.
"""

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from brickwork.adapters.resadapter.functions import use_resadapter
from brickwork.eval.extractors.features import FeatureStream, load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.metrics.distances import kernel_distance
from brickwork.eval.studies.cells import Cells
from brickwork.pipelines.latents import encode
from brickwork.training.commands.train import run_script
from brickwork.training.data.images import LabelledImages, load_table, to_unit_range
from brickwork.training.data.text_cache import encode_captions
from brickwork.training.studies.resolution_report import write_report
from brickwork.training.tasks.latent.stable_diffusion import (
    PromptedUNet,
    load_pipeline,
    objective_of,
)

Shape = tuple[int, int]
GROUP = 4  # held-out drawings whose losses are averaged: the groups' spread is the error
BATCH = 16
SHOWN = 3
MODELS = ("general", "personal")
NAMES = {
    "base": "base",
    "resadapter": "base + ResAdapter",
    "resadapter_half": "base + ResAdapter at half strength",
    "resadapter_delta": "base + ResAdapter (norms as differences)",
    "lora": "base + plain LoRA",
    "lora_half": "base + plain LoRA at half strength",
}


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on, beside weights and data.

    Attributes:
        sizes: heights and widths for losses. extremes: those for samples.
        samples: pictures of each cell with samples.
        steps: of the pipeline's own scheduler. guidance: of the samples.
        held_out: share of the drawings that training held out. subset: pictures in each subset of the kernel distance.
        bf16: whether pictures are drawn under bf16 autocast; losses are always computed in float32.
    """

    sizes: tuple[Shape, ...]
    extremes: tuple[Shape, ...]
    samples: int
    steps: int
    guidance: float
    held_out: float
    subset: int
    bf16: bool


class Domain:
    """A style: a model, and its drawings with captions.

    Args:
        pipeline: folder of the model.
        data: Parquet file of the drawings, with the columns `image`, `text`, `codepoints`.
        held_out: share that training held out.
    """

    def __init__(self, pipeline: str, data: str, held_out: float):
        self.folder = pipeline
        self.images = LabelledImages(load_table(data), 64, label_column=None, group_column="codepoints")
        self.captions = [str(text) for text in self.images.table["text"]]
        self.rows, self.held_out = self.images.split(held_out)

    def pictures(self, rows: np.ndarray, shape: Shape) -> np.ndarray:
        """uint8 `(N, H, W, 3)`."""
        return np.stack([self.images.picture(int(row), shape) for row in rows])


@contextlib.contextmanager
def with_variant(pipeline: StableDiffusionPipeline, variant: str, args: argparse.Namespace) -> Iterator[None]:
    """The pipeline as it is, or with one of the adapters."""
    strength = 0.5 if variant.endswith("half") else 1.0
    if variant.startswith("resadapter"):
        delta = {"norm_mode": "delta", "base_model": args.general} if variant.endswith("delta") else {}
        with use_resadapter(pipeline, args.adapter, scale=strength, **delta):
            yield
    elif variant.startswith("lora"):
        pipeline.load_lora_weights(args.lora, adapter_name="lora")
        pipeline.set_adapters("lora", strength)
        try:
            yield
        finally:
            pipeline.unload_lora_weights()
    else:
        yield


@torch.no_grad()
def losses(pipeline: StableDiffusionPipeline, domain: Domain, rows: np.ndarray, shape: Shape) -> list[float]:
    """The paired loss of each group of drawings."""
    pixels = torch.from_numpy(np.stack([to_unit_range(picture) for picture in domain.pictures(rows, shape)]))
    latents = torch.cat([encode(pipeline.vae, part) for part in pixels.split(BATCH)])
    prompts = encode_captions(pipeline, [domain.captions[row] for row in rows])
    network, objective = PromptedUNet(pipeline.unet, prompts), objective_of(pipeline.scheduler)
    numbers = torch.arange(len(latents))
    return [
        paired_loss(network, PairedSet.from_images(part, labels, seed=group), objective)["loss"]
        for group, (part, labels) in enumerate(zip(latents.split(GROUP), numbers.split(GROUP)))
    ]


def draw(
    pipeline: StableDiffusionPipeline, prompts: list[str], shape: Shape, settings: Settings, first_seed: int = 0
) -> np.ndarray:
    """Pictures uint8 `(N, H, W, 3)`; picture k has its own seed."""
    drawn = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        seeds = range(first_seed + start, first_seed + start + len(part))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            pictures = pipeline(
                part,
                height=shape[0],
                width=shape[1],
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="np",
            ).images
        drawn.append((np.nan_to_num(pictures).clip(0, 1) * 255).round().astype(np.uint8))
    return np.concatenate(drawn)


@cache
def _extractor():
    return load_extractor("efficientnet-lite0")


def features(pictures: np.ndarray) -> torch.Tensor:
    """EfficientNet-Lite0's features `(N, 1280)` of uint8 pictures."""
    found: list[torch.Tensor] = []
    stream = FeatureStream(_extractor(), get_protocol("clean"), lambda outputs: found.append(outputs["features"]))
    stream.add(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    stream.finish()
    return torch.cat(found)


@dataclass(frozen=True)
class StyleProbe:
    """A linear classifier of two styles: ridge regression on standardised features to -1 and 1."""

    mean: torch.Tensor
    std: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def fit(cls, first: torch.Tensor, second: torch.Tensor, ridge: float = 100.0) -> "StyleProbe":
        """From features `(N, D)` of each style's drawings; the second style's are the positive ones."""
        rows = torch.cat([first, second]).double()
        target = torch.cat([-torch.ones(len(first)), torch.ones(len(second))]).double()
        mean, std = rows.mean(0), rows.std(0) + 1e-6
        rows = (rows - mean) / std
        system = rows.T @ rows + ridge * torch.eye(rows.shape[1], dtype=torch.float64)
        return cls(mean, std, torch.linalg.solve(system, rows.T @ target))

    def share(self, rows: torch.Tensor) -> float:
        """The share of pictures taken for the second style."""
        return (((rows.double() - self.mean) / self.std) @ self.weight > 0).double().mean().item()


def name_of(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


class Proof:
    """All cells of both models.

    Args:
        args: of the command line.
        settings: see `Settings`.
    """

    def __init__(self, args: argparse.Namespace, settings: Settings):
        self.args, self.settings = args, settings
        self.domains = {
            model: Domain(getattr(args, model), getattr(args, f"{model}_data"), settings.held_out) for model in MODELS
        }
        data = {model: domain.images.fingerprint[:16] for model, domain in self.domains.items()}
        identity = {"settings": vars(settings), "weights": self._digests(), "data": data, "prompts": args.prompts}
        self.cells = Cells(args.output, identity)

    def _digests(self) -> dict[str, str]:
        files = {
            "general": Path(self.args.general) / "unet",
            "personal": Path(self.args.personal) / "unet",
            "adapter": Path(self.args.adapter),
            "lora": Path(self.args.lora),
        }
        digests = {}
        for name, folder in files.items():
            found = sorted(folder.glob("*.safetensors"))
            if not found:
                raise ValueError(f"`--{name}` is {str(getattr(self.args, name))!r}, which holds no weights there.")
            digests[name] = hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()[:16]
        return digests

    @staticmethod
    def variants(model: str) -> list[str]:
        """What a model is measured with; norms as differences matter where the base's norms have moved."""
        if model == "personal":
            return ["base", "resadapter", "lora", "resadapter_delta"]
        return ["base", "resadapter", "lora", "resadapter_half", "lora_half"]

    def compute(self, models: Sequence[str]) -> None:
        """Compute what is missing of some models: losses, then what is shown, then samples, then their scores."""
        for work in (self._losses, self._shown, self._samples):
            for model in models:
                pipeline = load_pipeline(self.domains[model].folder)
                for variant in self.variants(model):
                    with with_variant(pipeline, variant, self.args):
                        work(pipeline, model, self.domains[model], variant)
        self._judge(models)

    def values(self) -> dict:
        """What the table and the picture show, once everything is computed."""
        shown = {
            model: {
                variant: {
                    name_of(size): self.cells.pictures(f"shown-{model}-{variant}-{name_of(size)}")
                    for size in self.settings.sizes
                }
                for variant in self.variants(model)
            }
            for model in self.domains
        }
        return {
            "settings": vars(self.settings),
            "losses": self._table_of_losses("loss"),
            "losses_on_training_drawings": self._table_of_losses("fit"),
            **self._judge(MODELS),
            "shown": shown,
        }

    def _losses(self, pipeline, model: str, domain: Domain, variant: str) -> None:
        seen = domain.rows[:: max(1, len(domain.rows) // len(domain.held_out))][: len(domain.held_out)]
        for part, rows in (("loss", domain.held_out), ("fit", seen)):
            for size in self.settings.sizes:
                compute = partial(losses, pipeline, domain, rows, size)
                self.cells.value(f"{part}-{model}-{variant}-{name_of(size)}", compute)

    def _shown(self, pipeline, model: str, domain: Domain, variant: str) -> None:
        prompts = self.args.prompts[:SHOWN]
        for size in self.settings.sizes:
            self.cells.pictures(
                f"shown-{model}-{variant}-{name_of(size)}", partial(draw, pipeline, prompts, size, self.settings)
            )

    def _samples(self, pipeline, model: str, domain: Domain, variant: str) -> None:
        for size in self.settings.extremes:
            self.cells.pictures(
                f"samples-{model}-{variant}-{name_of(size)}",
                partial(draw, pipeline, self._prompts(domain), size, self.settings, first_seed=1000),
            )

    def _prompts(self, domain: Domain) -> list[str]:
        """Captions of training drawings, as evenly as their number allows."""
        order = np.random.Generator(np.random.Philox(key=0)).permutation(domain.rows)
        return [domain.captions[row] for row in np.resize(order, self.settings.samples)]

    def _table_of_losses(self, part: str) -> dict:
        return {
            model: {
                variant: {
                    name_of(size): self.cells.value(f"{part}-{model}-{variant}-{name_of(size)}")
                    for size in self.settings.sizes
                }
                for variant in self.variants(model)
            }
            for model in self.domains
        }

    def _judge(self, models: Sequence[str]) -> dict:
        """Kernel distances and shares of the personalised style, at the extreme sizes."""
        distances: dict = {model: {variant: {} for variant in self.variants(model)} for model in models}
        style: dict = {model: {variant: {} for variant in self.variants(model)} for model in models}
        probes = {}
        for size in self.settings.extremes:
            name = name_of(size)
            real, probe, probes[name] = self._drawings(size)
            for model in models:
                for variant in self.variants(model):
                    result = self.cells.value(
                        f"kd-{model}-{variant}-{name}", partial(self._score, model, variant, name, real, probe)
                    )
                    distances[model][variant][name], style[model][variant][name] = result
        return {"kernel_distance": distances, "style": style, "probe": probes}

    def _score(self, model: str, variant: str, name: str, real: Callable, probe: Callable) -> list:
        rows = features(self.cells.pictures(f"samples-{model}-{variant}-{name}"))
        return [kernel_distance(real()[model], rows, subset_size=self.settings.subset), probe().share(rows)]

    def _drawings(self, size: Shape) -> tuple[Callable, Callable, float]:
        """Features of each style's drawings, a probe of the two, and how often it is right on held-out drawings."""

        @cache
        def of(part: str) -> dict[str, torch.Tensor]:
            rows = {model: getattr(domain, part) for model, domain in self.domains.items()}
            return {model: features(domain.pictures(rows[model], size)) for model, domain in self.domains.items()}

        @cache
        def probe() -> StyleProbe:
            return StyleProbe.fit(*of("rows").values())

        def accuracy() -> float:
            general, personal = of("held_out").values()
            right = (1 - probe().share(general)) * len(general) + probe().share(personal) * len(personal)
            return right / (len(general) + len(personal))

        return lambda: of("rows"), probe, self.cells.value(f"probe-{name_of(size)}", accuracy)


def _shape(text: str) -> Shape:
    height, separator, width = text.partition("x")
    if not separator or not (height + width).isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give HEIGHTxWIDTH, such as 48x96")
    return int(height), int(width)


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--general", required=True, help="pipeline folder of the general model")
    parser.add_argument("--general-data", required=True, help="Parquet file of its drawings")
    parser.add_argument("--personal", required=True, help="pipeline folder of the personalised copy")
    parser.add_argument("--personal-data", required=True, help="Parquet file of its drawings")
    parser.add_argument("--adapter", required=True, help="ResAdapter: the authors' folder")
    parser.add_argument("--lora", required=True, help="folder of the plain LoRA")
    parser.add_argument("--output", type=Path, required=True, help="folder of the cells, the table and the picture")
    parser.add_argument("--samples", type=int, default=256, help="pictures of a cell (default: 256)")
    parser.add_argument("--steps", type=int, default=10, help="steps of the sampler (default: 10)")
    parser.add_argument("--bf16", action="store_true", help="draw under bf16 autocast: faster")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale (default: 2)")
    parser.add_argument("--only", choices=MODELS, help="compute the cells of one model, and write no report")
    parser.add_argument("--held-out", type=float, default=0.08, help="share that training held out (default: 0.08)")
    sizes = ["32x32", "48x48", "64x64", "96x96", "128x128", "48x96", "96x48"]
    parser.add_argument("--sizes", type=_shape, nargs="+", default=[_shape(size) for size in sizes], metavar="HxW")
    parser.add_argument(
        "--extremes", type=_shape, nargs="+", default=[(32, 32), (128, 128)], metavar="HxW", help="sizes of samples"
    )
    prompts = ["grinning face with smiling eyes", "red apple", "panda face"]
    parser.add_argument("--prompts", nargs="+", default=prompts, help="what the picture shows")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    settings = Settings(
        tuple(args.sizes),
        tuple(args.extremes),
        args.samples,
        args.steps,
        args.guidance,
        args.held_out,
        max(2, args.samples // 2),
        args.bf16,
    )
    proof = Proof(args, settings)
    proof.compute([args.only] if args.only else MODELS)
    if not args.only:
        write_report(proof.values(), NAMES, args.output)
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run_script("resolution_proof.py", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
