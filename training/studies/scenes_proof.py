"""What a ResAdapter is worth on scenes of avatars, against the model without it and a plain LoRA of its size.

    python training/studies/scenes_proof.py --output runs/scenes/proof \\
        --general runs/scenes/general/pipeline --general-data data/scenes \\
        --personal runs/scenes/personal/pipeline --personal-data data/scenes-micah \\
        --adapter runs/scenes/resadapter-{0,1,2}/adapter/official --lora runs/scenes/lora-{0,1,2}

A scene has one to five avatars on one ground, laid out for its shape: a larger picture shows the same scene in more
pixels. So it is known what a picture of any size should hold. Every cell is kept in the output folder; the same
command again goes on with what is missing, and two processes may share the work (`--only`).

- **Held-out paired loss**: see `brickwork.eval.held_out.paired_loss`; on held-out scenes of the size's own shape.
- **Avatars found**: objects on the ground (`outlined`) for each that the caption asks for: above 1 they repeat.
- **Right number**: the share of pictures with as many as were asked for.
- **At the edge**: the share of objects that touch the picture's border: heads that are cut off.
- **Attributes**: of pictures with the right number of avatars, from left to right, the judge's word on each against
  its part of the caption (`attr-accuracy`), the mean over attributes; **style** by itself.
- **KD**: the kernel distance of EfficientNet-Lite0's features to as many training scenes of that size and shape.

Beside every measure stands what it gives for held-out scenes themselves.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from scipy import ndimage

from brickwork import options
from brickwork.adapters.resadapter.functions import use_resadapter
from brickwork.eval.extractors.attributes import accuracy, load_judge
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.judge.crops import cut_out
from brickwork.eval.judge.flat_ground import differs_from_ground
from brickwork.eval.metrics.attributes import asked_in
from brickwork.eval.metrics.distances import kernel_distance
from brickwork.eval.metrics.feature_sets import lite_features
from brickwork.eval.report.blocks import Picture, Report
from brickwork.eval.report.numbers import number
from brickwork.eval.report.pictures import labelled_sheet
from brickwork.eval.sets.decode import open_upright
from brickwork.eval.sets.reader import undecoded
from brickwork.eval.studies.core import (
    Cell,
    Study,
    StudyFolder,
    compare_pairs,
    mean_and_spread,
    run_study,
    table_of,
)
from brickwork.eval.studies.seams import parse_size
from brickwork.files import weights_digest, write_file
from brickwork.pipelines.latents import encode
from brickwork.pipelines.prompts import encode_captions
from brickwork.pipelines.stable_diffusion import PromptedUNet, load_pipeline, objective_of
from brickwork.training.commands.train import run_script
from brickwork.training.data.images import crop_to, load_table, to_unit_range

Shape = tuple[int, int]  # height, width
judge = cache(load_judge)
GROUP = 4  # held-out scenes whose losses are averaged: the groups' spread is the error
BATCH = 16
SMALLEST = 0.008  # of a picture's area, below which what differs from the ground is no avatar
SHOWN = 2  # pictures of a cell on the sheet
PICTURES = "pictures.npz"
MODELS = ("general", "personal")
KINDS = {
    "base": "base",
    "resadapter": "base + ResAdapter",
    "auto": "base + ResAdapter, strength by size",
    "lora": "base + plain LoRA",
}
MEASURES = {
    "found": "avatars found for one asked",
    "right": "right number",
    "edge": "at the edge",
    "attributes": "attributes",
    "style": "style",
    "kd": "KD-EffNetLite0",
}


class Scenes:
    """Scenes of one folder of `brickwork data build avatars --scenes`, by shape."""

    def __init__(self, folder: str, split: str):
        self.table = undecoded(load_table(str(Path(folder) / f"{split}.parquet")), "image")
        self.sides = [open_upright(self.table[row]["image"]).size for row in range(len(self.table))]

    def rows(self, shape: Shape, count: int) -> list[int]:
        """The first scenes whose own shape is nearest to a size's."""
        wanted = np.log(shape[1] / shape[0])
        away = [abs(np.log(width / height) - wanted) for width, height in self.sides]
        found = [row for row, distance in enumerate(away) if distance < min(away) + 1e-6][:count]
        if len(found) < count:
            raise ValueError(
                f"Only {len(found)} scenes are of the shape {name_of(shape)}, and {count} are asked for; build more, "
                "or lower `--samples`."
            )
        return found

    def pictures(self, rows: Sequence[int], shape: Shape) -> np.ndarray:
        """uint8 `(N, H, W, 3)`."""
        return np.stack([crop_to(open_upright(self.table[row]["image"]), *shape) for row in rows])

    def captions(self, rows: Sequence[int]) -> list[str]:
        return [str(self.table[row]["text"]) for row in rows]

    def avatars(self, rows: Sequence[int]) -> list[list[str]]:
        """What the caption says of each avatar, from left to right."""
        return [[box["text"] for box in json.loads(self.table[row]["boxes"])] for row in rows]


