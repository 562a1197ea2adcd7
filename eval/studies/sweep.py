"""Draw with a pipeline at every size, aspect ratio and adapter strength, from the same seeds. Writes sheet.png (a row
for each strength and picture, a column for each size), sweep.json and the pictures, and prints seconds, peak memory
and, with a reference, the kernel distance of every cell. Run again, it goes on.

examples:
  brickwork sweep lego-avatars-64 --sizes 32 64 96 --ratios 1:1 2:1 -n 4 -o sweep
  brickwork sweep my-sd --prompt 'a red apple' --sizes 256 512 768 --ratios 1:1 16:9 \\
      --adapter resadapter_v2_sd1.5 --strengths 0 0.5 1 auto -o sweep
"""

import argparse
import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from brickwork import hub, options
from brickwork.errors import one_of
from brickwork.eval.studies.core import Cell, StudyFolder, run_cells, table_of, write_report

FOLDER, STUDY = "cells", "sweep"
SHOWN = 4  # pictures of each cell on the sheet
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """What is drawn in one cell of the sheet.

    Attributes:
        height, width: in pixels.
        strength: of the adapter, a number (0 is off) or `"auto"`; `None` without one.
    """

    height: int
    width: int
    strength: float | str | None = None

    @property
    def name(self) -> str:
        """Of the cell's folder."""
        size = f"{self.height}x{self.width}"
        return size if self.strength is None else f"{size}-strength-{self.strength}"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of `brickwork sweep`."""
    options.add_common(parser, "pipeline")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for sheet, table and pictures")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="sides of squares; other ratios keep the area (default: the training size, half and twice that)",
    )
    parser.add_argument(
        "--ratios",
        nargs="+",
        default=["1:1"],
        metavar="W:H",
        help="width to height; sides are rounded to what pipeline and network take (default: 1:1)",
    )
    parser.add_argument("--adapter", help="a ResAdapter: the authors' folder, a converted file, or a hub id")
    parser.add_argument(
        "--strengths", nargs="+", metavar="S", help="of the adapter: numbers, 0 is off, or auto (default: 0 1)"
    )
    parser.add_argument("-n", "--count", type=int, default=1, help="pictures in each cell (default: 1)")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="for text-to-image pipelines, used in turn")
    parser.add_argument("--classes", nargs="+", help="names or numbers, used in turn (default: every class in turn)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures, the same in every cell (default: 0)")
    parser.add_argument("--steps", type=int, help="sampling steps (num_inference_steps of the pipeline)")
    parser.add_argument("--guidance-scale", "--guidance", type=float, help="scale of classifier-free guidance")
    parser.add_argument(
        "--call", default="{}", metavar="JSON", help="""further arguments, such as '{"negative_prompt": "blurry"}'"""
    )
    parser.add_argument("--reference", metavar="FILE", help="what `evaluate ref` wrote, for the kernel distance")
    options.add_common(parser, "--batch-size", default=1)
    parser.add_argument("--side", type=int, default=256, help="longest side on the sheet, in pixels (default: 256)")
    options.add_common(parser, "--dtype", "--device")
    options.add_hub(parser)
    parser.set_defaults(run=run, check=hub.check_argument("pipeline"))


def run(args: argparse.Namespace) -> int:
    """Sweep, write everything and print the table."""
    one_of("--dtype", args.dtype, DTYPES)
    if args.strengths and not args.adapter:
        raise ValueError("`--strengths` are of an adapter; name it with --adapter.")
    options.check_at_least(args, 1, "count", "batch_size", "side")
    ratios, strengths = [parse_ratio(text) for text in args.ratios], None
    if args.adapter:
        strengths = [parse_strength(text) for text in args.strengths or ["0", "1"]]
    call = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    given = options.json_object("--call", args.call)
    if taken := sorted({"height", "width", "generator"}.intersection(given)):
        raise ValueError(f"`--call` has {taken[0]!r}; give a JSON object without sizes and seeds, which are swept.")
    call = given | {name: value for name, value in call.items() if value is not None}
    import torch

    from brickwork.eval.metrics.reference import Reference
    from brickwork.eval.sampling.pipelines import load_pipeline, pipeline_parts
    from brickwork.eval.sampling.sample_set import SamplingSettings

    check_prompt(args, pipeline_parts(args.pipeline))
    reference = None if args.reference is None else Reference.load(args.reference)
    pipeline = load_pipeline(args.pipeline, getattr(torch, args.dtype), args.device, **options.of_hub(args))
    check_prompt(args, pipeline.components)
    variants = plan_variants(pipeline, args.sizes, ratios, strengths)
    prompts = tuple(args.prompt) if args.prompt else None
    settings = SamplingSettings(args.count, args.seed, prompts=prompts, call=call, **_labels(args, pipeline))
    classes = [int(name) if name.isdigit() else name for name in args.classes or []]
    result = sweep(
        pipeline,
        variants,
        settings,
        args.output,
        classes=classes,
        adapter=args.adapter,
        reference=reference,
        source=args.pipeline,
        batch_size=args.batch_size,
        side=args.side,
    )
    print(table(result).text(left=0))
    return 0


def check_prompt(args: argparse.Namespace, parts: dict[str, Any] | None) -> None:
    """Raise a `ValueError` unless there are prompts for a pipeline that draws from text, and none for another.

    Args:
        args: of the command line.
        parts: of the pipeline by name, from its folder or loaded; `None` where they are not known yet.
    """
    if parts is None:
        return
    from_text = any(
        name.startswith("text_encoder") and part not in (None, [None, None]) for name, part in parts.items()
    )
    if from_text and not args.prompt:
        raise ValueError(f"`pipeline` is {args.pipeline!r}, which draws from text; say what with --prompt.")
    if args.prompt and not from_text:
        raise ValueError(f"`--prompt` is {args.prompt[0]!r}, but {args.pipeline!r} draws no text; leave --prompt out.")


def _labels(args: argparse.Namespace, pipeline) -> dict:
    """Labels where the pipeline takes them and no prompts were given."""
    import inspect

    from brickwork.adapters.base import denoiser_of

    if args.classes and (args.prompt or "class_labels" not in inspect.signature(pipeline.__call__).parameters):
        raise ValueError(f"`--classes` is {args.classes}, but {args.pipeline!r} takes none; leave --classes out.")
    config = denoiser_of(pipeline).config
    conditional = config.get("num_classes") or config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    return {"labels": "balanced" if (conditional or args.classes) and not args.prompt else "none"}


def parse_ratio(text: str) -> tuple[float, float]:
    """`"16:9"` => `(16.0, 9.0)`, width and height."""
    try:
        width, height = (float(part) for part in text.split(":"))
    except ValueError:
        width = height = math.nan
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"`--ratios` has {text!r}; give width:height, such as 1:1 or 16:9.")
    return width, height


def parse_strength(text: str) -> float | str:
    """A finite number, or `"auto"`."""
    with contextlib.suppress(ValueError):
        if text == "auto" or math.isfinite(float(text)):
            return "auto" if text == "auto" else float(text)
    raise ValueError(f"`--strengths` has {text!r}; give numbers (0 is off, 1 the full effect) or auto.")


def plan_variants(
    pipeline,
    sizes: Sequence[int] | None,
    ratios: Sequence[tuple[float, float]] = ((1, 1),),
    strengths: Sequence[float | str] | None = None,
) -> list[Variant]:
    """Every strength of every ratio of every size, rows of the sheet first.

    Args:
        pipeline: says which sizes there can be.
        sizes: sides of squares; `None` for the training size, half and twice that. Other ratios keep a square's area,
            their sides rounded to the multiple that pipeline and network take.
        ratios: width to height.
        strengths: of an adapter, `None` without one.

    Raises:
        ValueError: naming every size that the pipeline cannot take, and what comes near.
    """
    from brickwork.eval.sampling.pipelines import size_rule

    multiple, smallest, native = size_rule(pipeline)

    def near(side: float) -> int:
        return round(side / multiple) * multiple

    if sizes is None:
        sizes = [max(smallest, near(side)) for side in (native / 2, native, native * 2)]
    wrong = [size for size in sizes if size < smallest or size % multiple]
    if wrong:
        listed = ", ".join(f"{size} (near it: {max(smallest, near(size))})" for size in wrong)
        raise ValueError(
            f"`--sizes` has {listed}; {type(pipeline).__name__} takes multiples of {multiple} from {smallest} pixels "
            "up."
        )
    shapes = []
    for across, down in ratios:
        for size in dict.fromkeys(sizes):
            stretch = math.sqrt(across / down)
            width, height = near(size * stretch), near(size / stretch)
            if min(width, height) < smallest:
                raise ValueError(
                    f"`--sizes` has {size}, which at {across:g}:{down:g} comes to {height} x {width} pixels; "
                    f"{type(pipeline).__name__} takes sides from {smallest} up."
                )
            shapes.append((height, width))
    strengths = [None] if strengths is None else list(dict.fromkeys(strengths))
    return [Variant(*shape, strength) for strength in strengths for shape in dict.fromkeys(shapes)]


def sweep(
    pipeline,
    variants: Sequence[Variant],
    settings,
    output: str | Path,
    *,
    classes: Sequence[int | str] = (),
    adapter: str | Path | None = None,
    reference=None,
    source: str | None = None,
    batch_size: int = 1,
    side: int = 256,
) -> dict:
    """Draw every variant that is not there yet, and write sheet and table anew.

    Args:
        pipeline: on its device, of any class that takes height, width and generators. An adapter is loaded for the
            sweep alone.
        variants: see `plan_variants`. A later call may have others: those that are there already are kept.
        settings: `SamplingSettings`: pictures a cell, seed, prompts, labels, further arguments.
        output: folder; one of a sweep with other settings is refused.
        classes: labels used in turn, instead of every class in turn.
        adapter: a ResAdapter, as `load_resadapter` takes it.
        reference: a `Reference` with features; pictures are brought to its size for the kernel distance.
        source: where the pipeline came from, for the record.
        batch_size: pictures at once.
        side: longest side of a picture on the sheet.

    Returns:
        `cells`: for each variant its size and strength, seconds a picture, peak memory in MiB (of the GPU's tensors,
        or of this process), and the metric. The first cell of a call includes
        the time that things take when they are done for the first time.
    """
    from brickwork.adapters.resadapter.functions import set_resadapter_scale, use_resadapter
    from brickwork.eval.report.blocks import Picture, Report

    conditions = _conditions(pipeline, settings, classes, adapter, reference, source, batch_size)
    measure = _metric(reference, pipeline, settings.count) if reference is not None else lambda pictures: {}
    folder = StudyFolder(output, STUDY, conditions, free=["source"])
    pipeline.set_progress_bar_config(disable=True)

    def compute(path: Path, variant: Variant) -> dict:
        if variant.strength is not None:
            set_resadapter_scale(pipeline, variant.strength)
        return _draw(path, pipeline, variant, settings, classes, batch_size, measure)

    cells = [
        Cell(
            f"{FOLDER}/{variant.name}",
            partial(compute, variant=variant),
            describe=lambda row: f"{row['seconds']:.2f} s",
        )
        for variant in variants
    ]
    with use_resadapter(pipeline, adapter) if adapter else contextlib.nullcontext():
        rows = list(run_cells(folder, cells).values())
    sheet = Picture(_sheet(variants, settings, classes, folder.path / FOLDER, side), name="sheet")
    result = {"cells": rows}
    write_report(folder, lambda _: (Report("Sweep", [sheet, table(result)]), result))
    return result


def _conditions(pipeline, settings, classes, adapter, reference, source, batch_size: int) -> dict:
    """What all cells share."""
    from brickwork.adapters.base import denoiser_of
    from brickwork.eval.extractors.features import weights_digest

    return {
        "pipeline": type(pipeline).__name__,
        "source": source,
        "weights_sha256": weights_digest(denoiser_of(pipeline)),
        "dtype": str(denoiser_of(pipeline).dtype).removeprefix("torch."),
        "scheduler": type(pipeline.scheduler).__name__,
        "adapter": None if adapter is None else {"source": str(adapter), "sha256": _adapter_digest(adapter)},
        "reference": None if reference is None else reference.identity,
        "classes": list(classes),
        "batch_size": batch_size,
        **asdict(settings),
    }


def _adapter_digest(adapter: str | Path) -> str:
    """Of the adapter's own file, or files."""
    from brickwork.adapters.hub import local_adapter
    from brickwork.files import digest, file_digest

    path = Path(local_adapter(adapter))
    if not path.exists():
        raise ValueError(
            f"`--adapter` is {str(path)!r}, and there is none; give a ResAdapter's folder, file or hub id."
        )
    return digest(*map(file_digest, sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]))


