"""Images with captions, in a shape that changes from step to step, for training on latents.

Pictures and captions are encoded as they come, or were encoded once: a cache holds the VAE's moments of every picture
in every shape of the run, and the embeddings of every caption.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch

from brickwork.errors import advice
from brickwork.eval.sets.tables import captions_in
from brickwork.files import digest
from brickwork.pipelines.latents import moments, pixels_per_latent
from brickwork.pipelines.stable_diffusion import is_xl, plain_time_ids
from brickwork.training.config.data import CaptionedDataConfig, ResolutionConfig
from brickwork.training.config.objective import LatentObjectiveConfig
from brickwork.training.data.buckets import (
    POSTERIOR,
    SAMPLE,
    SUBSTITUTE,
    Resolutions,
    enlargement,
    random_numbers,
    shapes_by_size,
)
from brickwork.training.data.cache import TensorCache, build_cache, network_fingerprint
from brickwork.training.data.images import BrokenImage, LabelledImages, load_table, to_unit_range
from brickwork.training.data.stream import TrainingStream
from brickwork.training.data.text_cache import CachedTexts, cache_texts

Shape = tuple[int, int]
_FIX = "remove that folder to have it made anew, or name another `data.cache`"  # the run itself makes these


class CaptionedImages:
    """The pictures of a data set that a run uses, with their captions and sizes.

    Args:
        data: which pictures.
        settings: the shapes of steps.
        step: what sides must be a multiple of (see `size_step`).
        seed: of the run.

    Attributes:
        images: the pictures; `shapes` and `buckets` matter with `resolution.ratios: data` alone.
        captions: one for each row. sizes: `(N, 2)` height and width of each picture.
        resolutions: the shapes of the run's steps.

    Raises:
        ValueError: for a data set without captions, sizes that the networks cannot take, pictures all too small.
    """

    def __init__(self, data: CaptionedDataConfig, settings: ResolutionConfig, step: int, seed: int = 0):
        self.own_ratios = settings.ratios == "data"
        if settings.step % step:
            raise ValueError(
                f"`resolution.step` is {settings.step}, but sides must be multiples of {step}, of the UNet's coarsest "
                "level; give a multiple of that, or 0."
            )
        step = settings.step or step
        by_size = shapes_by_size(settings.min_size, settings.max_size, settings.max_aspect, step)
        table = load_table(data.source, data.split)
        column = data.caption_column
        if column not in table.column_names:
            raise ValueError(
                f"`data.caption_column` is {column!r}, which the data set does not have; "
                f"{advice(column, table.column_names, 'its columns are')} A folder takes captions from files such as "
                '`NAME.txt` beside its pictures, or from a metadata.jsonl with "file_name" and "text".'
            )
        self.images = LabelledImages.of(
            data, table, settings.max_size, step if self.own_ratios else 0, settings.max_aspect
        )
        self.captions = [caption or "" for caption in captions_in(self.images.table, column)]
        if not any(self.captions):
            raise ValueError(f"`data.caption_column` is {column!r}, in which every row is empty; give captions.")
        self.sizes = np.array([self._size(row) for row in range(len(self.images))])
        self.max_upscale = data.max_upscale
        resolutions = Resolutions(by_size, seed)
        unusable = {shape for shape in resolutions.shapes if not len(self.usable(shape))}
        self.resolutions = resolutions.without(unusable, data.max_upscale)

    def _size(self, row: int) -> tuple[int, int]:
        try:
            return self.images.natural_size(row)
        except BrokenImage:  # counts as large, so that it is drawn, named, and replaced
            return 2**20, 2**20

    def fits(self, row: int, shape: Shape) -> bool:
        """Whether a picture fills a shape without being enlarged too much."""
        return bool(enlargement(self.sizes[row : row + 1], shape)[0] <= self.max_upscale + 1e-9)

    def usable(self, shape: Shape) -> np.ndarray:
        """The rows whose pictures fill a shape without being enlarged too much."""
        return np.flatnonzero(enlargement(self.sizes, shape) <= self.max_upscale + 1e-9)

    def pixels(self, row: int, shape: Shape) -> torch.Tensor:
        """The largest centred part of that aspect ratio, resized once: `(3, H, W)` in [-1, 1]."""
        return torch.from_numpy(to_unit_range(self.images.picture(row, shape)))

    def own_time_ids(self, row: int, shape: Shape) -> torch.Tensor:
        """SDXL's size conditions `(6,)`: the picture's size, the crop's top and left once resized, and the shape."""
        (height, width), scale = self.sizes[row], enlargement(self.sizes[row : row + 1], shape)[0]
        top, left = (height * scale - shape[0]) / 2, (width * scale - shape[1]) / 2
        return torch.tensor([height, width, round(top), round(left), *shape], dtype=torch.float32)

    @property
    def fingerprint(self) -> str:
        """A digest of rows, groups and captions."""
        return digest(self.images.fingerprint, json.dumps(self.captions), self.sizes.tobytes())


