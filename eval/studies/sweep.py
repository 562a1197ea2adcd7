"""`brickwork sweep`: one pipeline over sizes, aspect ratios and adapter strengths, as a contact sheet and a table."""

import argparse
import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER, RECORD, SHEET = "cells", "sweep.json", "sheet.png"
SHOWN = 4  # pictures of each cell on the sheet


@dataclass(frozen=True)
class Cell:
    """What is drawn at one place of the sheet.

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
    parser.description = (
        "Draw with a pipeline at every size, aspect ratio and adapter strength, from the same seeds. Writes sheet.png "
        "(a row for each strength and picture, a column for each size), sweep.json and the pictures, and prints "
        "seconds, peak memory and, with a reference, the kernel distance of every cell. Run again, it goes on."
    )
    parser.epilog = (
        "examples:\n"
        "  brickwork sweep lego-emoji-64 --sizes 32 64 96 --ratios 1:1 2:1 -n 4 -o sweep\n"
        "  brickwork sweep my-sd --prompt 'a red apple' --sizes 256 512 768 --ratios 1:1 16:9 \\\n"
        "      --adapter resadapter_v2_sd1.5 --strengths 0 0.5 1 auto -o sweep"
    )
    parser.add_argument("pipeline", help="weights that ship, a pipeline folder or a hub id, ours or any of diffusers")
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
        help="width to height; sides are rounded to what the pipeline takes (default: 1:1)",
    )
    parser.add_argument("--adapter", help="a ResAdapter: the authors' folder, a converted file, or a place on the hub")
    parser.add_argument(
        "--strengths", nargs="+", metavar="S", help="of the adapter: numbers, 0 is off, or auto (default: 0 1)"
    )
    parser.add_argument("-n", "--count", type=int, default=1, help="pictures in each cell (default: 1)")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="for text-to-image pipelines, used in turn")
    parser.add_argument("--classes", nargs="+", help="names or numbers, used in turn (default: every class in turn)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures, the same in every cell (default: 0)")
    parser.add_argument("--steps", type=int, help="sampling steps (num_inference_steps of the pipeline)")
    parser.add_argument("--guidance-scale", type=float, help="scale of classifier-free guidance")
    parser.add_argument(
        "--call", default="{}", metavar="JSON", help="""further arguments, such as '{"negative_prompt": "blurry"}'"""
    )
    parser.add_argument("--reference", metavar="FILE", help="what `evaluate ref` wrote, for the kernel distance")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at once (default: 1)")
    parser.add_argument("--side", type=int, default=256, help="longest side on the sheet, in pixels (default: 256)")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    parser.add_argument("--device", help="where the pipeline runs (default: a GPU if there is one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sweep, write everything and print the table."""
    import torch

    from brickwork.eval.messages import choice_error
    from brickwork.eval.metrics.reference import Reference
    from brickwork.eval.sampling.pipelines import load_pipeline
    from brickwork.eval.sampling.sample_set import SamplingSettings

    if args.dtype not in ("float32", "bfloat16", "float16"):
        raise choice_error("dtype", args.dtype, ("float32", "bfloat16", "float16"))
    if args.strengths and not args.adapter:
        raise ValueError("`--strengths` are of an adapter; name it with --adapter.")
    ratios, strengths = [parse_ratio(text) for text in args.ratios], None
    if args.adapter:
        strengths = [parse_strength(text) for text in args.strengths or ["0", "1"]]
    reference = None if args.reference is None else Reference.load(args.reference)
    call = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    call = _json_object(args.call) | {name: value for name, value in call.items() if value is not None}
    pipeline = load_pipeline(args.pipeline, getattr(torch, args.dtype), args.device)
    cells = plan_cells(pipeline, args.sizes, ratios, strengths)
    settings = SamplingSettings(
        args.count,
        args.seed,
        prompts=tuple(args.prompt) if args.prompt else None,
        call=call,
        **_labels(args, pipeline),
    )
    classes = [int(name) if name.isdigit() else name for name in args.classes or []]
    result = sweep(
        pipeline,
        cells,
        settings,
        args.output,
        classes=classes,
        adapter=args.adapter,
        reference=reference,
        source=args.pipeline,
        batch_size=args.batch_size,
        side=args.side,
    )
    print(table(result))
    print(f"wrote {args.output}: {SHEET}, {RECORD}, {FOLDER}/")
    return 0


