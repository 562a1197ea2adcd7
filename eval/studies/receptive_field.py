"""How far a denoiser really sees: the effective receptive field (Luo et al., arXiv 1701.04128) at a noise level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from brickwork.eval.report.blocks import Picture, Plot, Report, Table

SHARES = (0.5, 0.95)


@dataclass(frozen=True)
class ReceptiveField:
    """How much one pixel of the output depends on each of the input.

    Attributes:
        influence: `(H, W)`, float64, sums to 1; the pixel in question is `(H // 2, W // 2)`.
    """

    influence: np.ndarray

    def within(self) -> np.ndarray:
        """The share of the influence within so many rows and columns of the pixel: 0, 1, 2, …; the last is 1."""
        height, width = self.influence.shape
        rows, columns = abs(np.arange(height) - height // 2), abs(np.arange(width) - width // 2)
        distance = np.maximum(rows[:, None], columns[None, :])
        return np.cumsum(np.bincount(distance.ravel(), self.influence.ravel()))

    def side(self, share: float = 0.5) -> int:
        """Side in pixels of the smallest square around the pixel with at least that share of the influence."""
        if not 0 < share <= 1:
            raise ValueError(f"`share` is {share}; give one above 0, up to 1.")
        return 2 * int(np.argmax(self.within() >= share - 1e-9)) + 1

    def picture(self) -> np.ndarray:
        """uint8 `(H, W, 3)`: white for none, black for the most, in the square root so that faint influence shows."""
        shade = np.sqrt(self.influence / self.influence.max())
        return np.repeat((255 * (1 - shade)).astype(np.uint8)[..., None], 3, axis=2)


def effective_receptive_field(
    model: torch.nn.Module, t: float, sample: torch.Tensor | None = None, count: int = 8, seed: int = 0
) -> ReceptiveField:
    """The gradient of the output's centre pixel by the input, its size averaged over inputs.

    Args:
        model: one of our networks, trained; a fresh one's head is zero and sees nothing.
        t: what the scheduler hands the model at the noise level, as in `forward`.
        sample: `(N, in_channels, H, W)` of that noise level, as the scheduler scales it; `None` for standard normal
            noise of the training size.
        count: of noise samples, where `sample` is `None`.
        seed: of the noise.

    Raises:
        ValueError: where the centre does not depend on the input at all.
    """
    parameter = next(model.parameters())
    if sample is None:
        size = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
        sample = torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))
    height, width = sample.shape[-2:]
    total, training = np.zeros((height, width)), model.training
    model.eval()
    try:
        for one in sample:  # one at a time: full-size maps of all layers are kept for the gradient
            inputs = {key: value.to(parameter.device) for key, value in model.example_inputs(1, height, width).items()}
            image = one[None].to(parameter).requires_grad_()
            inputs |= {"sample": image, "timestep": torch.full((1,), float(t), device=parameter.device)}
            with torch.enable_grad():
                centre = model(**inputs).sample[0, :, height // 2, width // 2]
                for channel in centre:
                    (gradient,) = torch.autograd.grad(channel, image, retain_graph=True)
                    total += gradient[0].abs().sum(dim=0).double().cpu().numpy()
    finally:
        model.train(training)
    if not np.isfinite(total).all() or total.sum() == 0:
        raise ValueError(
            f"`model` ({type(model).__name__}) at t={t} has a gradient of "
            f"{'zero' if np.isfinite(total).all() else 'NaN or infinity'} at its centre; give a trained network."
        )
    return ReceptiveField(total / total.sum())


def receptive_field_report(models: Mapping[str, torch.nn.Module], timesteps: Sequence[float], **how) -> Report:
    """A report of several networks at several noise levels: sides, pictures and curves.

    Args:
        models: by name.
        timesteps: as `t` of `effective_receptive_field`, from low noise to high.
        how: further arguments of `effective_receptive_field`.
    """
    fields = {
        (name, t): effective_receptive_field(model, t, **how) for name, model in models.items() for t in timesteps
    }
    rows = [[name, t, *(field.side(share) for share in SHARES)] for (name, t), field in fields.items()]
    columns = ["network", "t", *(f"side of {share:.0%} of the influence, pixels" for share in SHARES)]
    curves = {}
    for (name, t), field in fields.items():
        within = field.within()
        curves[f"{name}, t={t:g}"] = (2 * np.arange(len(within)) + 1, within)
    pictures = [Picture(field.picture(), caption=f"{name}, t={t:g}") for (name, t), field in fields.items()]
    plot = Plot(curves, x_label="side of a square around the pixel", y_label="share of the influence within it")
    return Report("How far denoisers see", [Table(columns, rows), plot, *pictures])