class LatentCache:
    """The VAE's moments of the pictures in every shape of a run, and the embeddings of captions, in one folder.

    Args:
        folder: of the cache; what is missing there is made by `build`.
        images: what it is made of.
        pipeline: the networks that make it, in the precision in which they do.
    """

    def __init__(self, folder: str | Path, images: CaptionedImages, pipeline):
        self.folder, self.images, self.pipeline = Path(folder), images, pipeline
        self.dtype = pipeline.vae.dtype
        data = f"{images.images.fingerprint} {images.images.content_digest()}"
        self._common = {"data": data, "network": network_fingerprint(pipeline.vae), "dtype": str(self.dtype)}
        self._shapes: dict[Shape, tuple[TensorCache, dict[int, int]]] = {}
        self.texts: CachedTexts | None = None

    def _fingerprint(self, shape: Shape) -> dict[str, str]:
        crop = f"centred, enlarged up to {self.images.max_upscale:g}"
        return self._common | {"size": f"{shape[0]}×{shape[1]}", "crop": crop}

    def _latents(self, shape: Shape) -> Path:
        return self.folder / f"latents-{shape[0]}x{shape[1]}"

    def build(self, part: int = 0, parts: int = 1) -> None:
        """Make what is missing, or this process's part of it. What is there is left as it is, and judged by `open`."""
        for shape in self.images.resolutions.shapes[part::parts]:
            if not self._latents(shape).exists():
                rows = self.images.usable(shape)
                compute = partial(self._moments, shape, rows)
                build_cache(self._latents(shape), len(rows), compute, self._fingerprint(shape))
        if part == 0 and not (self.folder / "captions").exists():
            cache_texts(self.folder / "captions", self.images.captions, self.pipeline)

    def _moments(self, shape: Shape, rows: np.ndarray, number: int) -> dict[str, torch.Tensor]:
        row = int(rows[number])
        try:
            pixels = self.images.pixels(row, shape)[None].to(self.pipeline.vae.device)
        except BrokenImage as error:
            raise ValueError(
                f"Row {row} of the data set cannot be read ({error}), so it cannot be cached; repair or remove it "
                "(`brickwork data check` names all), or leave `data.cache` out."
            ) from None
        mean, logvar = moments(self.pipeline.vae, pixels)
        return {"mean": mean[0].to("cpu", self.dtype), "logvar": logvar[0].to("cpu", self.dtype)}

    def open(self) -> None:
        """Check and open everything.

        Raises:
            ValueError: for a cache that was made of something else, naming the folder and what differs.
        """
        for shape in self.images.resolutions.shapes:
            cache = TensorCache(self._latents(shape), self._fingerprint(shape), _FIX)
            self._shapes[shape] = cache, {int(row): n for n, row in enumerate(self.images.usable(shape))}
        self.texts = CachedTexts(self.folder / "captions", self.images.captions, self.pipeline, fix=_FIX)
        self.pipeline = None  # workers need no networks

    def moments(self, row: int, shape: Shape) -> dict[str, torch.Tensor]:
        """`mean` and `logvar`, `(C, h, w)`, float32."""
        cache, numbers = self._shapes[shape]
        return {name: tensor.float() for name, tensor in cache[numbers[row]].items()}