def outlined(picture: np.ndarray) -> list[tuple[slice, slice]]:
    """Rows and columns of what stands on a picture's ground, from left to right; uint8 `(H, W, 3)`."""
    marked, _ = ndimage.label(ndimage.binary_fill_holes(differs_from_ground(picture)), np.ones((3, 3)))
    least = SMALLEST * picture.shape[0] * picture.shape[1]
    parts = enumerate(ndimage.find_objects(marked), 1)
    found = [part for index, part in parts if (marked[part] == index).sum() >= least]
    return sorted(found, key=lambda part: part[1].start)


def at_edge(part: tuple[slice, slice], picture: np.ndarray) -> bool:
    return any(side.start == 0 or side.stop == length for side, length in zip(part, picture.shape))


def measured(pictures: np.ndarray, avatars: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """What pictures show of what their captions ask for; `None` for the attributes where no number is right."""
    found = [outlined(picture) for picture in pictures]
    edges = [at_edge(part, picture) for picture, parts in zip(pictures, found) for part in parts]
    right = [len(parts) == len(asked) for parts, asked in zip(found, avatars)]
    cut = [cut_out(picture, part) for picture, parts, ok in zip(pictures, found, right) if ok for part in parts]
    told = [asked_in(text, judge().attributes) for asked, ok in zip(avatars, right) if ok for text in asked]
    named = accuracy(judge().name(torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)), told) if cut else {}
    return {
        "found": sum(map(len, found)) / sum(map(len, avatars)),
        "right": float(np.mean(right)),
        "edge": float(np.mean(edges)) if edges else None,
        "attributes": float(np.mean(list(named.values()))) if named else None,
        "style": named.get("style"),
    }


@contextlib.contextmanager
def adapted(pipeline: StableDiffusionPipeline, kind: str, source: str | None) -> Iterator[None]:
    """The pipeline as it is, or with an adapter of a kind of `KINDS`."""
    if kind == "base":
        yield
    elif kind == "lora":
        pipeline.load_lora_weights(source)
        try:
            yield
        finally:
            pipeline.unload_lora_weights()
    else:
        with use_resadapter(pipeline, source, scale="auto" if kind == "auto" else 1.0):
            yield


@torch.no_grad()
def losses(pipeline: StableDiffusionPipeline, pictures: np.ndarray, captions: Sequence[str]) -> list[float]:
    """The paired loss of each group of pictures."""
    pixels = torch.from_numpy(np.stack([to_unit_range(picture) for picture in pictures]))
    latents = torch.cat([encode(pipeline.vae, part) for part in pixels.split(BATCH)])
    network = PromptedUNet(pipeline.unet, encode_captions(pipeline, list(captions)))
    numbers, objective = torch.arange(len(latents)), objective_of(pipeline.scheduler)
    return [
        paired_loss(network, PairedSet.from_images(part, labels, seed=group), objective)["loss"]
        for group, (part, labels) in enumerate(zip(latents.split(GROUP), numbers.split(GROUP)))
    ]


def draw(pipeline: StableDiffusionPipeline, prompts: Sequence[str], shape: Shape, settings: Mapping) -> np.ndarray:
    """Pictures uint8 `(N, H, W, 3)`; picture k has the seed k."""
    drawn = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["bf16"]):
            pictures = pipeline(
                part,
                height=shape[0],
                width=shape[1],
                num_inference_steps=settings["steps"],
                guidance_scale=settings["guidance"],
                generator=[torch.Generator().manual_seed(start + position) for position in range(len(part))],
                output_type="np",
            ).images
        drawn.append((np.nan_to_num(pictures).clip(0, 1) * 255).round().astype(np.uint8))
    return np.concatenate(drawn)


