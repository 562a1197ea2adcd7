"""What a UNet remembers of the ResAdapters on it, and how that becomes tensors on its layers.

The state hangs on the UNet as a plain attribute, so that it is copied and goes away with it; it holds names and
tensors, never modules, so that wrappers put around a layer later do not matter.
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from brickwork.adapters.comfyui.names import module_path
from brickwork.adapters.comfyui.reading import Adapter
from brickwork.adapters.comfyui.strength import auto_strength, range_warning
from brickwork.adapters.resadapter.base_norms import FUSED_ATTRIBUTE, base_layer, inner_unet
from brickwork.adapters.resadapter.layer import adapt, is_adaptable

AUTO = "auto"
_STATE_ATTRIBUTE = "_resadapters"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Loaded:
    """One adapter on one UNet.

    reference: the norms its own are compared with, or None where the file holds differences.
    deltas: float64 difference of each norm tensor from the reference, on the CPU.
    lora, norm: the strength of each half, a number or "auto".
    automatic: what "auto" stands for since the last size seen.
    """

    adapter: Adapter
    reference: dict[str, torch.Tensor] | None
    deltas: dict[str, torch.Tensor]
    lora: float | str
    norm: float | str
    automatic: float = 1.0
    enabled: bool = True

    def strengths(self) -> tuple[float, float]:
        """The numbers in force for LoRA and norms."""
        return tuple(self.automatic if scale == AUTO else scale for scale in (self.lora, self.norm))


@dataclass
class Fused:
    """What one fusing kept: each tensor it changed, as it was, and a stamp of what it wrote."""

    name: str
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    stamps: dict[str, str] = field(default_factory=dict)


def loaded_adapters(unet: nn.Module) -> dict[str, Loaded]:
    """The adapters on this UNet by name, in the order they were loaded; empty if none is."""
    return getattr(unet, _STATE_ATTRIBUTE, {})


def fused_stack(unet: nn.Module) -> list[Fused]:
    """The fused adapters' records, oldest first."""
    return getattr(unet, FUSED_ATTRIBUTE, [])


def remember(unet: nn.Module, adapters: dict[str, Loaded], fused: list[Fused]) -> None:
    """Sets the UNet's state; empty parts leave no attribute behind."""
    for name, value in ((_STATE_ATTRIBUTE, adapters), (FUSED_ATTRIBUTE, fused)):
        if value:
            setattr(unet, name, value)
        elif name in vars(unet):
            delattr(unet, name)


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


@torch.inference_mode(False)
@torch.no_grad()
def refresh(unet: nn.Module) -> None:
    """Brings every layer in line with the state: the sum of all enabled, unfused adapters at their strengths."""
    gone = {record.name for record in fused_stack(unet)}
    # fused ones act through the weights
    active = [loaded for name, loaded in loaded_adapters(unet).items() if loaded.enabled and name not in gone]
    for name in adaptable_shapes(unet):
        path = name.removesuffix(".weight")
        if path.endswith("conv"):
            adapt(base_layer(unet, path), _conv_tensors(path, active))
        elif path != name:
            adapt(base_layer(unet, path), _norm_tensors(path, active))


def _conv_tensors(path: str, active: list[Loaded]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """All low-rank pairs side by side, (ranks, in, 3, 3) and (out, ranks, 1, 1), with the strengths in the second."""
    pairs = [(loaded.adapter.convs[path], loaded.strengths()[0]) for loaded in active if path in loaded.adapter.convs]
    pairs = [(pair, strength) for pair, strength in pairs if strength != 0]
    if not pairs:
        return None
    down = torch.cat([pair.down.float() for pair, _ in pairs])
    up = torch.cat([pair.up.float() * (pair.factor * strength) for pair, strength in pairs], dim=1)
    return down, up


def _norm_tensors(path: str, active: list[Loaded]) -> tuple[torch.Tensor, torch.Tensor] | None:
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


class AutoStrength:
    """A forward pre-hook on the UNet that sets the strength of `scale="auto"` adapters from the latent's size."""

    def __init__(self, pixels_per_latent: int) -> None:
        self.pixels_per_latent = pixels_per_latent
        self.size: tuple[int, int] | None = None

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "scale='auto' acts outside the graph: call set_resadapter_scale(pipe, 'auto') after compiling"
            )
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        size = tuple(int(side) * self.pixels_per_latent for side in sample.shape[-2:])
        if size != self.size:
            self.size = size
            self._follow(inner_unet(module), *size)

    def _follow(self, unet: nn.Module, height: int, width: int) -> None:
        latent_side = unet.config.sample_size
        sides = latent_side if isinstance(latent_side, (tuple, list)) else (latent_side, latent_side)
        trained = round(math.sqrt(math.prod(sides)) * self.pixels_per_latent)
        for name, loaded in loaded_adapters(unet).items():
            if AUTO in (loaded.lora, loaded.norm):
                loaded.automatic = auto_strength(height, width, trained)
                if message := range_warning(height, width, loaded.adapter.training_range()):
                    warnings.warn(f"adapter {name!r}: {message}", stacklevel=2)
        refresh(unet)


