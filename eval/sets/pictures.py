"""Sets of pictures from wherever they lie, checked before a number is made of them.

An `ImageSet` knows how many pictures there are, what each is called and how to open one; nothing is decoded until it
is asked for. `Preparation` brings them to RGB and to one size, or refuses, and counts what it had to change.
"""

import hashlib
import logging
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from brickwork.errors import count_and_name, explained, one_of
from brickwork.eval.extractors.protocols import to_uint8
from brickwork.eval.sets.decode import crop_to, to_rgb
from brickwork.eval.sets.reader import open_pictures
from brickwork.eval.sets.scan import read_rows, say_skipped

log = logging.getLogger(__name__)

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}


@dataclass(frozen=True)
class ImageSet:
    """A list of pictures that are opened when asked for.

    Attributes:
        names: What each picture is called in errors.
        open: Opens picture `i` without decoding its pixels.
        source: Where they came from, as the user gave it.
        texts: The caption of each, where there are captions.
        labels: The class of each, where there are any: its name, or its number where no name is known, or `None`.
    """

    names: Sequence[str]
    open: Callable[[int], Image.Image]
    source: str
    texts: Sequence[str] | None = None
    labels: Sequence[int | str | None] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def first(self, count: int) -> "ImageSet":
        """The first so many pictures."""
        if not 1 <= count <= len(self):
            raise ValueError(f"limit: got {count}, need 1 to {len(self)}, the number of pictures in {self.source}")
        texts, labels = (values[:count] if values is not None else None for values in (self.texts, self.labels))
        return ImageSet(self.names[:count], self.open, self.source, texts, labels)


def open_image_set(source: str | Path, limit: int | None = None) -> ImageSet:
    """A set of pictures from a path or a hub id.

    Args:
        source: what `brickwork.eval.sets.open_pictures` reads, or an `.npz` (first array, uint8
            `(count, height, width, 3)`).
        limit: Take the first so many only.
    """
    if Path(source).suffix == ".npz":
        images = _open_npz(Path(source))
    else:
        pictures = open_pictures(source)
        if told := " ".join([*pictures.notes, say_skipped(pictures.skipped)]).strip():
            log.warning("%s: %s", source, told)
        texts, labels = pictures.captions, pictures.labels
        images = ImageSet(
            pictures.names,
            pictures.open,
            str(source),
            None if None in texts else texts,
            labels if any(label is not None for label in labels) else None,
        )
    return images if limit is None else images.first(limit)


def read_metadata(folder: Path) -> list[dict]:
    """The rows of a folder's `metadata.jsonl`, none if it has none."""
    path = folder / "metadata.jsonl"
    return [row for _, row in read_rows(path)] if path.is_file() else []


def _open_npz(path: Path) -> ImageSet:
    with explained(f"images: {path} cannot be read as an .npz file", OSError, ValueError, zipfile.BadZipFile):
        with np.load(path, allow_pickle=False) as archive:
            name = "arr_0" if "arr_0" in archive.files else archive.files[0]
            pixels = archive[name]
    if pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(f"images: {path}:{name} has shape {pixels.shape}, need (count, height, width, 3)")
    return from_arrays(pixels, str(path))


def from_arrays(pixels: np.ndarray | torch.Tensor, source: str = "array") -> ImageSet:
    """A set from an array `(count, height, width, 3)`, uint8 or floats in [0, 1]."""
    pixels = to_uint8(pixels, source).numpy()
    return ImageSet([f"{source}[{i}]" for i in range(len(pixels))], lambda i: Image.fromarray(pixels[i]), source)


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes RGB of one size; stored with the numbers, because they depend on it.

    Attributes:
        resolution: Side in pixels to bring the centre square of each picture to; `None` takes pictures as they are,
            and then they must all be of one size.
        filter: Pillow's filter for that: `lanczos`, `bicubic` or `box`.
        convert: Whether grey, palette and alpha pictures are converted (alpha on white) and counted; refused if not.
    """

    resolution: int | None = None
    filter: str = "lanczos"
    convert: bool = False

    def __post_init__(self):
        one_of("filter", self.filter, FILTERS)
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution: got {self.resolution}, need a side in pixels of at least 1")

    def to_dict(self) -> dict:
        """As it is stored in results."""
        return {"resolution": self.resolution, "filter": self.filter if self.resolution else None}

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 `(height, width, 3)`."""
        if self.resolution is None:
            return np.asarray(to_rgb(image))
        return crop_to(image, self.resolution, self.resolution, FILTERS[self.filter])


@dataclass
class Inspection:
    """What the headers of a set say, before any pixel is decoded."""

    size: tuple[int, int] | None = None
    converted: dict[str, int] = field(default_factory=dict)


