"""Texts as a network reads them, by the tokenizers and text encoders of Stable Diffusion and its like."""

import warnings
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What `encode_prompt` returns, each followed by its negative, which stands for no caption; SD has the first alone.
NAMES = ("prompt_embeds", "pooled_prompt_embeds")


@torch.no_grad()
def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, texts: Sequence[str], device: torch.device
) -> torch.Tensor:
    """Texts => `(N, tokens, width)`, as `StableDiffusionPipeline.encode_prompt` has them; what is too long is cut."""
    longest = tokenizer.model_max_length
    read = tokenizer(list(texts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    ids = tokenizer(list(texts), truncation=False)["input_ids"]
    for text, one in zip(texts, ids):
        if len(one) > longest:
            warnings.warn(
                f"the prompt {text[:40]!r}… has {len(one)} tokens; {longest} of them are read.", stacklevel=2
            )
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    mask = read.attention_mask.to(device) if masked else None
    return text_encoder(read.input_ids.to(device), attention_mask=mask)[0]


def checked_prompts(name: str, given: str | Sequence[str] | None) -> list[str]:
    """One text, several, or none, as a list; a `ValueError` for anything else."""
    if not isinstance(given, (str, list, tuple, type(None))):
        raise ValueError(f"`{name}` is {given!r}; give one text, or a list of texts.")
    texts = [given] if isinstance(given, str) else list(given or [])
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"`{name}` has a {type(wrong[0]).__name__}; give one text, or a list of texts.")
    return texts


@torch.no_grad()
def encode_captions(
    pipeline, captions: list[str], dtype: torch.dtype | None = None, negative: bool = False
) -> dict[str, torch.Tensor]:
    """What the pipeline's text encoders make of captions, on the CPU.

    Args:
        pipeline: a `StableDiffusionPipeline`, a `StableDiffusionXLPipeline`, or one with such an `encode_prompt`.
        captions: texts; the empty one is encoded like any other.
        dtype: of the result; the encoders' own if `None`.
        negative: give what stands for no caption instead.

    Returns:
        `prompt_embeds (N, tokens, width)` and, of SDXL, `pooled_prompt_embeds (N, width)`.
    """
    device = next(encoders_of(pipeline)[0].parameters()).device
    encoded = pipeline.encode_prompt(
        captions, device=device, num_images_per_prompt=1, do_classifier_free_guidance=negative
    )
    positive_and_negative = zip(NAMES, encoded[0::2], encoded[1::2])
    return {name: pair[negative].to("cpu", dtype) for name, *pair in positive_and_negative}


def encode_no_caption(pipeline, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """What the pipeline uses where there is no caption, `(1, …)`: the empty text's embedding, or SDXL's zeros."""
    return encode_captions(pipeline, [""], dtype, negative=True)


def encoders_of(pipeline) -> list[torch.nn.Module]:
    """The text encoders of a pipeline, in order.

    Raises:
        ValueError: for a pipeline without any.
    """
    encoders = numbered_parts(pipeline, "text_encoder")
    if not encoders:
        raise ValueError(f"`pipeline` is a {type(pipeline).__name__} without a text encoder; captions need one.")
    return encoders


def numbered_parts(pipeline, kind: str) -> list:
    """`tokenizer` => the pipeline's `tokenizer`, `tokenizer_2`, …, as far as it has them."""
    names = sorted(name for name in pipeline.components if name.startswith(kind))
    return [pipeline.components[name] for name in names if pipeline.components[name] is not None]