@dataclass
class _CompiledCall:
    """Stands before the compiled call of a UNet compiled in place, whose graph would take no notice of a new hook."""

    unet: nn.Module
    compiled: Callable
    hook: AutoStrength

    def __call__(self, *args, **kwargs):
        self.hook(self.unet, args, kwargs)
        return self.compiled(*args, **kwargs)


def follow_sizes(outer: nn.Module, pixels_per_latent: int) -> None:
    """Puts the hook of `scale="auto"` on the UNet where a pipeline calls it, or takes it off when none is auto."""
    unet = inner_unet(outer)
    for module in {id(outer): outer, id(unet): unet}.values():
        for number in [n for n, hook in module._forward_pre_hooks.items() if isinstance(hook, AutoStrength)]:
            del module._forward_pre_hooks[number], module._forward_pre_hooks_with_kwargs[number]
    if isinstance(unet._compiled_call_impl, _CompiledCall):
        unet._compiled_call_impl = unet._compiled_call_impl.compiled
    if not any(AUTO in (loaded.lora, loaded.norm) for loaded in loaded_adapters(unet).values()):
        return
    hook = AutoStrength(pixels_per_latent)
    if unet._compiled_call_impl is not None:
        unet._compiled_call_impl = _CompiledCall(unet, unet._compiled_call_impl, hook)
    else:
        outer.register_forward_pre_hook(hook, with_kwargs=True)


@torch.inference_mode(False)
@torch.no_grad()
def fuse(unet: nn.Module, name: str) -> Fused:
    """Adds an adapter's share to the weights themselves, and returns what that takes to undo."""
    loaded, record = loaded_adapters(unet)[name], Fused(name)
    lora, norm = loaded.strengths()
    paths = {f"{path}.weight": lora for path in loaded.adapter.convs} | dict.fromkeys(loaded.deltas, norm)
    tensors = {key: _own_float(unet, key) for key, strength in paths.items() if strength != 0}
    for key, tensor in tensors.items():
        path = key.removesuffix(".weight")
        if path in loaded.adapter.convs:
            new = tensor.float() + (loaded.adapter.convs[path].delta() * lora).to(tensor.device)
        else:
            new = tensor.double() + (loaded.deltas[key] * norm).to(tensor.device)
        record.kept[key] = tensor.detach().to("cpu", copy=True)
        tensor.copy_(new)
        record.stamps[key] = _stamp(tensor)
    return record


@torch.inference_mode(False)
@torch.no_grad()
def unfuse(unet: nn.Module, records: list[Fused]) -> None:
    """Puts back what the last few fusings kept, once it is sure that nothing has changed what they wrote."""
    tensors = {key: _own_float(unet, key) for record in records for key in record.kept}
    restored: dict[str, torch.Tensor] = {}
    for record in reversed(records):
        for key, kept in record.kept.items():
            if _stamp(restored.get(key, tensors[key])) != record.stamps[key]:
                raise ValueError(
                    f"cannot unfuse {record.name!r}: weights such as {key!r} have changed since (another LoRA fused "
                    "or unfused, or another type). Undo that first: the last fused comes off first"
                )
            restored[key] = kept
    for key, kept in restored.items():
        tensors[key].copy_(kept)


def _own_float(unet: nn.Module, key: str) -> torch.Tensor:
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
