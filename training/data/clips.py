"""Clips with class labels: animations, folders of frames, video files, or a column of a Parquet file.

Nothing is resampled in time: all clips have one rate and one size, and are at least as long as a training window.
Frames are brought to the training size as pictures are.
"""

import contextlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn
from tqdm.auto import tqdm

from brickwork.errors import explained
from brickwork.eval.sets.decode import BrokenPicture, to_rgb
from brickwork.files import digest, write_file
from brickwork.pipelines.latents import encode, pixels_per_latent
from brickwork.training.config.clips import ClipDataConfig
from brickwork.training.data.cache import network_fingerprint
from brickwork.training.data.images import crop_to, split_by_name, to_unit_range

ANIMATIONS = (".gif", ".webp", ".png", ".apng")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHORTEST = 10  # ms of a frame; frames whose times have no longer common part have no one rate
KEPT = 4096  # clips in memory
MADE_OF = "brickwork.made_of"  # in a file of latents, what they depend on


@dataclass(frozen=True)
class Entry:
    """Where a clip is: `source` is a file, its content, or the files of its frames; `fps` its rate and `frames`
    their number where they are known."""

    name: str
    source: Path | bytes | tuple[Path, ...]
    label: str | None
    fps: float | None = None
    frames: int | None = None


def read_animation(
    file: Path | io.BytesIO, fps: float | None = None, count: int | None = None
) -> tuple[list[Image.Image], float]:
    """The frames of a GIF, WebP or APNG, and how many of them a second; one shown longer is there as often.

    Writers make one of frames that are the same. Unless the rate is known (`fps`), it is that of the longest time of
    which all others are multiples, which a clip that stands still now and then makes too long. One that stands still
    all along is a single frame, for as long as `count` says.

    Raises:
        ValueError: for frames shown for times without a common part.
    """
    with Image.open(file) as animation:
        frames, times = [], []
        for frame in ImageSequence.Iterator(animation):
            frames.append(to_rgb(frame.copy()))
            times.append(round(frame.info.get("duration") or 0))
    if len(frames) == 1:
        return frames * (count or 1), fps or math.nan
    counts = [time * (fps or 0) / 1000 for time in times]
    if fps and all(abs(count - round(count)) < 0.1 * count for count in counts):
        return [frame for frame, count in zip(frames, counts) for _ in range(round(count))], fps
    unit = math.gcd(*times)
    if unit < SHORTEST:
        raise ValueError(f"its frames are shown for {sorted(set(times))[:4]} ms, which is no one rate")
    return [frame for frame, time in zip(frames, times) for _ in range(time // unit)], 1000 / unit


def read_video(path: Path) -> tuple[list[Image.Image], float]:
    """The frames of a video file, and how many of them a second.

    Raises:
        ValueError: for a rate that changes, and where nothing can read it.
    """
    if find_spec("av"):
        import av

        with av.open(str(path)) as file:
            decoded = list(file.decode(video=0))
            rate = float(file.streams.video[0].average_rate)
        times = np.diff([frame.time for frame in decoded])
        if len(times) and np.abs(times * rate - 1).max() > 0.1:
            raise ValueError("its frames are shown for unlike times, which is no one rate")
        return [frame.to_image() for frame in decoded], rate
    if find_spec("imageio") and find_spec("imageio_ffmpeg"):
        import imageio

        with imageio.get_reader(path, "ffmpeg") as reader:
            return [Image.fromarray(frame) for frame in reader], float(reader.get_meta_data()["fps"])
    raise ValueError("video files need PyAV or imageio: pip install 'brickwork[video]'")


def frames_of(entry: Entry) -> tuple[list[Image.Image], float]:
    """The frames of a clip and its rate, `nan` where nothing says it.

    Raises:
        BrokenPicture: for a clip that cannot be read.
    """
    source = entry.source
    try:
        if isinstance(source, tuple):
            return [to_rgb(Image.open(path)) for path in source], math.nan
        if isinstance(source, bytes):
            return read_animation(io.BytesIO(source), entry.fps, entry.frames)
        return read_video(source) if source.suffix.lower() in VIDEOS else read_animation(source, entry.fps)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BrokenPicture(f"{entry.name} cannot be read: {error}") from error


def find_clips(folder: Path, fps: float | None = None) -> list[Entry]:
    """Animations, video files and folders of numbered frames below a folder; the folder above a clip is its class."""

    def label(path: Path) -> str | None:
        return None if path.parent == folder else path.parent.name

    found, holders = [], {}
    for path in sorted(folder.rglob("*"), key=lambda path: _natural(str(path))):
        if path.name.startswith(".") or not path.is_file():
            continue
        animated = path.suffix.lower() in ANIMATIONS and _is_animated(path)
        if animated or path.suffix.lower() in VIDEOS:
            found.append(Entry(str(path.relative_to(folder)), path, label(path), fps))
        elif path.suffix.lower() in STILLS:
            holders.setdefault(path.parent, []).append(path)
    found += [
        Entry(str(holder.relative_to(folder)), tuple(paths), label(holder))
        for holder, paths in holders.items()
        if len(paths) > 1 and holder != folder
    ]
    return found


class Clips:
    """The data set that `data` describes, for a `TrainingStream`; a sample is `(3, F, size, size)` and its label.

    Attributes:
        fps: frames a second of the samples, after `stride`.
        class_names: empty for unlabelled clips.
    """

    channels = 3

    def __init__(self, data: ClipDataConfig):
        self.data, self.size, self.frames = data, data.size, data.frames
        self.entries, order = _entries(data)
        self.shapes, self.buckets = [(data.size, data.size)], np.zeros(len(self.entries), np.int64)
        self.table = None  # of pictures
        labels = [entry.label for entry in self.entries]
        self.class_names = list(_names(labels, order)) if data.label_column else []
        if self.class_names and None in labels:
            raise ValueError(
                f"`data.source` is {data.source!r}, where {labels.count(None)} clips have no class; put each into the "
                "folder of one, or set `data.label_column` to null."
            )
        self.class_names = data.classes or self.class_names
        self.labels = np.array([self.class_names.index(name) if self.class_names else 0 for name in labels])
        self._kept = lru_cache(KEPT)(self._decoded)
        self.fps = self._check_clips() / data.stride

    def __len__(self) -> int:
        return len(self.entries)

    def number_classes(self, names: Sequence[str]) -> None:
        """Number the classes as a network does that knows them all, and maybe others."""
        self.labels = np.array([names.index(self.class_names[label]) for label in self.labels])
        self.class_names = list(names)

    def _check_clips(self) -> float:
        """The one rate of all clips, or a `ValueError` for clips that do not go together."""
        data, needed, seen = self.data, (self.frames - 1) * self.data.stride + 1, {}
        for row, entry in enumerate(self.entries):
            try:
                clip, rate, size = self._kept(row)
            except BrokenPicture:
                continue  # named and counted when its turn comes
            if len(clip) < needed:
                raise ValueError(
                    f"`data.frames` is {data.frames} with `data.stride` {data.stride}, which takes {needed} frames, "
                    f"and {entry.name} has {len(clip)}; lower one of them, or leave the clip out."
                )
            rate = data.fps if math.isnan(rate) else round(rate, 3)
            if rate is None:
                raise ValueError(f"{entry.name} does not say its rate; set `data.fps`.")
            seen.setdefault((size, rate), entry.name)
        if not seen:
            raise ValueError(f"`data.source` is {data.source!r}, of whose clips none can be read.")
        if len(seen) > 1 or (data.fps is not None and [rate for _, rate in seen] != [round(data.fps, 3)]):
            listed = ", ".join(f"{name}: {w}×{h} at {rate:g} a second" for ((w, h), rate), name in seen.items())
            raise ValueError(
                f"`data.source` has clips of several sizes or rates, or `data.fps` is another ({listed}); make them "
                "the same first: nothing is resampled in silence. Animations that stand still now and then read right "
                "with their rate in `data.fps`."
            )
        return next(iter(seen))[1]

    def _decoded(self, row: int) -> tuple[np.ndarray, float, tuple[int, int]]:
        """All frames at the training size, uint8 `(F, size, size, 3)`; the rate; width and height before."""
        frames, rate = frames_of(self.entries[row])
        sizes = {frame.size for frame in frames}
        if len(sizes) > 1:
            raise BrokenPicture(f"{self.entries[row].name} has frames of several sizes, {sorted(sizes)}")
        return np.stack([crop_to(frame, self.size, self.size) for frame in frames]), rate, sizes.pop()

    def sample(self, row: int, random: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
        """A window of a clip, float32 `(3, F, size, size)` in [-1, 1], and its label; without `random` the first."""
        clip = self._clip(row)
        last = len(clip) - (self.frames - 1) * self.data.stride - 1
        start = 0 if random is None else int(random.integers(last + 1))
        window = clip[start :: self.data.stride][: self.frames]
        return np.stack([self._seen(frame) for frame in window], axis=1), int(self.labels[row])

    def _clip(self, row: int) -> np.ndarray:
        """All frames of a clip."""
        return self._kept(row)[0]

    def _seen(self, frame: np.ndarray) -> np.ndarray:
        """A frame as the network sees it, float32 `(C, h, w)`."""
        return to_unit_range(frame)

    def still(self, row: int) -> np.ndarray:
        """The first window, for held-out scores."""
        return self.sample(row)[0]

    @property
    def fingerprint(self) -> str:
        """A digest of names, labels and windows."""
        names = "\n".join(entry.name for entry in self.entries)
        return digest(names, self.labels.tobytes(), f"{self.class_names} {self.size} {self.frames} {self.data.stride}")

    def split(self, held_out: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows for training and held out, by the hash of each clip's name."""
        return split_by_name([entry.name for entry in self.entries], held_out)


class LatentClips(Clips):
    """Clips as a VAE codes their frames, by the means of its distributions; coded once, and kept in memory.

    Args:
        data: as of `Clips`; its size is that of the pictures, and `latents` a file to keep what was coded in.
        vae: of the image network's pipeline.
    """

    def __init__(self, data: ClipDataConfig, vae: nn.Module):
        super().__init__(data)
        if data.size % pixels_per_latent(vae) or data.horizontal_flip:
            wrong = f"`data.size` is {data.size}; give a multiple of {pixels_per_latent(vae)}, the VAE's"
            raise ValueError("`data.horizontal_flip` is true, and latents cannot be mirrored: set it to false"
                             if data.horizontal_flip else wrong)  # fmt: skip
        self.vae = vae
        clips: dict[int, np.ndarray] = {}
        for row in range(len(self)):
            with contextlib.suppress(BrokenPicture):  # as in `Clips`
                clips[row] = super()._clip(row)
        made_of = digest(network_fingerprint(vae), *(clip.tobytes() for clip in clips.values()))
        self._latents = read_latents(data.latents, made_of)
        if self._latents is None:
            self._latents = {}
            for row, clip in tqdm(clips.items(), unit="clip", desc="coding clips"):
                pixels = np.stack([to_unit_range(frame) for frame in clip])
                self._latents[row] = encode(vae, torch.from_numpy(pixels)).cpu().contiguous().numpy()
            if data.latents is not None:
                tensors = {str(row): latents for row, latents in self._latents.items()}
                write_file(data.latents, lambda part: save_file(tensors, part, {MADE_OF: made_of}))
        self._kept.cache_clear()
        self.channels, *shape = next(iter(self._latents.values())).shape[1:]
        self.shapes = [tuple(shape)]

    def _clip(self, row: int) -> np.ndarray:
        return self._latents[row] if row in self._latents else super()._clip(row)

    def _seen(self, frame: np.ndarray) -> np.ndarray:
        return frame

    @property
    def fingerprint(self) -> str:
        return digest(super().fingerprint, network_fingerprint(self.vae))


def read_latents(file: str | None, made_of: str) -> dict[int, np.ndarray] | None:
    """Latents `(F, C, h, w)` by row from a file that a run wrote; `None` where there is none.

    Raises:
        ValueError: for one of other clips, sizes or another VAE, and for another file.
    """
    if file is None or not Path(file).exists():
        return None
    with explained(f"`data.latents` is {file!r}, which cannot be read", OSError, ValueError, SafetensorError):
        with safe_open(file, "np") as stored:
            if (stored.metadata() or {}).get(MADE_OF) != made_of:
                raise ValueError("it is of other clips or another size or VAE; name another file, or remove it")
            return {int(row): stored.get_tensor(row) for row in stored.keys()}


def _names(labels: Sequence[str | None], order: Sequence[str]) -> list[str]:
    """The classes that there are, in a table's own order, else by name."""
    found = set(labels) - {None}
    return [name for name in order if name in found] or sorted(found)


def _entries(data: ClipDataConfig) -> tuple[list[Entry], Sequence[str]]:
    """All clips of the classes wanted, and the order that a table gives its classes."""
    path, order = Path(data.source).expanduser(), ()
    if path.is_dir():
        entries = find_clips(path, data.fps)
    elif path.suffix.lower() == ".parquet" and path.is_file():
        entries, order = _rows(path, data)
    else:
        raise ValueError(f"`data.source` is {data.source!r}; give a folder of clips, or a Parquet file.")
    if data.classes is not None:
        entries = [entry for entry in entries if entry.label in data.classes]
        missing = [name for name in data.classes if name not in {entry.label for entry in entries}]
        if missing:
            raise ValueError(
                f"`data.classes` has {missing[0]!r}; {data.source!r} has no clips of the class {missing[0]}."
            )
    if not entries:
        raise ValueError(
            f"`data.source` is {data.source!r}, which has no clips; they are {', '.join(ANIMATIONS)} with several "
            f"frames, {', '.join(VIDEOS)}, or folders of numbered pictures."
        )
    return entries, order


def _rows(path: Path, data: ClipDataConfig) -> tuple[list[Entry], Sequence[str]]:
    from datasets import Features
    from pyarrow import parquet

    table = parquet.read_table(path)
    for key, column in (("clip_column", data.clip_column), ("label_column", data.label_column)):
        if column is not None and column not in table.column_names:
            raise ValueError(f"`data.{key}` is {column!r}; the columns are {', '.join(table.column_names)}.")
    clips = table[data.clip_column].to_pylist()
    contents = [clip["bytes"] if isinstance(clip, dict) else clip for clip in clips]
    labels, names = [None] * len(clips), ()
    if data.label_column is not None:
        names = getattr(Features.from_arrow_schema(table.schema).get(data.label_column), "names", ())
        labels = [names[value] if names else str(value) for value in table[data.label_column].to_pylist()]
    rates = table["fps"].to_pylist() if "fps" in table.column_names else [data.fps] * len(clips)
    counts = table["frames"].to_pylist() if "frames" in table.column_names else [None] * len(clips)
    found = enumerate(zip(contents, labels, rates, counts))
    return [Entry(f"row {row}", *columns) for row, columns in found], names


def _is_animated(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return getattr(picture, "is_animated", False)
    except (OSError, ValueError, SyntaxError):
        return True  # named as broken later


def _natural(text: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text)]
