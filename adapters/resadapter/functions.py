"""ResAdapter on diffusers pipelines: load, scale, switch, fuse, save, unload.

One adapter is a LoRA on the UNet's down- and upsampler convolutions and a change of its ResNet norms, under one
strength: a norm's effective value is its own plus the sum over adapters of strength x (adapter's - reference's). The
base's tensors are never written to (except by fusing, which keeps copies), so everything can be undone bit for bit, in
any order and whatever other LoRAs come and go. Each function does all of its work or, whatever interrupts it, none.
Paper: arXiv 2403.02084.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from brickwork.adapters.base import AUTO, checked_scale
from brickwork.adapters.comfyui.names import FAMILIES
from brickwork.adapters.comfyui.reading import ResAdapterWeights, check_fits, read_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.adapters.resadapter import formats
from brickwork.adapters.resadapter.base_norms import base_norms_for, inner_unet, own_norm, read_base_norms
from brickwork.adapters.resadapter.inject import adaptable_shapes, fused_weights, unfused_weights
from brickwork.adapters.resadapter.state import Fused, Loaded
from brickwork.adapters.resadapter.transaction import (
    commit,
    fused_stack,
    loaded_adapters,
    state_of,
    strengths_in_thread,
)
from brickwork.errors import one_of

NORM_MODES = ("replace", "delta")
_CROSS_ATTENTION = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


def load_resadapter(
    pipe_or_unet,
    source: str | Path,
    adapter_name: str = "res",
    scale: float | str = 1.0,
    norm_mode: str = "replace",
    base_model=None,
) -> None:
    """Adds a ResAdapter to any StableDiffusion or StableDiffusionXL pipeline of diffusers, or to a bare UNet.

    Args:
        source: the authors' folder, a file in any form `convert_resadapter` writes, or a repository on the Hub with an
            optional folder in it (`jiaxiangc/res-adapter/resadapter_v2_sd1.5`).
        adapter_name: what to call it; several may be loaded at once.
        scale: strength of LoRA and norms together, 1.0 for the authors' full effect; "auto" sets it at every call from
            the size asked for (1.0 up to the base's training size, falling to 0.3 at twice that) and warns outside
            the sizes the adapter was trained for.
        norm_mode: "replace" moves the norms from the model's own towards the adapter's absolute values, as the authors
            do; "delta" adds the difference between the adapter's norms and `base_model`'s, which keeps what a
            personalised model learnt. A file that holds differences adds them in both modes, unless `base_model` is
            given with "replace".
        base_model: the model the adapter was trained on; see `read_base_norms` for what it may be.

    Raises:
        ValueError: an adapter that cannot be read or does not fit, a name in use, or an argument out of range. The
            pipeline is then exactly as it was.
    """
    unet = inner_unet(pipe_or_unet)
    adapters = loaded_adapters(unet)
    if adapter_name in adapters:
        raise ValueError(f"adapter_name={adapter_name!r} is in use: unload it first, or choose another name")
    one_of("norm_mode", norm_mode, NORM_MODES)
    scale = _scale_for(unet, "scale", scale)
    adapter = read_adapter(local_adapter(source))
    stated, family = adapter.info.get("family"), family_of(unet)
    note = f" of {next(one.title for one in FAMILIES if one.key == family)}" if family else ""
    check_fits(adapter, adaptable_shapes(unet), f"this {type(unet).__name__}{note}")
    if stated and family and stated != family:
        raise ValueError(f"{adapter.source} states that it is for {stated}, but this UNet is {family}")
    reference = _reference(adapter, unet, norm_mode, base_model)
    deltas = {
        key: value.double() - (reference[key].double() if reference else 0.0) for key, value in adapter.norms.items()
    }
    if adapter.differences and reference:  # absolute values again, then the difference from the model's own norms
        absolute = formats.to_absolute(adapter, read_base_norms(base_model, list(adapter.norms)))
        deltas = {key: value.double() - reference[key].double() for key, value in absolute.norms.items()}
    loaded = Loaded(adapter, reference, deltas, scale, scale)
    _set(pipe_or_unet, {adapter_name: loaded})


def set_resadapter_scale(
    pipe_or_unet,
    scale: float | str | None = None,
    adapter_name: str | None = None,
    lora_scale: float | str | None = None,
    norm_scale: float | str | None = None,
) -> None:
    """Changes the strength of one adapter, or of all if none is named.

    Args:
        scale: of LoRA and norms together, a finite number or "auto"; None leaves alone what is not given otherwise.
        lora_scale, norm_scale: of one half alone; each goes before `scale`.
    """
    unet = inner_unet(pipe_or_unet)
    given = {"scale": scale, "lora_scale": lora_scale, "norm_scale": norm_scale}
    checked = {name: _scale_for(unet, name, value) for name, value in given.items() if value is not None}
    if not checked:
        raise ValueError("give scale, lora_scale or norm_scale")
    changed = {}
    for name, loaded in _unfused(unet, adapter_name, "change the scale of").items():
        lora = checked.get("lora_scale", checked.get("scale", loaded.lora))
        norm = checked.get("norm_scale", checked.get("scale", loaded.norm))
        changed[name] = replace(loaded, lora=lora, norm=norm)
    _set(pipe_or_unet, changed)


def resadapter_at(pipe_or_unet, scale: float, adapter_name: str | None = None):
    """A `with` block in whose thread alone an adapter, or all, have this strength: for threads on one pipeline.

    Raises:
        ValueError: on entering; an adapter that is off or fused, "auto" on another one, or a compiled UNet.
    """
    unet = inner_unet(pipe_or_unet)
    scale = checked_scale("scale", scale)
    adapters = _unfused(unet, adapter_name, "change the scale of")
    if off := [name for name, loaded in adapters.items() if not loaded.enabled]:
        raise ValueError(f"{', '.join(off)} is disabled: enable it first")
    return strengths_in_thread(pipe_or_unet, dict.fromkeys(adapters, scale))


def enable_resadapter(pipe_or_unet, adapter_name: str | None = None) -> None:
    """Switches an adapter, or all, on again with the strength it had."""
    _switch(pipe_or_unet, adapter_name, True)


def disable_resadapter(pipe_or_unet, adapter_name: str | None = None) -> None:
    """Switches an adapter, or all, off: outputs are the base's bit for bit."""
    _switch(pipe_or_unet, adapter_name, False)


def unload_resadapter(pipe_or_unet, adapter_name: str | None = None) -> None:
    """Takes an adapter, or all, off; with the last one gone, keys and tensors are the base's bit for bit.

    A fused one is unfused first, which is possible only in the reverse order of fusing.
    """
    unet = inner_unet(pipe_or_unet)
    state = state_of(unet)
    names = _names(unet, adapter_name) if adapter_name is not None else list(state.adapters)
    left, weights = state.fused, {}
    if any(record.name in names for record in left):
        left, weights = _without(unet, adapter_name)
    rest = {name: loaded for name, loaded in state.adapters.items() if name not in names}
    commit(pipe_or_unet, replace(state, adapters=rest, fused=left), weights)


def fuse_resadapter(pipe_or_unet, adapter_name: str | None = None) -> None:
    """Writes an adapter, or all enabled ones, into the weights at the present strength: no cost at run time.

    The tensors changed are kept on the CPU (SD 1.5 in half precision: 105 MB).

    Raises:
        ValueError: the adapter is off, fused already or set to "auto", or the weights are offloaded.
    """
    unet = inner_unet(pipe_or_unet)
    state = state_of(unet)
    fused = {record.name for record in state.fused}
    names = _names(unet, adapter_name)
    if adapter_name is None:
        names = [name for name in names if name not in fused and state.adapters[name].enabled]
    records, weights = list(state.fused), {}
    for name in names:
        loaded = state.adapters[name]
        if name in fused or not loaded.enabled or loaded.follows_size:
            why = "is fused already" if name in fused else "is disabled" if not loaded.enabled else "has scale='auto'"
            raise ValueError(f"cannot fuse {name!r}: it {why}; set a number, enable or unfuse it first")
        records.append(fused_weights(unet, name, loaded, weights))
    commit(pipe_or_unet, replace(state, fused=tuple(records)), weights)


def unfuse_resadapter(pipe_or_unet, adapter_name: str | None = None) -> None:
    """Puts back the weights from before fusing, bit for bit: of one adapter, or of all in reverse order.

    Raises:
        ValueError: it is not fused, another was fused after it, or the weights have changed since. Nothing is touched.
    """
    unet = inner_unet(pipe_or_unet)
    left, weights = _without(unet, adapter_name)
    commit(pipe_or_unet, replace(state_of(unet), fused=left), weights)


def _without(unet: nn.Module, adapter_name: str | None) -> tuple[tuple[Fused, ...], dict[str, torch.Tensor]]:
    """The records that stay, and the weights to write, where one adapter (the last fused) or all are unfused."""
    stack = fused_stack(unet)
    names = [record.name for record in stack]
    if adapter_name is not None:
        _names(unet, adapter_name)
        if adapter_name not in names:
            raise ValueError(f"{adapter_name!r} is not fused; fused are: {', '.join(names) or 'none'}")
        if names[-1] != adapter_name:
            raise ValueError(f"{names[-1]!r} was fused after {adapter_name!r}: unfuse that first")
    first = len(stack) - 1 if adapter_name is not None else 0
    return stack[:first], unfused_weights(unet, stack[first:])


def save_resadapter(
    pipe_or_unet,
    path: str | Path,
    adapter_name: str | None = None,
    *,
    to: str = "official",
    base_model=None,
    overwrite: bool = False,
) -> list[Path]:
    """Saves an adapter as it was loaded, at strength 1 and without anything of the base model.

    Args:
        path, to, overwrite: as for `convert_resadapter`. Norms become differences or absolute values as the form
            needs, by `base_model`, or else the norms the adapter was compared with when it was loaded.

    Returns:
        The files written.
    """
    unet = inner_unet(pipe_or_unet)
    names = _names(unet, adapter_name)
    if len(names) != 1:
        raise ValueError(f"adapter_name=None, but {len(names)} adapters are loaded: name one of {', '.join(names)}")
    loaded = loaded_adapters(unet)[names[0]]
    adapter = loaded.adapter
    if adapter.norms and adapter.differences != (to == "comfyui"):
        keys = list(adapter.norms)
        if base_model is not None:
            reference = read_base_norms(base_model, keys)
        else:
            reference = loaded.reference or {key: own_norm(unet, key) for key in keys}
        convert = formats.to_absolute if adapter.differences else formats.to_differences
        adapter = convert(adapter, reference)
    return formats.write_adapter(adapter, path, to, overwrite=overwrite)


@contextlib.contextmanager
def use_resadapter(pipe_or_unet, source: str | Path, adapter_name: str = "res", **kwargs) -> Iterator[None]:
    """Loads a ResAdapter for the length of a `with` block; arguments as for `load_resadapter`."""
    load_resadapter(pipe_or_unet, source, adapter_name, **kwargs)
    try:
        yield
    finally:
        if adapter_name in loaded_adapters(inner_unet(pipe_or_unet)):
            unload_resadapter(pipe_or_unet, adapter_name)


def _set(pipe_or_unet, changed: dict[str, Loaded]) -> None:
    state = state_of(inner_unet(pipe_or_unet))
    commit(pipe_or_unet, replace(state, adapters={**state.adapters, **changed}))


def _switch(pipe_or_unet, adapter_name: str | None, enabled: bool) -> None:
    adapters = _unfused(inner_unet(pipe_or_unet), adapter_name, "switch")
    _set(pipe_or_unet, {name: replace(loaded, enabled=enabled) for name, loaded in adapters.items()})


def loaded_as(unet: nn.Module, adapter_name: str) -> Loaded:
    """The adapter of this name; a `ValueError` that lists the names where there is none."""
    _names(unet, adapter_name)
    return loaded_adapters(unet)[adapter_name]


def _names(unet: nn.Module, adapter_name: str | None) -> list[str]:
    names = list(loaded_adapters(unet))
    if not names:
        raise ValueError("no ResAdapter is loaded: call load_resadapter first")
    if adapter_name is not None and adapter_name not in names:
        raise ValueError(f"adapter_name={adapter_name!r} is not loaded; loaded are: {', '.join(names)}")
    return names if adapter_name is None else [adapter_name]


def _unfused(unet: nn.Module, adapter_name: str | None, verb: str) -> dict[str, Loaded]:
    names = _names(unet, adapter_name)
    fused = [record.name for record in fused_stack(unet) if record.name in names]
    if fused:
        raise ValueError(f"cannot {verb} {', '.join(fused)} while fused: call unfuse_resadapter first")
    return {name: loaded_adapters(unet)[name] for name in names}


def _scale_for(unet: nn.Module, name: str, value: float | str) -> float | str:
    if isinstance(value, str) and value == AUTO and not getattr(unet.config, "sample_size", None):
        raise ValueError(
            f"{name}='auto' needs the UNet's config.sample_size, the latent size it was trained at: set it"
        )
    return checked_scale(name, value, auto=True)


def family_of(unet: nn.Module) -> str | None:
    """The Stable Diffusion family (`sd1`, `sd2`, `sdxl`) of a UNet of that family's own width, or None."""
    config = unet.config
    key = _CROSS_ATTENTION.get(config.cross_attention_dim) if hasattr(config, "cross_attention_dim") else None
    widths = {family.key: family.channels for family in FAMILIES}
    return key if widths.get(key) == tuple(getattr(config, "block_out_channels", ())) else None


def _reference(
    adapter: ResAdapterWeights, unet: nn.Module, norm_mode: str, base_model
) -> dict[str, torch.Tensor] | None:
    """The norms that the adapter's are compared with; None where it holds differences already."""
    if base_model is not None and adapter.norms and (norm_mode == "delta") == adapter.differences:
        kind = "differences" if adapter.differences else "absolute norms"
        other = "replace" if norm_mode == "delta" else "delta"
        raise ValueError(
            f"base_model has no part in norm_mode={norm_mode!r} with a file of {kind} ({adapter.source}): leave it "
            f"out, or set norm_mode={other!r}"
        )
    if norm_mode == "delta" and not adapter.differences and adapter.norms:
        if base_model is None:
            raise ValueError(
                f"norm_mode='delta' needs base_model: {adapter.source} holds absolute norms, and only the model it "
                "was trained on tells how far it moved them"
            )
        return base_norms_for(adapter, base_model)
    elif adapter.norms and (not adapter.differences or (norm_mode == "replace" and base_model is not None)):
        return {key: own_norm(unet, key) for key in adapter.norms}
    return None
