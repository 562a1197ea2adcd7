"""What a ResAdapter's file says of itself, checked: our own JSON, PEFT's configuration, and what trainers note.

A file's metadata are text from a stranger: each value is looked at before anything goes by it, and one that is no
sense is a `ValueError` that names the file. This file runs inside ComfyUI too: see `names`.
"""

import json
import math

from .strength import TrainingRange

INFO_KEY = "brickwork.resadapter"  # our JSON in the safetensors header
PEFT_KEY = "lora_adapter_metadata"  # PEFT's LoraConfig, as diffusers writes it
KEPT_PREFIXES = ("ss_", "sshs_", "modelspec.")  # what kohya's trainer and other programs note
HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")

MAX_FACTOR = 1000.0  # alpha / rank beyond this is damage, not taste
MAX_RANK = 4096
_TYPES = ("float16", "bfloat16", "float32", "float64")
_LIMIT = 1_000_000  # characters of JSON
_OTHER_LORAS = ("use_dora", "use_rslora", "lora_bias", "megatron_config", "trainable_token_indices")


def read_info(file, metadata: dict[str, str]) -> dict:
    """Our own JSON, `{}` where there is none."""
    info = _json(file, metadata, INFO_KEY)
    wrong = _wrong(info)
    if wrong:
        raise ValueError(f"{file}: its {INFO_KEY!r} metadata cannot be read ({wrong})")
    return info


def kept(metadata: dict[str, str]) -> dict[str, str]:
    """The notes of trainers and of other programs, which conversion hands on; not hashes, which are of one file."""
    return {key: value for key, value in metadata.items() if key.startswith(KEPT_PREFIXES) and key not in HASH_KEYS}


def check_alpha(where: str, alpha: float, rank: int) -> None:
    """Raise unless alpha is above 0 and makes a factor that training can have meant."""
    if not (math.isfinite(alpha) and 0 < alpha / rank <= MAX_FACTOR):
        raise ValueError(
            f"{where} has alpha {alpha:g} at rank {rank}; need alpha above 0, up to {MAX_FACTOR:g} x rank"
        )


def peft_alphas(file, metadata: dict[str, str], ranks: dict[str, int]) -> dict[str, float]:
    """The alpha that PEFT's configuration gives each convolution, where it differs from its rank.

    Args:
        file: for messages.
        metadata: of the file.
        ranks: of the LoRA by path.
    """
    config = _json(file, metadata, PEFT_KEY)
    if "unet.r" in config or any(key.startswith("unet.") for key in config):
        config = {key.removeprefix("unet."): value for key, value in config.items() if key.startswith("unet.")}
    if not config:
        return {}
    for key in _OTHER_LORAS:
        if config.get(key):
            raise ValueError(f"{file}: its {PEFT_KEY!r} metadata say {key}; need a plain LoRA")
    alphas = {}
    for path, rank in ranks.items():
        stated = _number(file, "r", _by_path(file, config, "rank_pattern", path, config.get("r", rank)))
        if stated != rank:
            raise ValueError(f"{file}: its {PEFT_KEY!r} metadata give {path} rank {stated:g}, its tensors rank {rank}")
        given = _by_path(file, config, "alpha_pattern", path, config.get("lora_alpha", rank))
        alpha = _number(file, "lora_alpha", given)
        check_alpha(f"{file}: the LoRA of {path}", alpha, rank)
        if alpha != rank:
            alphas[path] = alpha
    return alphas


def _by_path(file, config: dict, name: str, path: str, otherwise):
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{file}: its {PEFT_KEY!r} metadata have {name!r} as {type(pattern).__name__}, need a table")
    found = [value for key, value in pattern.items() if path == key or path.endswith(f".{key}")]
    return found[0] if found else otherwise


def _number(file, name: str, value) -> float:
    if not _is_number(value):
        shown = repr(value)[:40] if isinstance(value, (float, str)) else type(value).__name__
        raise ValueError(f"{file}: its {PEFT_KEY!r} metadata have {name!r} as {shown}, need a finite number")
    return value


def _is_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e30  # false for NaN; and an int of a thousand digits would overflow later


def _json(file, metadata: dict[str, str], key: str) -> dict:
    text = metadata.get(key, "{}")
    try:
        if len(text) > _LIMIT:
            raise ValueError(f"{len(text)} characters")
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not a table")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its {key!r} metadata cannot be read ({error})") from None
    return value


def _wrong(info: dict) -> str | None:
    """What is wrong with our JSON, or None."""
    for key in ("family", "base_norms_sha256", "kind", "base", "trainer"):
        if not isinstance(info.get(key, ""), str):
            return f"{key} is no text"
    if info.get("norm_types", "float32") not in _TYPES:
        return "norm_types"
    alphas = info.get("alphas", {})
    if not isinstance(alphas, dict):
        return "alphas"
    for entry in alphas.values():
        if not isinstance(entry, list) or len(entry) != 2 or not _is_number(entry[0]) or entry[1] not in _TYPES:
            return "alphas"
    if "range" in info:
        stated = info["range"]
        if not isinstance(stated, dict) or not all(map(_is_number, stated.values())):
            return "range"
        try:
            TrainingRange(**stated)  # its own checks
        except (TypeError, ValueError) as error:
            return str(error)
    return None