def _draw(path: Path, pipeline, variant: Variant, settings, classes: Sequence, batch_size: int, measure) -> dict:
    """Write a cell's pictures into its folder; its row of the table."""
    from dataclasses import replace

    from PIL import Image

    from brickwork.eval.benchmark.memory import peak_during
    from brickwork.eval.report.pictures import save_picture
    from brickwork.eval.sampling.sample_set import PipelineCall

    class Call(PipelineCall):
        def label(self, index: int) -> int | str | None:
            return classes[index % len(classes)] if classes else super().label(index)

    size = {"height": variant.height, "width": variant.width}
    call = Call(pipeline, replace(settings, call={**settings.call, **size}))
    drawn, started = [], time.perf_counter()
    peak = peak_during(lambda: drawn.append(call.all(batch_size)), pipeline.device)
    seconds, pictures = (time.perf_counter() - started) / settings.count, drawn[0]
    if pictures.shape[1:3] != (variant.height, variant.width):
        raise ValueError(
            f"`pipeline` is a {type(pipeline).__name__}, which drew {pictures.shape[1]} x {pictures.shape[2]} pixels "
            f"where {variant.height} x {variant.width} were asked for; leave that size out of --sizes."
        )
    row = {**asdict(variant), "seconds": seconds, "peak_mib": sum(peak.values()) / 2**20, **measure(pictures)}
    for i, picture in enumerate(pictures):
        save_picture(Image.fromarray(picture), path / f"{i:06d}.png")
    return row


