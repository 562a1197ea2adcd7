"""Sampling at scale: many pictures from any pipeline, in a set that depends on the seed and the number alone.

Picture i has its own seed, made of the run's seed and i, for its noise and for its label. Batch k holds the pictures
`[k · batch_size, (k + 1) · batch_size)`, and a process takes complete batches: an interrupted run that goes on, and a
run of two processes, feed the network exactly the batches of an uninterrupted one and give the same bytes.
Another batch size gives the same noise and labels; the pictures then agree but for the network's own rounding, which
moves a byte here and there in float32 and none in float64.
"""

import inspect
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from brickwork.adapters.base import denoiser_of
from brickwork.errors import no_unknown, one_of, shown
from brickwork.eval.extractors.features import weights_digest
from brickwork.eval.extractors.protocols import to_uint8
from brickwork.eval.report.results import generation_file
from brickwork.eval.report.versions import library_versions
from brickwork.eval.sets.pictures import batches, read_metadata
from brickwork.files import write_file, write_json
from brickwork.gen.operations import count_operations

FORMATS = ("png", "npz", "webdataset")
LABELS = ("none", "balanced", "drawn")
SHARD_PICTURES = 1000
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class SamplingSettings:
    """What decides which pictures come out; a run that goes on must have the same.

    Attributes:
        count: How many pictures.
        seed: Of the run; every picture's own seed follows from it and the picture's number.
        labels: `balanced` (label i is i modulo the number of classes), `drawn` from each picture's seed, or `none`.
        num_classes: Number of classes to label with; by default the network's own.
        prompts: Texts for text-to-image pipelines, used in turn.
        call: Further arguments of the pipeline (`num_inference_steps`, `guidance_scale`, `height`, …).
    """

    count: int
    seed: int = 0
    labels: str = "none"
    num_classes: int | None = None
    prompts: tuple[str, ...] | None = None
    call: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count: got {self.count}, need at least 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, need 0 or more")
        one_of("labels", self.labels, LABELS)
        if self.prompts is not None and self.labels != "none":
            raise ValueError("prompts: got prompts and labels at once; a pipeline takes one of the two")


