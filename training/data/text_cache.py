"""Captions as a pipeline's text encoders see them, computed once (see `brickwork.training.data.cache`).

Each distinct caption is encoded once, in the way the pipeline itself does it: whatever `encode_prompt` returns is kept
by name, so that Stable Diffusion's one encoder and SDXL's two, with the pooled embedding, need no case of their own.
Kept beside them is what the pipeline hands its network in the place of a caption ("no caption"), for dropout.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from brickwork.errors import explained
from brickwork.eval.sets.tables import captions_in, find_column
from brickwork.files import digest
from brickwork.hub import without_variant
from brickwork.pipelines.prompts import encode_captions, encode_no_caption, encoders_of, numbered_parts
from brickwork.training.data.cache import FIX, TensorCache, build_cache, network_fingerprint
from brickwork.training.data.images import LabelledImages


def load_text_encoders(source: str, **options: str):
    """A pipeline from a folder or the hub with its tokenizers and text encoders alone.

    Args:
        source: folder or name.
        options: of the hub, `revision`, `variant` and `token`.

    Raises:
        ValueError: where there is no such pipeline.
    """
    from diffusers import DiffusionPipeline

    with explained(f"`pipeline` is {source!r}, which holds no pipeline with text encoders"):
        names = DiffusionPipeline.load_config(source, **without_variant(options))
        others = {
            name: None
            for name, part in names.items()
            if isinstance(part, list) and not name.startswith(("tokenizer", "text_encoder"))
        }
        return DiffusionPipeline.from_pretrained(source, **others, **options)


def captions_of(images: LabelledImages, column: str) -> list[str]:
    """The captions of a data set's rows; rows without one have the empty text.

    Raises:
        ValueError: for a column that is not there, or holds something else than text.
    """
    captions = captions_in(images.table, find_column(images.table, column, "data.caption_column"))
    return [caption or "" for caption in captions]


def text_fingerprint(pipeline, captions: Sequence[str], dtype: torch.dtype | None = None) -> dict[str, str]:
    """What cached embeddings depend on: the captions row by row, their tokens, the encoders' weights, the dtype.

    Tokenizers are judged by the tokens that they make of these captions.
    """
    distinct = sorted(set(captions))
    tokens = [
        (
            tokenizer(distinct, truncation=True, max_length=tokenizer.model_max_length).input_ids,
            tokenizer.model_max_length,
        )
        for tokenizer in numbered_parts(pipeline, "tokenizer")
    ]
    encoders = encoders_of(pipeline)
    return {
        "captions": digest("\0".join(captions)),
        "tokenizer": digest(repr(tokens)),
        "text encoder": " ".join(map(network_fingerprint, encoders)),
        "dtype": str(dtype or encoders[0].dtype),
    }


def cache_texts(
    folder: str | Path,
    captions: Sequence[str],
    pipeline,
    dtype: torch.dtype | None = None,
    source: str = "",
    batch_size: int = 32,
    overwrite: bool = False,
) -> Path:
    """Write the embeddings of every distinct caption, and of no caption.

    Args:
        folder: of the cache.
        captions: one for each row of the data set; empty ones are allowed.
        pipeline: its text encoders and tokenizers are used, and nothing else of it.
        dtype: to store; the encoders' own if `None`.
        source: where the encoders came from.
        batch_size: captions encoded at once.
        overwrite: replace an earlier cache.
    """
    distinct = sorted(set(captions))
    nothing = encode_no_caption(pipeline, dtype)

    @lru_cache(maxsize=1)  # rows come in order
    def batch(number: int) -> dict[str, torch.Tensor]:
        first = number * batch_size
        return encode_captions(pipeline, distinct[first : first + batch_size], dtype)

    def embeddings(row: int) -> dict[str, torch.Tensor]:
        number, index = divmod(row - 1, batch_size)
        tensors, index = (batch(number), index) if row else (nothing, 0)
        return {name: tensor[index].clone() for name, tensor in tensors.items()}

    fingerprint = text_fingerprint(pipeline, captions, dtype)
    return build_cache(folder, 1 + len(distinct), embeddings, fingerprint, source, overwrite)


class CachedTexts:
    """The captions of a data set as embeddings.

    Args:
        folder: of the cache, written by `cache_texts`.
        captions: one for each row; must be those that the cache was made of.
        pipeline: the encoders and tokenizers, which must be those that made it; after this they are not needed.
        dtype: as it was cached.
        fix: how to have it made, for errors.

    Raises:
        ValueError: for a stale cache, naming what differs.
    """

    def __init__(
        self, folder: str | Path, captions: Sequence[str], pipeline, dtype: torch.dtype | None = None, fix: str = FIX
    ):
        self.cache = TensorCache(folder, text_fingerprint(pipeline, captions, dtype), fix)
        number = {caption: 1 + index for index, caption in enumerate(sorted(set(captions)))}
        self.entries = [number[caption] for caption in captions]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        """`prompt_embeds (tokens, width)` and, of SDXL, `pooled_prompt_embeds (width,)` of a row."""
        return self.cache[self.entries[row]]

    @property
    def no_caption(self) -> dict[str, torch.Tensor]:
        """The same, of what the pipeline uses where there is no caption."""
        return self.cache[0]