def _metric(reference, pipeline, count: int):
    """A function of a cell's pictures: their kernel distance to the reference, all brought to its size."""
    from brickwork.eval.extractors.features import load_extractor
    from brickwork.eval.extractors.protocols import get_protocol
    from brickwork.eval.metrics.distances import kernel_distance
    from brickwork.eval.metrics.feature_sets import extract_features
    from brickwork.eval.sets.pictures import Preparation, from_arrays

    if count < 2:
        raise ValueError(f"`--count` is {count}; a kernel distance needs at least 2 pictures a cell.")
    width, height = reference.info["size"]
    if width != height:
        raise ValueError(
            f"`--reference` has pictures of {width}x{height}, and cells of many ratios are brought to squares; make "
            "it with `brickwork evaluate ref --resolution`."
        )
    real = reference.require_features()
    extractor = load_extractor(reference.info["extractor"]["name"])
    extractor.network.to(pipeline.device)
    protocol = get_protocol(reference.info["protocol"]["name"])

    def measure(pictures) -> dict:
        measured = extract_features(from_arrays(pictures), extractor, protocol, Preparation(width), progress=False)
        size = min(1000, len(real), len(pictures))
        mean, spread = kernel_distance(real, measured.outputs["features"], 100, size, 0)
        return {extractor.metric_name("kd"): mean, "spread": spread}

    return measure


