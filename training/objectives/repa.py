"""Representation alignment (REPA, Yu et al., arXiv 2410.06940): a hidden layer tells what a frozen encoder sees."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from brickwork.adapters.dino.encoder import dense_features, load_encoder, normalisation, usual_size
from brickwork.errors import whole_number
from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step


@register_objective("repa")
class RepaObjective(Objective):
    """The negative cosine between an encoder's patches of the clean picture and a layer's map, after a learned MLP.

    Args:
        encoder: a vision transformer (see `DinoAdapter`), by its folder or its name on the hub.
        tap: a module of the network whose output is a map `(B, C, h, w)`, such as `blocks.3` or `mid_block.0`.
        weight: of the loss, a mean over patches; the paper has 0.5.
        rate: of the MLP, over the run's learning rate.
        width: of the MLP's two hidden layers.
        size: side in pixels at which the encoder sees the picture; `None` for 16 patches.
    """

    def __init__(
        self,
        encoder: str,
        tap: str,
        weight: float = 0.5,
        rate: float = 1.0,
        width: int = 2048,
        size: int | None = None,
    ):
        super().__init__(weight, rate)
        whole_number("width", width)
        model = load_encoder(encoder).requires_grad_(False)
        patch = int(model.config.patch_size)
        self.size = usual_size(model) if size is None else size
        if type(self.size) is not int or self.size < patch or self.size % patch:
            raise ValueError(f"`size` is {size!r}; give a multiple of the encoder's patch of {patch} pixels.")
        self.taps, self.width, self.layer = (tap,), width, int(model.config.num_hidden_layers) - 1
        self.mean, self.std = normalisation(model, encoder)
        self.frozen = (model,)  # in a tuple, so that it is neither trained nor saved with the run

    def prepare(self, step: Step, teacher: Step | None) -> None:
        """Make the MLP, once the channels of the layer are known."""
        channels, out = self._map(step, step.taps).shape[1], int(self.frozen[0].config.hidden_size)
        self.projector = nn.Sequential(
            nn.Linear(channels, self.width), nn.SiLU(), nn.Linear(self.width, self.width), nn.SiLU(),
            nn.Linear(self.width, out),
        )  # fmt: skip
        self._pixels(step)

    def forward(self, step: Step, taps: Mapping[str, torch.Tensor], teacher: Step | None) -> dict[str, torch.Tensor]:
        pixels, hidden = self._pixels(step), self._map(step, taps)
        encoder = self.frozen[0].to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            (seen,) = dense_features(encoder, pixels, [self.layer])
        if hidden.shape[-2:] != seen.shape[-2:]:
            hidden = F.interpolate(hidden, size=seen.shape[-2:], mode="bilinear", align_corners=False)
        projected = self.projector(hidden.flatten(2).transpose(1, 2))
        cosine = F.cosine_similarity(projected.float(), seen.flatten(2).transpose(1, 2), dim=-1)
        return {"repa": -cosine.mean()}

    def _pixels(self, step: Step) -> torch.Tensor:
        """The clean pictures as the encoder takes them, `(B, 3, size, size)`."""
        if step.pixels is None:
            raise ValueError("the run has latents without their pictures; leave out `data.latents` and `data.cache`.")
        size = (self.size, self.size)
        pixels = F.interpolate(step.pixels.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(pixels) for values in (self.mean, self.std))
        return ((pixels + 1) / 2 - mean) / std

    def _map(self, step: Step, taps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        hidden = taps[self.taps[0]]
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        height, width = step.sample.shape[-2:]
        grids = {(-(-height // stride), -(-width // stride)) for stride in range(1, max(height, width) + 1)}
        if hidden.ndim != 4 or tuple(hidden.shape[-2:]) not in grids:  # tokens in windows have four axes too
            raise ValueError(
                f"`tap` is {self.taps[0]!r}, whose output has the shape {tuple(hidden.shape)}; name a module whose "
                "output is a map (B, C, h, w)."
            )
        return hidden