def _kind(image: Image.Image) -> str:
    if "A" in image.getbands() or "transparency" in image.info:
        return "alpha"
    kind = {"RGB": "RGB", "L": "grey", "1": "grey", "P": "palette", "F": "deep grey"}.get(image.mode, image.mode)
    return "deep grey" if kind.startswith("I") else kind


def _header(images: ImageSet, row: int) -> tuple[int, str, tuple[int, int]]:
    """A picture's row, kind and size; no kind if it is corrupt."""
    try:
        with images.open(row) as image:
            return row, _kind(image), image.size
    except (OSError, SyntaxError, ValueError):
        return row, "", (0, 0)


def inspect_images(images: ImageSet, preparation: Preparation) -> Inspection:
    """Read every header; refuse corrupt files, mixed sizes and pictures that are not RGB, counted and named.

    The processes of an `accelerate launch` share the work, so all of them have to take part.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    found = [_header(images, row) for row in range(state.process_index, len(images), state.num_processes)]
    corrupt, kinds, sizes = [], {}, {}
    for row, kind, size in sorted(gather_object(found)) if state.num_processes > 1 else found:
        if not kind:
            corrupt.append(images.names[row])
            continue
        kinds.setdefault(kind, []).append(images.names[row])
        sizes.setdefault(size, []).append(images.names[row])
    refuse_corrupt(corrupt, images)
    other = {kind: names for kind, names in kinds.items() if kind != "RGB"}
    if other and not preparation.convert:
        listed = "; ".join(f"{kind}: {count_and_name(names)}" for kind, names in sorted(other.items()))
        raise ValueError(
            f"images: {sum(map(len, other.values()))} of {len(images)} in {images.source} are not RGB ({listed});"
            " pass --convert to put them on white and convert them to RGB, which the result then says"
        )
    if preparation.resolution is None and len(sizes) > 1:
        listed = "; ".join(
            f"{width}x{height}: {count_and_name(names, 2)}" for (width, height), names in sorted(sizes.items())[:6]
        )
        raise ValueError(
            f"images: {images.source} mixes {len(sizes)} sizes ({listed}); pass --resolution to bring them to one"
        )
    side = preparation.resolution
    size = (side, side) if side is not None else next(iter(sizes))
    return Inspection(size, {kind: len(names) for kind, names in sorted(other.items())})


def refuse_corrupt(corrupt: Sequence[str], images: ImageSet) -> None:
    """Raise if there are any corrupt pictures."""
    if corrupt:
        raise ValueError(
            f"images: {count_and_name(corrupt)} of {len(images)} in {images.source} cannot be decoded; remove or"
            " replace them"
        )


@dataclass(frozen=True)
class DecodedBatch:
    """Pictures decoded together.

    Attributes:
        indices: Their indices in the set.
        pixels: uint8 `(batch, 3, height, width)`; a corrupt picture is black.
        digests: uint8 `(batch, 32)`, SHA-256 of each picture's size and prepared pixels.
        corrupt: Names of those that could not be decoded.
    """

    indices: list[int]
    pixels: torch.Tensor
    digests: torch.Tensor
    corrupt: list[str]


def decode(images: ImageSet, indices: Sequence[int], preparation: Preparation, size: tuple[int, int]) -> DecodedBatch:
    """Decode some pictures of a set; `size` is (width, height) of all of them once prepared."""
    pixels, digests, corrupt = [], [], []
    for i in indices:
        try:
            with images.open(i) as image:
                prepared = preparation(image)
        except (OSError, SyntaxError, ValueError):
            corrupt.append(images.names[i])
            prepared = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        pixels.append(prepared)
        digests.append(np.frombuffer(pixel_digest(prepared), dtype=np.uint8))
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return DecodedBatch(list(indices), batch, torch.from_numpy(np.stack(digests)), corrupt)


def pixel_digest(pixels: np.ndarray) -> bytes:
    """SHA-256 of one picture's size and pixels, the same for a PNG, an array or a table that hold the same."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()


def batches(count: int, size: int) -> list[range]:
    """The numbers below `count` in ranges of `size`, the last of which may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def decoded_batches(images: ImageSet, preparation: Preparation, size: int) -> Iterator[DecodedBatch]:
    """All pictures of an inspected set in batches of `size`, as `decode_ahead` decodes them."""
    return decode_ahead(images, batches(len(images), size), preparation, inspect_images(images, preparation).size)


def decode_ahead(
    images: ImageSet, parts: Sequence[Sequence[int]], preparation: Preparation, size: tuple[int, int]
) -> Iterator[DecodedBatch]:
    """Decode batch after batch, one ahead of the caller, so that a network is not kept waiting."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = deque(pool.submit(decode, images, part, preparation, size) for part in parts[:2])
        for following in range(2, len(parts) + 2):
            if waiting:
                decoded = waiting.popleft().result()
                waiting.extend(pool.submit(decode, images, part, preparation, size) for part in parts[following:][:1])
                yield decoded