def image_seed(seed: int, index: int) -> int:
    """The seed of one picture, 63 bits mixed from the run's seed and the picture's number."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def image_label(settings: SamplingSettings, num_classes: int, index: int) -> int | None:
    """The class of one picture, `None` without labels."""
    if settings.labels == "none":
        return None
    if settings.labels == "balanced":
        return index % num_classes
    return int(np.random.default_rng([settings.seed, index, num_classes]).integers(num_classes))


def sample_set(
    pipeline,
    settings: SamplingSettings,
    output: str | Path,
    *,
    source: str | None = None,
    format: str = "png",
    batch_size: int = 16,
    count_work: bool = False,
    progress: bool = True,
) -> Path:
    """Sample a set of pictures; running the same again goes on where it stopped.

    Args:
        pipeline: Any pipeline of ours or of diffusers whose call takes a list of generators. It is not moved: put it
            on its device first.
        settings: What to draw.
        output: A folder for `png` and `webdataset`, a file for `npz`. An existing set of other settings is refused.
        source: Where the pipeline came from, for the record.
        format: `png` (with `metadata.jsonl`, as `datasets` reads image folders), `npz` (`arr_0` pictures, `arr_1`
            labels), or `webdataset` (`.tar` shards of `SHARD_PICTURES`).
        batch_size: Pictures at once in each process.
        count_work: Draw one picture more to count its floating-point operations, for quality against work.
        progress: Show a bar.

    Returns:
        The output's path.
    """
    one_of("format", format, FORMATS)
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, need at least 1")
    state, output = PartialState(), Path(output)
    if format == "npz" and output.suffix != ".npz":
        raise ValueError(f"output: got {output} for the format npz; need a name that ends in .npz")
    call = PipelineCall(pipeline, settings)
    pipeline.set_progress_bar_config(disable=True)
    gflops = count_operations(lambda: call([0]))[0] / 1e9 if count_work else None
    record = _record(call, source, format, gflops)
    # Pictures lie in a folder of PNGs until all are there; the other formats are packed from it in one step.
    folder = output if format == "png" else output.with_name(output.name + ".parts")
    finished = _is_finished(output, record, folder, format)
    state.wait_for_everyone()  # no process looks at the folder while the first one begins to write there
    if finished:
        return output
    with state.main_process_first():
        if state.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "generation.json", record)
    _sample_missing(call, folder, batch_size, state, progress)
    state.wait_for_everyone()
    if state.is_main_process:
        _write_metadata(call, folder)
        if format != "png":
            (_pack_npz if format == "npz" else _pack_webdataset)(folder, settings, output)
            write_json(generation_file(output), record)
            _remove_parts(folder, settings)
    state.wait_for_everyone()
    return output


class PipelineCall:
    """Calls a pipeline for given pictures, with the arguments that this pipeline takes."""

    def __init__(self, pipeline, settings: SamplingSettings):
        self.pipeline, self.settings, kind = pipeline, settings, type(pipeline).__name__
        self.accepted = parameters = inspect.signature(pipeline.__call__).parameters
        no_unknown("call", settings.call, self.accepted, kind)
        if "generator" not in self.accepted:
            raise ValueError(f"pipeline: {kind} takes no generator, so its pictures have no seed")
        required = "class_labels" in parameters and parameters["class_labels"].default is inspect.Parameter.empty
        if required and settings.labels == "none":
            raise ValueError(f"labels: {kind} needs class labels; pass --labels balanced or drawn")
        self.num_classes = self._count_classes()
        if settings.prompts is not None and "prompt" not in self.accepted:
            raise ValueError(f"prompts: {kind} takes no prompt; leave them out")
        if settings.prompts is None and "prompt" in self.accepted:
            raise ValueError(f"prompts: {kind} needs prompts; pass --prompts FILE, one a line")

    def _count_classes(self) -> int:
        if self.settings.labels == "none":
            return 0
        if "class_labels" not in self.accepted:
            raise ValueError(f"labels: {type(self.pipeline).__name__} takes no class labels; pass --labels none")
        config = denoiser_of(self.pipeline).config
        own = config.get("num_classes") or config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
        count = self.settings.num_classes or own
        if not count or (own and count > own):
            raise ValueError(f"num_classes: got {self.settings.num_classes}, the network has {own}; give 1 to {own}")
        return count

    def label(self, index: int) -> int | None:
        return image_label(self.settings, self.num_classes, index)

    def prompt(self, index: int) -> str | None:
        return self.settings.prompts[index % len(self.settings.prompts)] if self.settings.prompts else None

    def __call__(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 `(len(indices), height, width, 3)`."""
        return to_uint8(self.floats(indices)).numpy()

    def all(self, batch_size: int) -> np.ndarray:
        """Every picture of the set, uint8 `(count, height, width, 3)`."""
        return np.concatenate([self(batch) for batch in batches(self.settings.count, batch_size)])

    def floats(self, indices: Sequence[int]) -> np.ndarray:
        """What the pipeline gives, `(len(indices), height, width, 3)` in [0, 1]."""
        arguments = dict(self.settings.call)
        if self.settings.prompts is not None:
            arguments["prompt"] = [self.prompt(i) for i in indices]
        elif self.settings.labels != "none":
            arguments["class_labels"] = [self.label(i) for i in indices]
        elif "batch_size" in self.accepted:
            arguments["batch_size"] = len(indices)
        elif "class_labels" in self.accepted:
            arguments["class_labels"] = [None] * len(indices)
        seeds = [image_seed(self.settings.seed, i) for i in indices]
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        # Floats rather than PIL pictures, so that values outside [0, 1] are an error here and no wrap-around there.
        images = np.asarray(self.pipeline(**arguments, output_type="np").images)
        if images.ndim != 4 or images.shape[0] != len(indices) or images.shape[3] not in (1, 3):
            raise ValueError(
                f"pipeline: {type(self.pipeline).__name__} gave an array {images.shape} for {len(indices)} pictures;"
                " need (count, height, width, 3)"
            )
        return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def _record(call: PipelineCall, source: str | None, format: str, gflops: float | None) -> dict:
    pipeline, settings, network = call.pipeline, call.settings, denoiser_of(call.pipeline)
    # Without diffusers' own notes on a scheduler's settings, whose order changes from run to run.
    scheduler = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    return {
        "pipeline": type(pipeline).__name__,
        "source": source,
        "weights_sha256": weights_digest(network),
        "dtype": str(network.dtype).removeprefix("torch."),
        "scheduler": {"class": type(pipeline.scheduler).__name__, **_plain(scheduler)},
        "subnet_schedule": _plain(pipeline.config.get(getattr(pipeline, "schedule_name", "brick_schedule"))),
        "recommended": _recommended(pipeline, settings),
        "format": format,
        **_plain(asdict(settings)),
        "num_classes": call.num_classes or None,
        "class_names": _plain(denoiser_of(pipeline).config.get("id2label")) if call.num_classes else None,
        "gflops": gflops,
        "versions": library_versions(),
    }


