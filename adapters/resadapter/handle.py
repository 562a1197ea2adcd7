"""A ResAdapter's handle: each method is one of the functions of `functions`, for this adapter alone."""

from pathlib import Path
from typing import Self

from brickwork.adapters.base import Adapter
from brickwork.adapters.resadapter import functions
from brickwork.adapters.resadapter.base_norms import inner_unet
from brickwork.adapters.resadapter.state import Loaded
from brickwork.adapters.resadapter.transaction import loaded_adapters


class ResAdapter(Adapter):
    """One ResAdapter on one UNet; made by `load_adapter` or `ResAdapter.load`.

    Attributes:
        target: the pipeline or UNet it was loaded onto.
    """

    kind = "resadapter"

    def __init__(self, target, name: str) -> None:
        self.target, self.name = target, name

    @classmethod
    def load(cls, pipe_or_model, source: str | Path, name: str | None = None, scale=1.0, **options) -> Self:
        """Read a ResAdapter and put it on; `options` are `load_resadapter`'s `norm_mode` and `base_model`."""
        taken = loaded_adapters(inner_unet(pipe_or_model))
        name = name or next(n for n in ("res", *(f"res_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
        functions.load_resadapter(pipe_or_model, source, name, scale, **options)
        return cls(pipe_or_model, name)

    def _loaded(self) -> Loaded:
        return functions.loaded_as(inner_unet(self.target), self.name)

    @property
    def scale(self) -> float | str:
        """Strength of the LoRA, and of the norms where there is no LoRA; setting it sets both."""
        loaded = self._loaded()
        return loaded.lora if loaded.adapter.convs else loaded.norm

    @scale.setter
    def scale(self, value: float | str) -> None:
        functions.set_resadapter_scale(self.target, value, self.name)

    @property
    def enabled(self) -> bool:
        return self._loaded().enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        (functions.enable_resadapter if value else functions.disable_resadapter)(self.target, self.name)

    def at(self, scale: float):
        return functions.resadapter_at(self.target, scale, self.name)

    def fuse(self) -> None:
        functions.fuse_resadapter(self.target, self.name)

    def unfuse(self) -> None:
        functions.unfuse_resadapter(self.target, self.name)

    def save(self, path: str | Path, *, to: str | None = None, base_model=None, overwrite: bool = False) -> list[Path]:
        """Write it as `save_resadapter` does; `to=None` takes "comfyui" for a .safetensors path, else "official"."""
        to = to or ("comfyui" if Path(path).suffix == ".safetensors" else "official")
        return functions.save_resadapter(
            self.target, path, self.name, to=to, base_model=base_model, overwrite=overwrite
        )

    def unload(self) -> None:
        functions.unload_resadapter(self.target, self.name)