def _labels(args: argparse.Namespace, pipeline) -> dict:
    """Labels where the pipeline takes them and no prompts were given."""
    from brickwork.eval.sampling.sample_set import denoiser_of

    config = denoiser_of(pipeline).config
    conditional = config.get("num_classes") or config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    return {"labels": "balanced" if (conditional or args.classes) and not args.prompt else "none"}


def _json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"`--call` is {text!r}; give a JSON object: {error}.") from None
    taken = sorted(set(value) & {"height", "width", "generator"}) if isinstance(value, dict) else [text]
    if taken:
        raise ValueError(f"`--call` has {taken[0]!r}; give a JSON object without sizes and seeds, which are swept.")
    return value


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


def size_rule(pipeline) -> tuple[int, int, int]:
    """What sides a pipeline takes: their multiple and the smallest, and the training size, in pixels.

    Raises:
        ValueError: for a pipeline that draws one size only.
    """
    import inspect

    from brickwork.eval.sampling.sample_set import denoiser_of
    from brickwork.gen.networks.base import Denoiser

    parameters = inspect.signature(pipeline.__call__).parameters
    if not {"height", "width"} <= set(parameters):
        raise ValueError(f"pipeline: {type(pipeline).__name__} draws one size only (it takes no height and width)")
    network = denoiser_of(pipeline)
    patches = [network.config.get("patch_size") or 1, *(network.config.get("patch_sizes") or [])]
    patch = max(patch for patch in patches if isinstance(patch, int))
    factor, native = getattr(pipeline, "vae_scale_factor", 1), network.config.get("sample_size") or 64
    native = native if isinstance(native, int) else min(native)
    # Ours pad what their patches do not divide; diffusers' transformers cut it off or fail.
    multiple = factor if isinstance(network, Denoiser) else factor * patch
    return multiple, factor * patch, native * factor