def _recommended(pipeline, settings: SamplingSettings) -> dict | None:
    """What a pipeline of ours brings itself where the call says nothing: its guidance, its steps."""
    names = {"guidance_scale", "num_inference_steps"} - set(settings.call)
    found = {name: pipeline.config.get(name) for name in sorted(names)}
    return {name: value for name, value in found.items() if value is not None} or None


def _plain(value):
    """What JSON makes of a value, so that a record read back equals the one written."""
    text = json.dumps(value, default=lambda v: v.to_dict() if hasattr(v, "to_dict") else str(v))
    return json.loads(text, parse_constant=str)  # infinities, as DPMSolver has one, are words


def _is_finished(output: Path, record: dict, folder: Path, format: str) -> bool:
    """Whether the set is there already; a `ValueError` if there is another, or anything else of its name."""
    stored = next((path for path in (generation_file(output), folder / "generation.json") if path.is_file()), None)
    if stored is None:
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise ValueError(f"output: {output} exists and is no sampled set; choose another folder or empty it")
        return False
    found = json.loads(stored.read_text(encoding="utf-8"))
    if "brick_schedule" in found:  # its name until 0.2
        found["subnet_schedule"] = found.pop("brick_schedule")
    ignored = ("source", "versions", "gflops", "class_names")
    changed = [key for key in record if key not in ignored and found.get(key) != record[key]]
    if changed:
        listed = "; ".join(f"{key}: {shown(found.get(key))} there, {shown(record[key])} now" for key in changed)
        raise ValueError(f"output: {output} holds a set with other settings ({listed}); choose another folder")
    return format != "png" and stored == generation_file(output)


def _picture(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _sample_missing(call: PipelineCall, folder: Path, batch_size: int, state: PartialState, progress: bool) -> None:
    mine = batches(call.settings.count, batch_size)[state.process_index :: state.num_processes]
    hidden = not progress or not state.is_main_process
    with tqdm(total=sum(map(len, mine)), unit="image", desc="sampling", disable=hidden) as bar:
        for batch in mine:
            # A batch with one picture missing is drawn again: the network's rounding depends on its size.
            if not all(_picture(folder, i).is_file() for i in batch):
                for i, pixels in zip(batch, call(batch)):
                    write_file(_picture(folder, i), partial(Image.fromarray(pixels).save, format="PNG"))
            bar.update(len(batch))


def _write_metadata(call: PipelineCall, folder: Path) -> None:
    lines = []
    for i in range(call.settings.count):
        row = {"file_name": _picture(folder, i).name, "seed": image_seed(call.settings.seed, i)}
        row |= {key: value for key, value in (("label", call.label(i)), ("text", call.prompt(i))) if value is not None}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_file(folder / METADATA, "".join(lines))


def _pack_npz(folder: Path, settings: SamplingSettings, output: Path) -> None:
    arrays = [np.stack([np.asarray(Image.open(_picture(folder, i))) for i in range(settings.count)])]
    if settings.labels != "none":
        arrays.append(np.array([row["label"] for row in read_metadata(folder)], dtype=np.int64))

    def write(path: Path) -> None:
        with open(path, "wb") as stream:  # given a name, numpy would add a suffix of its own
            np.savez(stream, *arrays)

    write_file(output, write)


def _pack_webdataset(folder: Path, settings: SamplingSettings, output: Path) -> None:
    rows = read_metadata(folder)
    for shard, batch in enumerate(batches(settings.count, SHARD_PICTURES)):

        def write(path: Path, batch=batch) -> None:
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for name, row in [(rows[i].pop("file_name"), rows[i]) for i in batch]:
                    _add_to_tar(archive, name, (folder / name).read_bytes())
                    _add_to_tar(archive, Path(name).stem + ".json", json.dumps(row).encode())

        write_file(output / f"{shard:05d}.tar", write)


def _add_to_tar(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no times and no owners: equal pictures make equal shards
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _remove_parts(folder: Path, settings: SamplingSettings) -> None:
    """Remove the files that this run wrote, and the folder if nothing else is in it."""
    for path in [*(_picture(folder, i) for i in range(settings.count)), folder / METADATA, folder / "generation.json"]:
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
