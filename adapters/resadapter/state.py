"""What a UNet remembers of the ResAdapters on it: values that are replaced as one, never changed.

The state hangs on the UNet as a plain attribute, so that it is copied and goes away with it; it holds names and
tensors, never modules, so that wrappers put around a layer later do not matter.
"""

import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from brickwork.adapters.base import AUTO
from brickwork.adapters.comfyui.reading import ResAdapterWeights
from brickwork.compat import before_call

STATE = "_resadapters"  # the attribute


@dataclass(frozen=True, eq=False)
class Loaded:
    """One adapter on one UNet.

    reference: the norms its own are compared with, or None where the file holds differences.
    deltas: float64 difference of each norm tensor from the reference, on the CPU.
    lora, norm: the strength of each half, a number or "auto".
    automatic: what "auto" stands for since the last size seen.
    """

    adapter: ResAdapterWeights
    reference: dict[str, torch.Tensor] | None
    deltas: dict[str, torch.Tensor]
    lora: float | str
    norm: float | str
    automatic: float = 1.0
    enabled: bool = True

    @property
    def follows_size(self) -> bool:
        """Whether a strength is "auto"."""
        return AUTO in (self.lora, self.norm)

    def strengths(self) -> tuple[float, float]:
        """The numbers in force for LoRA and norms."""
        return tuple(self.automatic if scale == AUTO else scale for scale in (self.lora, self.norm))


@dataclass(frozen=True, eq=False)
class Fused:
    """What one fusing kept: each tensor it changed, as it was, and a stamp of what it wrote."""

    name: str
    kept: dict[str, torch.Tensor]
    stamps: dict[str, str]


@dataclass(frozen=True, eq=False)
class State:
    """All ResAdapters on one UNet.

    adapters: by name, in the order they were loaded.
    fused: the fused ones' records, oldest first.
    blocks: weak references to the open `with` blocks of strengths for one thread.
    watch: the hooks on the UNet, a `transaction.Watch`.
    """

    adapters: Mapping[str, Loaded] = field(default_factory=dict)
    fused: tuple[Fused, ...] = ()
    blocks: tuple[weakref.ref, ...] = ()
    watch: Any = None

    def acting(self) -> list[Loaded]:
        """Those that act through the layers: enabled, and not fused."""
        gone = {record.name for record in self.fused}
        return [loaded for name, loaded in self.adapters.items() if loaded.enabled and name not in gone]


def _tell_what_is_not_saved(unet: nn.Module, *arguments, **options) -> None:
    """A warning before a UNet is saved, alone or with its pipeline: loaded ResAdapters are not."""
    state, network = stored(unet), type(unet).__name__
    fused = {record.name for record in state.fused}
    beside = [name for name in state.adapters if name not in fused]
    if beside:
        warnings.warn(
            f"the ResAdapters {beside} are not saved with the {network}: save them with `save_resadapter`, "
            "or fuse them with `fuse_resadapter` first.",
            stacklevel=4,
        )
    if fused:
        warnings.warn(
            f"the ResAdapters {sorted(fused)} are fused, and are saved as part of the {network}'s weights; "
            "`unfuse_resadapter` first to save those without them.",
            stacklevel=4,
        )


def stored(unet: nn.Module) -> State:
    """The state as it hangs on the UNet; see `transaction.state_of` for what operations go by."""
    return getattr(unet, STATE, State())


def store(unet: nn.Module, state: State) -> None:
    """Hang a state on the UNet; an empty one leaves no attribute behind."""
    if state.adapters or state.fused or state.blocks:
        setattr(unet, STATE, state)
        if hasattr(type(unet), "save_pretrained"):
            before_call(type(unet), "save_pretrained", _tell_what_is_not_saved)
    else:
        vars(unet).pop(STATE, None)