def plan_cells(
    pipeline,
    sizes: Sequence[int] | None,
    ratios: Sequence[tuple[float, float]] = ((1, 1),),
    strengths: Sequence[float | str] | None = None,
) -> list[Cell]:
    """Every strength of every ratio of every size, rows of the sheet first.

    Args:
        pipeline: says which sizes there can be.
        sizes: sides of squares; `None` for the training size, half and twice that. Other ratios keep a square's area,
            their sides rounded to the multiple that the pipeline takes.
        ratios: width to height.
        strengths: of an adapter, `None` without one.

    Raises:
        ValueError: naming every size that the pipeline cannot take, and what comes near.
    """
    multiple, smallest, native = size_rule(pipeline)
    sizes = [native // 2, native, native * 2] if sizes is None else list(dict.fromkeys(sizes))
    wrong = [size for size in sizes if size < smallest or size % multiple]
    if wrong:
        near = [max(smallest, round(size / multiple) * multiple) for size in wrong]
        listed = ", ".join(f"{size} (near it: {mend})" for size, mend in zip(wrong, near))
        raise ValueError(
            f"`sizes` has {listed}; {type(pipeline).__name__} takes multiples of {multiple} from {smallest} pixels up."
        )
    shapes = []
    for across, down in ratios:
        for size in sizes:
            stretch = math.sqrt(across / down)
            width, height = (round(side / multiple) * multiple for side in (size * stretch, size / stretch))
            if min(width, height) < smallest:
                raise ValueError(
                    f"`sizes` has {size}, which at {across:g}:{down:g} comes to {height} x {width} pixels; "
                    f"{type(pipeline).__name__} takes sides from {smallest} up."
                )
            shapes.append((height, width))
    strengths = [None] if strengths is None else list(dict.fromkeys(strengths))
    return [Cell(*shape, strength) for strength in strengths for shape in dict.fromkeys(shapes)]


def sweep(
    pipeline,
    cells: Sequence[Cell],
    settings,
    output: str | Path,
    *,
    classes: Sequence[int | str] = (),
    adapter: str | Path | None = None,
    reference=None,
    source: str | None = None,
    batch_size: int = 1,
    side: int = 256,
    progress: bool = True,
) -> dict:
    """Draw every cell that is not there yet, and write sheet and table anew.

    Args:
        pipeline: on its device, of any class that takes height, width and generators. An adapter is loaded for the
            sweep alone.
        cells: see `plan_cells`. A later call may have others: those that are there already are kept.
        settings: `SamplingSettings`: pictures a cell, seed, prompts, labels, further arguments.
        output: folder; one of a sweep with other settings is refused.
        classes: labels used in turn, instead of every class in turn.
        adapter: a ResAdapter, as `load_resadapter` takes it.
        reference: a `Reference` with features; pictures are brought to its size for the kernel distance.
        source: where the pipeline came from, for the record.
        batch_size: pictures at once.
        side: longest side of a picture on the sheet.
        progress: show a bar.

    Returns:
        The record: `settings`, and `cells` with seconds a picture, peak memory in MiB (of the GPU's tensors, or of
        this process; `None` where the system does not say), and the metric. The first cell of a call includes the
        time that things take when they are done for the first time.
    """
    from brickwork.adapters.resadapter.functions import set_resadapter_scale, use_resadapter
    from brickwork.eval.report.pictures import save_picture
    from brickwork.files import write_json

    output = Path(output)
    record = _record(pipeline, settings, classes, adapter, reference, source, batch_size)
    _refuse_other(output / RECORD, record)
    measure = _metric(reference, pipeline) if reference is not None else None
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    with use_resadapter(pipeline, adapter) if adapter else contextlib.nullcontext(), _bar(cells, progress) as bar:
        write_json(output / RECORD, {"settings": record, "cells": []})
        for cell in cells:
            folder = output / FOLDER / cell.name
            if not (folder / "cell.json").is_file():
                if cell.strength is not None:
                    set_resadapter_scale(pipeline, cell.strength)
                pictures, row = _draw(pipeline, cell, settings, classes, batch_size)
                row |= {} if measure is None else measure(pictures)
                for i, picture in enumerate(pictures):
                    save_picture(_image(picture), folder / f"{i:06d}.png")
                write_json(folder / "cell.json", row)
            rows.append(json.loads((folder / "cell.json").read_text(encoding="utf-8")))
            bar.update()
    result = {"settings": record, "cells": rows}
    write_json(output / RECORD, result)
    save_picture(_sheet(cells, settings, classes, output / FOLDER, side), output / SHEET)
    return result


def _record(pipeline, settings, classes, adapter, reference, source, batch_size: int) -> dict:
    """What all cells share; plain JSON values."""
    from brickwork.eval.extractors.features import weights_digest
    from brickwork.eval.sampling.sample_set import denoiser_of

    record = {
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
    return json.loads(json.dumps(record, default=str))


def _adapter_digest(adapter: str | Path) -> str:
    """Of the adapter's own file, or files."""
    import hashlib

    from brickwork.adapters.hub import local_adapter
    from brickwork.files import file_digest

    path = Path(local_adapter(adapter))
    if not path.exists():
        raise ValueError(f"adapter: there is no {str(path)!r}; give a ResAdapter's folder or file, or a hub id")
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()


def _refuse_other(path: Path, record: dict) -> None:
    """Raise a `ValueError` where the folder holds the sweep of other settings, or something else."""
    if not path.is_file():
        if path.parent.is_file() or (path.parent.is_dir() and any(path.parent.iterdir())):
            raise ValueError(f"`output` is {str(path.parent)!r}, which holds something else; choose another folder.")
        return
    found = json.loads(path.read_text(encoding="utf-8")).get("settings", {})
    changed = [key for key in record if key != "source" and found.get(key) != record[key]]
    if changed:
        listed = "; ".join(f"{key}: {found.get(key)!r} there, {record[key]!r} now" for key in changed)
        raise ValueError(
            f"`output` is {str(path.parent)!r}, which holds a sweep of other settings ({listed}); choose another "
            "folder."
        )


def _draw(pipeline, cell: Cell, settings, classes: Sequence, batch_size: int):
    """The cell's pictures, uint8 `(count, height, width, 3)`, and its row of the table."""
    from dataclasses import replace

    import numpy as np

    from brickwork.eval.sampling.sample_set import PipelineCall

    class Call(PipelineCall):
        def label(self, index: int) -> int | str | None:
            return classes[index % len(classes)] if classes else super().label(index)

    size = {"height": cell.height, "width": cell.width}
    call = Call(pipeline, replace(settings, call={**settings.call, **size}))
    started, peak = time.perf_counter(), _PeakMemory(pipeline.device)
    batches = [range(i, min(i + batch_size, settings.count)) for i in range(0, settings.count, batch_size)]
    pictures = np.concatenate([call(batch) for batch in batches])
    seconds = (time.perf_counter() - started) / settings.count
    if pictures.shape[1:3] != (cell.height, cell.width):
        raise ValueError(
            f"pipeline: {type(pipeline).__name__} drew {pictures.shape[1]} x {pictures.shape[2]} pixels where "
            f"{cell.height} x {cell.width} were asked for; leave that size out"
        )
    return pictures, {**asdict(cell), "seconds": seconds, "peak_mib": peak.mib()}


class _PeakMemory:
    """The most memory in use since it was made: of torch's tensors on an accelerator, else of this process."""

    def __init__(self, device):
        self.device = device
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from what is in use now

    def mib(self) -> float | None:
        """In MiB; `None` where the system does not say."""
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device) / 2**20
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
        return None


def _metric(reference, pipeline):
    """A function of a cell's pictures: their kernel distance to the reference, all brought to its size."""
    from brickwork.eval.extractors.features import load_extractor
    from brickwork.eval.extractors.protocols import get_protocol
    from brickwork.eval.metrics.distances import kernel_distance
    from brickwork.eval.metrics.feature_sets import extract_features
    from brickwork.eval.sets.pictures import Preparation, from_arrays

    width, height = reference.info["size"]
    if width != height:
        raise ValueError(
            f"reference: its pictures are {width}x{height}, and cells of many ratios are brought to squares; make it "
            "with `brickwork evaluate ref --resolution`"
        )
    real = reference.require_features()
    extractor = load_extractor(reference.info["extractor"]["name"])
    extractor.network.to(pipeline.device)
    protocol = get_protocol(reference.info["protocol"]["name"])

    def measure(pictures) -> dict:
        if len(pictures) < 2:
            raise ValueError(f"count: got {len(pictures)}, need at least 2 pictures a cell for a kernel distance")
        measured = extract_features(from_arrays(pictures), extractor, protocol, Preparation(width), progress=False)
        size = min(1000, len(real), len(pictures))
        mean, spread = kernel_distance(real, measured.outputs["features"], 100, size, 0)
        return {extractor.metric_name("kd"): mean, "spread": spread}

    return measure


def _sheet(cells: Sequence[Cell], settings, classes: Sequence, folder: Path, side: int):
    from PIL import Image

    from brickwork.eval.report.pictures import labelled_sheet

    shapes = list(dict.fromkeys((cell.height, cell.width) for cell in cells))
    strengths = list(dict.fromkeys(cell.strength for cell in cells))
    rows, labels = [], []
    for strength in strengths:
        for i in range(min(settings.count, SHOWN)):
            files = [folder / Cell(*shape, strength).name / f"{i:06d}.png" for shape in shapes]
            rows.append([Image.open(file) for file in files])
            texts = [] if strength is None else [f"strength {strength}"]
            if settings.prompts or classes:
                texts.append(_short(str((settings.prompts or classes)[i % len(settings.prompts or classes)])))
            labels.append("\n".join(texts or [f"picture {i}"]))
    return labelled_sheet(rows, labels, [f"{height} x {width}" for height, width in shapes], side)


def _short(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _image(pixels):
    from PIL import Image

    return Image.fromarray(pixels)


def table(result: dict) -> str:
    """The cells as text."""
    metric = next((key for key in result["cells"][0] if key.startswith(("KD", "KID"))), None)
    rows = [["height", "width", "strength", "seconds", "peak MiB", *([metric] if metric else [])]]
    for cell in result["cells"]:
        strength = "-" if cell["strength"] is None else str(cell["strength"])
        peak = "-" if cell["peak_mib"] is None else f"{cell['peak_mib']:.0f}"
        rows.append([str(cell["height"]), str(cell["width"]), strength, f"{cell['seconds']:.2f}", peak])
        if metric:
            rows[-1].append(f"{cell[metric]:.4g}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(value.rjust(width) for value, width in zip(row, widths)) for row in rows)


@contextlib.contextmanager
def _bar(cells: Sequence[Cell], progress: bool) -> Iterator:
    from tqdm.auto import tqdm

    with tqdm(total=len(cells), unit="cell", desc="sweeping", disable=not progress) as bar:
        yield bar