def name_of(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


class Proof:
    """All cells, `PART/MODEL/KIND/SEED/SIZE`; each method gives those of one stage.

    Args:
        args: of the command line.
        models: whose cells are wanted.
    """

    def __init__(self, args: argparse.Namespace, models: Sequence[str] = MODELS):
        self.args, self.models, self.output = args, models, Path(args.output)
        self.pipeline = lru_cache(maxsize=1)(load_pipeline)
        self.scenes = cache(lambda model, split: Scenes(getattr(args, f"{model}_data"), split))
        self.sources = {"base": [None], "resadapter": args.adapter, "auto": args.adapter, "lora": args.lora}

    def conditions(self) -> dict[str, Any]:
        """What all numbers depend on."""
        args = self.args
        folders = [Path(args.general) / "unet", Path(args.personal) / "unet", *map(Path, args.adapter + args.lora)]
        weights = {str(folder): weights_digest(folder) for folder in folders}
        drawing = ("samples", "steps", "guidance", "bf16", "sizes", "general_data", "personal_data")
        return {"weights": weights} | {name: getattr(args, name) for name in drawing}

    def _cells(self, part: str, compute) -> list[Cell]:
        """A cell for each model, kind, seed and size; `compute` takes folder, model, kind, seed and size."""
        return [
            Cell(
                f"{part}/{model}/{kind}/{seed}/{name_of(size)}",
                partial(compute, model=model, kind=kind, seed=seed, size=size),
            )
            for model in self.models
            for kind, sources in self.sources.items()
            for seed in range(len(sources))
            for size in self.args.sizes
        ]

    def drawn(self, results: Mapping[str, Any]) -> list[Cell]:
        """Losses, and pictures for held-out captions, kept beside the result, which is the losses."""

        def compute(folder: Path, model: str, kind: str, seed: int, size: Shape) -> list[float]:
            scenes, pipeline = self.scenes(model, "held_out_seeds"), self.pipeline(getattr(self.args, model))
            rows = scenes.rows(size, self.args.samples)
            captions = scenes.captions(rows)
            with adapted(pipeline, kind, self.sources[kind][seed]):
                found = losses(pipeline, scenes.pictures(rows, size), captions)
                pictures = draw(pipeline, captions, size, vars(self.args))
            write_file(folder / PICTURES, partial(np.savez_compressed, pictures=pictures))
            return found

        return self._cells("drawn", compute)

    def judged(self, results: Mapping[str, Any]) -> list[Cell]:
        """`measured` and the kernel distance of the pictures drawn, and of held-out scenes themselves."""

        @cache
        def real(model: str, size: Shape) -> torch.Tensor:
            scenes = self.scenes(model, "train")
            return lite_features(scenes.pictures(scenes.rows(size, self.args.samples), size))

        def score(pictures: np.ndarray, model: str, size: Shape) -> dict[str, float | None]:
            scenes = self.scenes(model, "held_out_seeds")
            avatars = scenes.avatars(scenes.rows(size, self.args.samples))
            distance = kernel_distance(real(model, size), lite_features(pictures), subset_size=self.args.samples // 2)
            return measured(pictures, avatars) | {"kd": distance[0]}

        def compute(folder: Path, model: str, kind: str, seed: int, size: Shape) -> dict:
            return score(pictures_of(self.output / f"drawn/{model}/{kind}/{seed}/{name_of(size)}"), model, size)

        def themselves(folder: Path, model: str, size: Shape) -> dict:
            scenes = self.scenes(model, "held_out_seeds")
            return score(scenes.pictures(scenes.rows(size, self.args.samples), size), model, size)

        scenes = [
            Cell(f"judged/{model}/scenes/0/{name_of(size)}", partial(themselves, model=model, size=size))
            for model in self.models
            for size in self.args.sizes
        ]
        return [*scenes, *self._cells("judged", compute)]


def pictures_of(folder: Path) -> np.ndarray:
    """The pictures of a cell, uint8 `(N, H, W, 3)`."""
    return np.load(folder / PICTURES)["pictures"]


def report(folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
    """For each model its losses and each measure, a row a kind and a column a size; and what they look like."""
    found: dict[str, dict] = {"drawn": {}, "judged": {}}
    for path, result in folder.results().items():
        part, model, kind, seed, size = path.split("/")
        found[part].setdefault(model, {}).setdefault(kind, {}).setdefault(size, {})[int(seed)] = result
    sizes = [name_of(size) for size in folder.conditions["sizes"]]
    blocks: list = []
    for model in MODELS:
        blocks += [f"**The {model} model**", _loss_table(found["drawn"][model], sizes)]
        blocks += [_measure_table(measure, found["judged"][model], sizes) for measure in MEASURES]
    blocks.append(Picture(_sheet(folder.path, sizes), name="proof"))
    return Report("What a ResAdapter is worth", blocks), {"losses": found["drawn"], "measures": found["judged"]}


def _loss_table(losses: Mapping[str, Any], sizes: Sequence[str]):
    """The mean loss, and by how much it is below the base's: mean and spread over seeds."""

    def cell(kind: str, size: str) -> str:
        base = losses["base"][size][0]
        means = [float(np.mean(groups)) for groups in losses[kind][size].values()]
        if kind == "base":
            return number(means[0])
        changes = [compare_pairs(base, groups).mean / np.mean(base) * 100 for groups in losses[kind][size].values()]
        mean, spread = mean_and_spread(changes)
        return f"{np.mean(means):.4f} ({number(mean, spread, signed=True)}%)"

    columns = {"held-out paired loss": KINDS.get}
    return table_of(list(KINDS), columns | {size: partial(cell, size=size) for size in sizes})


def _measure_table(measure: str, judged: Mapping[str, Any], sizes: Sequence[str]):
    rows = {"scenes": "held-out scenes"} | KINDS

    def cell(kind: str, size: str) -> str:
        values = [result[measure] for result in judged[kind][size].values() if result[measure] is not None]
        return number(*mean_and_spread(values), digits=3) if values else "–"

    columns = {MEASURES[measure]: rows.get}
    return table_of(list(rows), columns | {size: partial(cell, size=size) for size in sizes})


def _sheet(folder: Path, sizes: Sequence[str]) -> Image.Image:
    """For each model a row a kind (of adapters the first seed), the same captions and seeds, sizes side by side."""
    rows = {}
    for model in MODELS:
        for kind, told in KINDS.items():
            shown = [pictures_of(folder / f"drawn/{model}/{kind}/0/{size}")[:SHOWN] for size in sizes]
            strips = [Image.fromarray(np.concatenate(list(pictures), axis=1)) for pictures in shown]
            rows[f"{model}:\n{told}"] = strips
    longest = max(max(picture.size) for row in rows.values() for picture in row)
    sheet = labelled_sheet(list(rows.values()), list(rows), sizes, side=longest)
    # A palette halves the file, and shows no difference at this size.
    return sheet.quantize(128, dither=Image.Dither.NONE)


def configure_parser(parser: argparse.ArgumentParser) -> None:
    for model in MODELS:
        told = "general model" if model == "general" else "personalised copy"
        parser.add_argument(f"--{model}", required=True, help=f"pipeline folder of the {told}")
        parser.add_argument(f"--{model}-data", required=True, help="folder of its scenes, in many shapes")
    parser.add_argument("--adapter", required=True, nargs="+", help="ResAdapters, the authors' folders, one a seed")
    parser.add_argument("--lora", required=True, nargs="+", help="folders of plain LoRAs, one a seed")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the cells, the tables and the picture"
    )
    parser.add_argument("--samples", type=int, default=64, help="pictures of a cell (default: 64)")
    options.add_common(parser, "--steps", default=10)
    parser.add_argument("--bf16", action="store_true", help="draw under bf16 autocast: faster")
    options.add_common(parser, "--guidance", default=3.0)
    parser.add_argument("--only", choices=MODELS, help="compute the cells of one model, and write no report")
    sizes = ["32x32", "48x48", "64x64", "96x96", "128x128", "48x96", "96x48"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="HxW", help="pixels, height first")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    args.sizes = [parse_size(size) for size in args.sizes]
    proof = Proof(args, [args.only] if args.only else MODELS)
    stages = [proof.drawn, proof.judged]
    run_study(Study("proof", proof.conditions(), stages, None if args.only else report), args.output)
    if not args.only:
        print((args.output / "proof.md").read_text(encoding="utf-8"))
    return 0


main = partial(run_script, "scenes_proof.py", __doc__, configure_parser)

if __name__ == "__main__":
    sys.exit(main())
