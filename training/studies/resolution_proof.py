"""What a ResAdapter is worth, against the model without it and against a plain LoRA of its size: a table, a picture.

    python training/studies/resolution_proof.py --output runs/miniature/proof \\
        --general runs/miniature/general/pipeline --general-data data/miniature/fluent.parquet \\
        --personal runs/miniature/personal/pipeline --personal-data data/miniature/twemoji.parquet \\
        --adapter runs/miniature/resadapter/adapter/official --lora runs/miniature/lora

Every cell is kept in the output folder; the same command again goes on with what is missing. Two processes may share
the work, `--only general` and `--only personal`, before one without it puts all together.

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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from brickwork import options
from brickwork.adapters.resadapter.functions import use_resadapter
from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.metrics.distances import kernel_distance
from brickwork.eval.metrics.feature_sets import extract_features
from brickwork.eval.report.blocks import Picture, Report
from brickwork.eval.report.numbers import number
from brickwork.eval.report.pictures import labelled_sheet
from brickwork.eval.sets.pictures import from_arrays
from brickwork.eval.studies.core import Cell, Study, StudyFolder, compare_pairs, run_study, table_of
from brickwork.files import digest, write_file
from brickwork.pipelines.latents import encode
from brickwork.pipelines.stable_diffusion import PromptedUNet, load_pipeline, objective_of
from brickwork.training.commands.train import run_script
from brickwork.training.data.images import LabelledImages, load_table, to_unit_range
from brickwork.training.data.text_cache import encode_captions

Shape = tuple[int, int]
GROUP = 4  # held-out drawings whose losses are averaged: the groups' spread is the error
BATCH = 16
SHOWN = 3  # prompts drawn for the picture, of which so many are on it:
ON_SHEET = 2
PICTURES = "pictures.npz"
METRIC = "KD-EffNetLite0"
MODELS = ("general", "personal")
NAMES = {
    "base": "base",
    "resadapter": "base + ResAdapter",
    "resadapter_half": "base + ResAdapter at half strength",
    "resadapter_delta": "base + ResAdapter (norms as differences)",
    "lora": "base + plain LoRA",
    "lora_half": "base + plain LoRA at half strength",
}


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
    pipeline: StableDiffusionPipeline, prompts: list[str], shape: Shape, settings: dict, first_seed: int = 0
) -> np.ndarray:
    """Pictures uint8 `(N, H, W, 3)`; picture k has its own seed."""
    drawn = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        seeds = range(first_seed + start, first_seed + start + len(part))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["bf16"]):
            pictures = pipeline(
                part,
                height=shape[0],
                width=shape[1],
                num_inference_steps=settings["steps"],
                guidance_scale=settings["guidance"],
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
    return extract_features(from_arrays(pictures), _extractor(), get_protocol("clean"), progress=False).outputs[
        "features"
    ]


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
    """All cells of both models, `PART/MODEL/VARIANT/SIZE`; each method gives those of one stage.

    Args:
        args: of the command line.
        models: whose cells are wanted.
    """

    def __init__(self, args: argparse.Namespace, models: Sequence[str] = MODELS):
        self.args, self.models, self.output = args, models, Path(args.output)
        self.domains = {
            model: Domain(getattr(args, model), getattr(args, f"{model}_data"), args.held_out) for model in MODELS
        }
        self.pipeline = lru_cache(maxsize=1)(load_pipeline)

    def conditions(self) -> dict[str, Any]:
        """What all numbers depend on."""
        args = self.args
        folders = {"general": Path(args.general) / "unet", "personal": Path(args.personal) / "unet"}
        weights = {}
        for name, folder in (folders | {"adapter": Path(args.adapter), "lora": Path(args.lora)}).items():
            found = sorted(folder.glob("*.safetensors"))
            if not found:
                raise ValueError(f"`--{name}` is {str(getattr(args, name))!r}, which holds no weights there.")
            weights[name] = digest(*(path.read_bytes() for path in found))[:16]
        data = {model: domain.images.fingerprint[:16] for model, domain in self.domains.items()}
        drawing = ("samples", "steps", "guidance", "bf16", "held_out", "sizes", "extremes", "prompts")
        return {"weights": weights, "data": data} | {name: getattr(args, name) for name in drawing}

    @staticmethod
    def variants(model: str) -> list[str]:
        """What a model is measured with; norms as differences matter where the base's norms have moved."""
        if model == "personal":
            return ["base", "resadapter", "lora", "resadapter_delta"]
        return ["base", "resadapter", "lora", "resadapter_half", "lora_half"]

    def _cells(self, part: str, sizes: Sequence[Shape], compute: Callable) -> list[Cell]:
        """A cell for each model, variant and size; `compute` takes folder, model, variant and size."""
        return [
            Cell(
                f"{part}/{model}/{variant}/{name_of(size)}", partial(compute, model=model, variant=variant, size=size)
            )
            for model in self.models
            for variant in self.variants(model)
            for size in sizes
        ]

    @contextlib.contextmanager
    def _adapted(self, model: str, variant: str) -> Iterator[tuple[StableDiffusionPipeline, Domain]]:
        domain = self.domains[model]
        pipeline = self.pipeline(domain.folder)
        with with_variant(pipeline, variant, self.args):
            yield pipeline, domain

    def losses(self, results: Mapping[str, Any]) -> list[Cell]:
        """Losses on held-out drawings, and on as many that training saw."""

        def compute(folder: Path, model: str, variant: str, size: Shape, seen: bool) -> list[float]:
            with self._adapted(model, variant) as (pipeline, domain):
                rows = domain.rows[:: max(1, len(domain.rows) // len(domain.held_out))][: len(domain.held_out)]
                return losses(pipeline, domain, rows if seen else domain.held_out, size)

        return [
            *self._cells("loss", self.args.sizes, partial(compute, seen=False)),
            *self._cells("fit", self.args.sizes, partial(compute, seen=True)),
        ]

    def drawn(self, results: Mapping[str, Any]) -> list[Cell]:
        """What is shown, and samples at the extremes; a cell's result is the number of its pictures."""

        def compute(folder: Path, model: str, variant: str, size: Shape, shown: bool) -> int:
            with self._adapted(model, variant) as (pipeline, domain):
                prompts = self.args.prompts[:SHOWN] if shown else self._prompts(domain)
                pictures = draw(pipeline, prompts, size, vars(self.args), first_seed=0 if shown else 1000)
            write_file(folder / PICTURES, partial(np.savez_compressed, pictures=pictures))
            return len(pictures)

        return [
            *self._cells("shown", self.args.sizes, partial(compute, shown=True)),
            *self._cells("samples", self.args.extremes, partial(compute, shown=False)),
        ]

    def _prompts(self, domain: Domain) -> list[str]:
        """Captions of training drawings, as evenly as their number allows."""
        order = np.random.Generator(np.random.Philox(key=0)).permutation(domain.rows)
        return [domain.captions[row] for row in np.resize(order, self.args.samples)]

    def judged(self, results: Mapping[str, Any]) -> list[Cell]:
        """How often a probe of the two styles is right; kernel distances and shares of the personalised style."""

        @cache
        def drawings(size: Shape, part: str) -> dict[str, torch.Tensor]:
            return {
                model: features(domain.pictures(getattr(domain, part), size)) for model, domain in self.domains.items()
            }

        @cache
        def probe(size: Shape) -> StyleProbe:
            return StyleProbe.fit(*drawings(size, "rows").values())

        def accuracy(folder: Path, size: Shape) -> float:
            general, personal = drawings(size, "held_out").values()
            right = (1 - probe(size).share(general)) * len(general) + probe(size).share(personal) * len(personal)
            return right / (len(general) + len(personal))

        def score(folder: Path, model: str, variant: str, size: Shape) -> list:
            rows = features(pictures_of(self.output / "samples" / model / variant / name_of(size)))
            real, subset = drawings(size, "rows")[model], max(2, self.args.samples // 2)
            return [kernel_distance(real, rows, subset_size=subset), probe(size).share(rows)]

        right = [Cell(f"probe/{name_of(size)}", partial(accuracy, size=size)) for size in self.args.extremes]
        return [*right, *self._cells("kd", self.args.extremes, score)]


def pictures_of(folder: Path) -> np.ndarray:
    """The pictures of a cell, uint8 `(N, H, W, 3)`."""
    return np.load(folder / PICTURES)["pictures"]


def report(folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
    """For each model its two losses, then kernel distances and shares of style; and what they look like."""
    results = folder.results()
    found: dict[str, dict] = {part: {model: {} for model in MODELS} for part in ("loss", "fit", "kd")}
    for path, result in results.items():
        part, *rest = path.split("/")
        if part in found:
            model, variant, size = rest
            found[part][model].setdefault(variant, {})[size] = result
    sizes, extremes = ([name_of(size) for size in folder.conditions[key]] for key in ("sizes", "extremes"))
    blocks: list = []
    for model in MODELS:
        variants = [variant for variant in NAMES if variant in found["loss"][model]]
        blocks.append(f"**The {model} model**")
        for title, part in (("held-out paired loss", "loss"), ("on training drawings", "fit")):
            groups = found[part][model]
            columns = {title: NAMES.get} | {
                size.replace("x", " × "): lambda variant, size=size, groups=groups: loss_cell(
                    groups[variant][size], groups["base"][size]
                )
                for size in sizes
            }
            blocks.append(table_of(variants, columns))
        kd = found["kd"][model]
        columns = {"": NAMES.get}
        columns |= {f"{METRIC} {size}": lambda v, size=size, kd=kd: number(*kd[v][size][0]) for size in extremes}
        columns |= {
            f"taken for personal {size}": lambda v, size=size, kd=kd: f"{kd[v][size][1]:.0%}" for size in extremes
        }
        blocks.append(table_of(variants, columns))
    probe = {size: results[f"probe/{size}"] for size in extremes}
    right = ", ".join(f"{share:.0%} at {size}" for size, share in probe.items())
    blocks += [
        f"The probe is right on held-out drawings: {right}.",
        Picture(_sheet(folder.path, found, sizes), name="proof"),
    ]
    values = {"losses": found["loss"], "losses_on_training_drawings": found["fit"], "probe": probe}
    for position, name in enumerate(("kernel_distance", "style")):
        values[name] = {
            model: {v: {size: pair[position] for size, pair in of.items()} for v, of in kd.items()}
            for model, kd in found["kd"].items()
        }
    return Report("What a ResAdapter is worth", blocks), values


def loss_cell(groups: list[float], base: list[float]) -> str:
    """The mean loss, and by how much it differs from the base's, with the standard error of the paired difference."""
    mean, before = np.mean(groups), np.mean(base)
    if groups == base:
        return f"{mean:.4f}"
    difference = compare_pairs(base, groups)
    error = np.nan if difference.error is None else difference.error
    return f"{mean:.4f} ({100 * difference.mean / before:+.1f} ± {100 * error / before:.1f}%)"


def _sheet(folder: Path, found: dict, sizes: Sequence[str]) -> Image.Image:
    """For each model a row a variant, with the same prompts and seeds at every size, sizes side by side."""
    rows = {}
    for model, variants in found["loss"].items():
        for variant in [variant for variant in NAMES if variant in variants]:
            shown = [pictures_of(folder / "shown" / model / variant / size)[:ON_SHEET] for size in sizes]
            strips = [Image.fromarray(np.concatenate(list(pictures), axis=1)) for pictures in shown]
            rows[f"{model}:\n{NAMES[variant]}"] = strips
    longest = max(max(picture.size) for row in rows.values() for picture in row)
    sheet = labelled_sheet(list(rows.values()), list(rows), sizes, side=longest)
    # A palette halves the file, and shows no difference at this size.
    return sheet.quantize(128, dither=Image.Dither.NONE)


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
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the cells, the table and the picture"
    )
    parser.add_argument("--samples", type=int, default=256, help="pictures of a cell (default: 256)")
    options.add_common(parser, "--steps", default=10)
    parser.add_argument("--bf16", action="store_true", help="draw under bf16 autocast: faster")
    options.add_common(parser, "--guidance", default=2.0)
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
    proof = Proof(args, [args.only] if args.only else MODELS)
    stages = [proof.losses, proof.drawn, proof.judged]
    run_study(Study("proof", proof.conditions(), stages, None if args.only else report), args.output)
    if not args.only:
        print((args.output / "proof.md").read_text(encoding="utf-8"))
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run_script("resolution_proof.py", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