class CaptionedStream(TrainingStream):
    """Samples by position for `training.tasks.latent.encoding.EncodeFirst`; every step has its shape.

    A row whose picture would be enlarged too much in the step's shape is exchanged for one that is not.

    Args:
        images: the data set, with the shapes.
        rows: row numbers to draw from.
        objective: how often captions are hidden, and what is added to the noise.
        pipeline: for the shape of its latents and whether it wants size conditions.
        batch_size: images of a step.
        cache: opened, or `None` to hand out pixels and numbers of captions.
    """

    def __init__(
        self,
        images: CaptionedImages,
        rows: np.ndarray,
        objective: LatentObjectiveConfig,
        pipeline,
        batch_size: int,
        cache: LatentCache | None = None,
    ):
        super().__init__(images.images, rows, images.resolutions.seed, batch_size=batch_size)
        self.captioned, self.cache, self.batch_size, self.objective = images, cache, batch_size, objective
        self.channels, self.factor = pipeline.vae.config.latent_channels, pixels_per_latent(pipeline.vae)
        self.wants_sizes, self.own_sizes = is_xl(pipeline), objective.size_conditions == "picture"
        self._drawn = np.zeros(len(images.images), dtype=bool)
        self._drawn[rows] = True
        empty = {shape for shape in images.resolutions.shapes if not len(self._usable(shape))}
        self.resolutions = images.resolutions.without(empty, images.max_upscale)

    def _usable(self, shape: Shape) -> np.ndarray:
        rows = self.captioned.usable(shape)
        return rows[self._drawn[rows]]

    @property
    def fingerprint(self) -> str:
        """Of the data (see `CaptionedImages.fingerprint`)."""
        return self.captioned.fingerprint

    def shape(self, position: int) -> Shape:
        """Height and width in pixels of a position, one for all of its step."""
        step = position // self.batch_size
        like = None
        if self.captioned.own_ratios:
            like = self.images.shapes[self.images.buckets[self.row(step * self.batch_size)]]
        return self.resolutions(step, like)

    def _row(self, position: int) -> int:
        row, shape = self.row(position), self.shape(position)
        if self.captioned.fits(row, shape):
            return row
        return int(random_numbers(self.seed, SUBSTITUTE, position).choice(self._replacements(row, position)))

    def _replacements(self, row: int, position: int) -> np.ndarray:
        usable = self._usable(self.shape(position))
        alike = usable[self.images.buckets[usable] == self.images.buckets[row]]
        return alike if len(alike) else usable

    def _sample(self, row: int, position: int) -> tuple:
        shape = self.shape(position)
        if self.cache is None:
            return row, {"pixels": self.captioned.pixels(row, shape)}
        return row, self.cache.moments(row, shape)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """`row`; `pixels`, or `mean` and `logvar`; `posterior`, `noise`, `level`; `caption`, or embeddings;
        `time_ids` of SDXL; `broken` as in `TrainingStream`."""
        row, picture, broken = self._readable(position)
        shape = self.shape(position)
        latent = (self.channels, shape[0] // self.factor, shape[1] // self.factor)
        random, posterior = (random_numbers(self.seed, stream, position) for stream in (SAMPLE, POSTERIOR))
        level, captioned = random.standard_normal(), random.random() >= self.objective.caption_dropout
        captioned = captioned and bool(self.captioned.captions[row])  # none is the null condition
        noise = random.standard_normal(latent, dtype=np.float32)
        noise += self.objective.noise_offset * random.standard_normal((latent[0], 1, 1), dtype=np.float32)
        sample = picture | {
            "row": torch.tensor(row),
            "posterior": torch.from_numpy(posterior.standard_normal(latent, dtype=np.float32)),
            "noise": torch.from_numpy(noise),
            "level": torch.tensor(level, dtype=torch.float32),
            "broken": torch.tensor(broken),
        }
        if self.cache is None:
            sample["caption"] = torch.tensor(row if captioned else -1)
        else:
            sample |= self.cache.texts[row] if captioned else self.cache.texts.no_caption
        if self.wants_sizes:
            sample["time_ids"] = self.captioned.own_time_ids(row, shape) if self.own_sizes else plain_time_ids(*shape)
        return sample
