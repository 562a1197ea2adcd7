"""`convert_resadapter`: a ResAdapter from any form to any other; as a command, `brickwork convert resadapter`."""

import dataclasses
from pathlib import Path

import torch

from brickwork.adapters.comfyui.reading import ResAdapterWeights, read_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.adapters.resadapter import formats
from brickwork.adapters.resadapter.base_norms import base_norms_for
from brickwork.errors import one_of

NORM_TYPES = {"float64": torch.float64, "float32": torch.float32}


def convert_resadapter(
    src: str | Path,
    dst: str | Path,
    *,
    to: str,
    base_model=None,
    base_options: dict[str, str] | None = None,
    naming: str | None = None,
    norm_keys: str | None = None,
    norm_type: str = "float64",
    text_width: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Writes a ResAdapter in another form, without loss: converted back, every tensor is the same bit for bit.

    Args:
        src: a file, an authors' folder, or a repository on the Hub, as for `load_resadapter`.
        dst: a folder for `to="official"`, a path ending in .safetensors otherwise.
        to: "official" (the authors' two files), "diffusers" (a LoRA file for stock `load_lora_weights`, the norms in a
            second file beside it) or "comfyui" (one file for the LoRA loaders of ComfyUI, Forge and A1111).
        base_model: the model the adapter was trained on; needed between absolute norms and the differences of
            "comfyui". A hub id, a folder, a single-file checkpoint or a loaded model: see `read_base_norms`.
        base_options: of a base on the hub: `revision`, `variant` and `token`.
        naming: module names of the "comfyui" form, "diffusers" or "compvis"; None takes what every program reads
            rightly: compvis for SDXL, diffusers otherwise.
        norm_keys: names of the "comfyui" form's norms: "norm" (LyCORIS's, the default) or "diff", which
            stable-diffusion.cpp takes too.
        norm_type: of the differences: "float64" is exact on the way back; "float32" is not, but Apple's MPS takes it.
        text_width: also write zeros into the "comfyui" form that say how wide the text is, by which InvokeAI tells the
            family; they change nothing anywhere.
        overwrite: replace files that exist.

    Returns:
        The files written.

    Raises:
        ValueError: an adapter or base that cannot be read or do not belong together, or a file in the way.
    """
    one_of("to", to, formats.FORMS)
    dtype = one_of("norm_type", norm_type, NORM_TYPES)
    adapter = with_stated_facts(read_adapter(local_adapter(src, "src")))
    if adapter.differences and to == "comfyui":
        norms = {key: value.to(dtype) for key, value in adapter.norms.items()}
        adapter = dataclasses.replace(adapter, norms=norms)
    if adapter.norms and adapter.differences != (to == "comfyui"):
        if base_model is None:
            raise ValueError(
                f"to={to!r} needs base_model, the model {adapter.source} was trained on: its norms are "
                f"{'differences' if adapter.differences else 'absolute values'}, and the other kind is wanted"
            )
        base = base_norms_for(adapter, base_model, **base_options or {})
        differ = adapter.differences
        adapter = formats.to_absolute(adapter, base) if differ else formats.to_differences(adapter, base, dtype)
    return formats.write_adapter(
        adapter, dst, to, naming=naming, norm_keys=norm_keys, text_width=text_width, overwrite=overwrite
    )


def with_stated_facts(adapter: ResAdapterWeights) -> ResAdapterWeights:
    """The adapter with what can be told of it (family, rank, sizes) noted in its information, if not there yet."""
    families, sizes = adapter.families(), adapter.training_range()
    ranks = sorted({pair.rank for pair in adapter.convs.values()})
    facts = {"family": families[0] if len(families) == 1 else None, "rank": ranks[0] if len(ranks) == 1 else None}
    if sizes is not None:
        facts["range"] = {"min_size": sizes.min_size, "max_size": sizes.max_size, "max_ratio": sizes.max_ratio}
    stated = {key: value for key, value in facts.items() if value is not None} | adapter.info
    return dataclasses.replace(adapter, info=stated)