def _sheet(variants: Sequence[Variant], settings, classes: Sequence, folder: Path, side: int):
    from PIL import Image

    from brickwork.eval.report.pictures import labelled_sheet

    shapes = list(dict.fromkeys((variant.height, variant.width) for variant in variants))
    words = settings.prompts or classes
    rows, labels = [], []
    for strength in dict.fromkeys(variant.strength for variant in variants):
        for i in range(min(settings.count, SHOWN)):
            rows.append([Image.open(folder / Variant(*shape, strength).name / f"{i:06d}.png") for shape in shapes])
            texts = [] if strength is None else [f"strength {strength}"]
            texts += [_short(str(words[i % len(words)]))] if words else []
            labels.append("\n".join(texts or [f"picture {i}"]))
    return labelled_sheet(rows, labels, [f"{height} x {width}" for height, width in shapes], side)


def _short(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def table(result: dict):
    """A row for each cell."""
    metrics = [key for key in result["cells"][0] if key.startswith(("KD", "KID"))]
    columns = {
        "height": lambda row: row["height"],
        "width": lambda row: row["width"],
        "strength": lambda row: row["strength"],
        "seconds": lambda row: f"{row['seconds']:.2f}",
        "peak MiB": lambda row: f"{row['peak_mib']:.0f}",
    }
    return table_of(result["cells"], columns | {name: lambda row, name=name: row[name] for name in metrics[:1]})
