"""Texts as a network reads them, by the tokenizer and the text encoder of Stable Diffusion 1.x and 2.x."""

import warnings
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
