"""How the state of a UNet becomes tensors on its layers, and in its weights where an adapter is fused."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from brickwork.adapters.comfyui.names import module_path
from brickwork.adapters.resadapter.base_norms import base_layer
from brickwork.adapters.resadapter.layer import adapt, is_adaptable
from brickwork.adapters.resadapter.state import Fused, Loaded, State

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

LayerTensors = tuple[torch.Tensor, torch.Tensor] | None


def adaptable_shapes(unet: nn.Module) -> dict[str, tuple[int, ...]]:
    """The UNet's own down- and upsampler convolutions and ResNet norms, as `check_fits` takes them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, _ in unet.named_modules():
        if module_path(name) != name:
            continue
        module = base_layer(unet, name)
        if not is_adaptable(module) or module.weight is None:
            raise ValueError(
                f"{name} is a {type(module).__name__}; a ResAdapter works on torch's Conv2d and GroupNorm"
            )
        if isinstance(module, nn.Conv2d):
            shapes[name] = (module.out_channels, module.in_channels)
        else:
            shapes |= {f"{name}.{part}": (module.num_channels,) for part in ("weight", "bias")}
    if not shapes:
        raise ValueError(f"this {type(unet).__name__} has no down- or upsampler convolutions and no ResNet norms")
    return shapes


def layer_tensors(unet: nn.Module, state: State) -> Iterator[tuple[nn.Module, LayerTensors]]:
    """Each layer that can be adapted, and the sum of all acting adapters for it at their strengths, on the CPU."""
    active = state.acting()
    for name in adaptable_shapes(unet):
        path = name.removesuffix(".weight")
        if path.endswith("conv"):
            yield base_layer(unet, path), _conv_tensors(path, active)
        elif path != name:
            yield base_layer(unet, path), _norm_tensors(path, active)


@torch.inference_mode(False)
@torch.no_grad()
def refresh(unet: nn.Module, state: State) -> None:
    """Bring every layer in line with a state."""
    for module, tensors in layer_tensors(unet, state):
        adapt(module, tensors, ready=bool(state.blocks))


@torch.inference_mode(False)
@torch.no_grad()
def write(unet: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Write tensors over the UNet's own weights."""
    for key, value in weights.items():
        own_float(unet, key).copy_(value)


def _conv_tensors(path: str, active: list[Loaded]) -> LayerTensors:
    """All low-rank pairs side by side, (ranks, in, 3, 3) and (out, ranks, 1, 1), with the strengths in the second."""
    pairs = [(loaded.adapter.convs[path], loaded.strengths()[0]) for loaded in active if path in loaded.adapter.convs]
    pairs = [(pair, strength) for pair, strength in pairs if strength != 0]
    if not pairs:
        return None
    down = torch.cat([pair.down.float() for pair, _ in pairs])
    up = torch.cat([pair.up.float() * (pair.factor * strength) for pair, strength in pairs], dim=1)
    return down, up


def _norm_tensors(path: str, active: list[Loaded]) -> LayerTensors:
    sums = []
    for key in (f"{path}.weight", f"{path}.bias"):
        terms = [
            loaded.deltas[key] * loaded.strengths()[1]
            for loaded in active
            if key in loaded.deltas and loaded.strengths()[1] != 0
        ]
        if not terms:
            return None
        sums.append(sum(terms).float())
    return tuple(sums)


@torch.inference_mode(False)
@torch.no_grad()
def fused_weights(unet: nn.Module, name: str, loaded: Loaded, now: Mapping[str, torch.Tensor]) -> Fused:
    """What fusing an adapter would write, and the record that undoes it; nothing is written.

    Args:
        unet: the network.
        name: of the adapter.
        loaded: the adapter.
        now: weights that are to be written first, by key; taken over, and added to with what this fusing writes.
    """
    lora, norm = loaded.strengths()
    kept, stamps = {}, {}
    strengths = {f"{path}.weight": lora for path in loaded.adapter.convs} | dict.fromkeys(loaded.deltas, norm)
    for key, strength in strengths.items():
        if strength == 0:
            continue
        kept[key] = now[key] if key in now else own_float(unet, key).detach().to("cpu", copy=True)
        path = key.removesuffix(".weight")
        if path in loaded.adapter.convs:
            new = kept[key].float() + loaded.adapter.convs[path].delta() * strength
        else:
            new = kept[key].double() + loaded.deltas[key] * strength
        now[key] = new.to(kept[key].dtype)
        stamps[key] = _stamp(now[key])
    return Fused(name, kept, stamps)


def unfused_weights(unet: nn.Module, records: tuple[Fused, ...]) -> dict[str, torch.Tensor]:
    """What undoing the last few fusings would write, once it is sure that nothing has changed what they wrote."""
    restored: dict[str, torch.Tensor] = {}
    for record in reversed(records):
        for key, kept in record.kept.items():
            now = restored[key] if key in restored else own_float(unet, key)
            if _stamp(now) != record.stamps[key]:
                raise ValueError(
                    f"cannot unfuse {record.name!r}: weights such as {key!r} have changed since (another LoRA fused "
                    "or unfused, or another type). Undo that first: the last fused comes off first"
                )
            restored[key] = kept
    return restored


def own_float(unet: nn.Module, key: str) -> torch.Tensor:
    """A weight that can be written to; a `ValueError` where it is elsewhere or no ordinary float."""
    path, _, part = key.rpartition(".")
    tensor = getattr(base_layer(unet, path), part).data
    if tensor.device.type == "meta" or tensor.dtype not in _FLOATS:
        state = "is offloaded" if tensor.device.type == "meta" else f"is stored as {tensor.dtype}"
        raise ValueError(
            f"{key} {state}, so nothing can be fused into it: fuse before offloading or layerwise casting"
        )
    return tensor


def _stamp(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return f"{tensor.dtype} {hashlib.blake2b(data).hexdigest()}"
