"""Pictures from a text and a layout: boxes, each with a phrase of what is in it."""

import os
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Self

from diffusers import StableDiffusionPipeline

from brickwork.adapters.base import load_adapter
from brickwork.adapters.layout.adapter import LayoutAdapter
from brickwork.adapters.modules import module_adapters
from brickwork.pipelines.saving import BrickworkPipeline

FOLDER = "layout"  # beside the components, with the adapter in it


def _shows_all(call: Callable) -> Callable:
    """A decorator for a call whose `**arguments` go to Stable Diffusion's: its signature names those as well."""
    own = [one for one in signature(call).parameters.values() if one.kind is not one.VAR_KEYWORD]
    named = {one.name for one in own}
    passed = [
        one.replace(kind=one.KEYWORD_ONLY)
        for one in signature(StableDiffusionPipeline.__call__).parameters.values()
        if one.name not in named and one.kind is not one.VAR_KEYWORD
    ]
    call.__signature__ = signature(call).replace(parameters=[*own, *passed])
    return call


class LayoutPipeline(BrickworkPipeline, StableDiffusionPipeline):
    """`StableDiffusionPipeline` whose call takes boxes and phrases, for a UNet with a `LayoutAdapter` on it.

        pipe = LayoutPipeline.from_pretrained("my-model")     # or LayoutPipeline(**other.components)
        pipe("a robot and a cat", boxes=[(0.1, 0.2, 0.5, 0.9)], phrases=["a robot"]).images[0]

    `save_pretrained` keeps the adapter in `layout/` beside the components, and `from_pretrained` puts it on again.
    """

    @property
    def layout_adapter(self) -> LayoutAdapter:
        """The adapter on the UNet; a `ValueError` where there is none."""
        if not (found := self._layout_adapters()):
            raise ValueError("the UNet has no layout adapter: `load_adapter(pipe, file)`, or train one.")
        return found[-1].reads_from(self)

    def _layout_adapters(self) -> list[LayoutAdapter]:
        return [one for one in module_adapters(self.unet).values() if isinstance(one, LayoutAdapter)]

    @_shows_all
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        boxes: Sequence | None = None,
        phrases: Sequence | None = None,
        layout_scale: float | None = None,
        layout_share: float = 1.0,
        **arguments: Any,
    ):
        """Draw pictures.

        Args:
            prompt: one text a picture.
            boxes: `(x0, y0, x1, y1)` from 0 to 1, x to the right and y down: a list for all pictures, or one for each
                prompt. `None` draws as without the adapter.
            phrases: what is in each box, shaped alike.
            layout_scale: strength, `None` for the adapter's own; 0 is off.
            layout_share: the first share of the steps in which the layout acts.
            arguments: what `StableDiffusionPipeline` takes.

        Raises:
            ValueError: no adapter, boxes that are none, or more or fewer phrases than boxes.
        """
        if boxes is None and phrases is None:
            return super().__call__(prompt, **arguments)
        number = arguments.get("num_images_per_prompt") or 1
        several = number > 1 and isinstance(prompt, list) and len(prompt) > 1
        if several and boxes is not None and phrases is not None and len(boxes) == len(prompt):
            boxes, phrases = ([row for row in rows for _ in range(number)] for rows in (boxes, phrases))
        with self.layout_adapter.condition(boxes=boxes, phrases=phrases, share=layout_share, scale=layout_scale):
            return super().__call__(prompt, **arguments)

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments, **kwargs) -> None:
        """Write components and the adapter, if there is one, as a folder that `from_pretrained` loads.

        Raises:
            ValueError: without an adapter, into a folder with another's, which would be loaded with the components.
        """
        place = Path(save_directory) / FOLDER
        if not self._layout_adapters() and place.is_dir():
            raise ValueError(f"{str(place)!r} holds an adapter, and the UNet has none; give a new folder.")
        super().save_pretrained(save_directory, *arguments, **kwargs)
        if self._layout_adapters():
            self.layout_adapter.save(place / "adapter.safetensors", overwrite=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> Self:
        """Load what `save_pretrained` wrote, or any Stable Diffusion 1.x or 2.x, whose adapter `load_adapter` adds.

        `DiffusionPipeline.from_pretrained` loads the components alone: `load_adapter(pipe, folder / "layout")` then.
        """
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = Path(os.path.expanduser(pretrained_model_name_or_path)) / FOLDER
        if folder.is_dir():
            load_adapter(pipe, folder)
        return pipe
