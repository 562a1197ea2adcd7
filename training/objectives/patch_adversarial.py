"""The adversarial loss on patches by which an autoencoder's decoder learns sharp edges.

A squared or absolute error is least where a decoder that does not know where an edge runs draws the mean of all its
places, a blur. A discriminator of patches (Isola et al., arXiv 1611.07004) with the hinge loss, as in VQGAN (Esser et
al., arXiv 2012.09841, section 3.1), tells such pictures from real ones.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step

_SLOPE = 0.2


@register_objective("patch_adversarial")
class PatchAdversarialObjective(Objective):
    """A discriminator of patches and what it teaches the network whose answer is a picture.

    VQGAN weights the adversarial loss so that its gradient at the decoder's last layer is as long as that of the
    reconstruction. Here it is measured at the picture itself, where the mean absolute error's gradient has a known
    length, so that no further pass is needed.

    Args:
        strength: the length of the adversarial gradient at the picture, over that of the mean absolute error.
        channels: of the discriminator's first layer; the following have 2 and 4 times as many.
        weight: of the adversarial loss and the discriminator's.
        rate: of the discriminator's learning rate, over the run's.
    """

    def __init__(self, strength: float = 0.5, channels: int = 32, weight: float = 1.0, rate: float = 1.0):
        super().__init__(weight, rate)
        if strength < 0 or channels < 1:
            raise ValueError(
                f"`strength` and `channels` are {strength} and {channels}; give 0 or more, and at least 1."
            )
        self.strength, self.channels = float(strength), channels

    def prepare(self, step: Step, teacher: None) -> None:
        if step.images.ndim != 4 or step.outputs[-1].shape != step.images.shape:
            raise ValueError(
                f"`objectives` has {self.type!r}, which compares pictures, and the network's answer to pictures of "
                f"shape {tuple(step.images.shape)} has shape {tuple(step.outputs[-1].shape)}; leave it out."
            )
        self.discriminator = patch_discriminator(step.images.shape[1], self.channels)

    def forward(self, step: Step, taps: Mapping[str, torch.Tensor], teacher: None) -> dict[str, torch.Tensor]:
        """`adversarial`, which teaches the network, and `discriminator`, which teaches that alone."""
        real, drawn = step.images.float(), step.outputs[-1].float()
        told = self.discriminator(torch.cat([real, drawn.detach()]))
        real_score, drawn_score = told.chunk(2)
        hinge = 0.5 * (F.relu(1 - real_score).mean() + F.relu(1 + drawn_score).mean())
        frozen = {name: tensor.detach() for name, tensor in self.discriminator.state_dict().items()}
        fooled = -functional_call(self.discriminator, frozen, (drawn,)).mean()
        if not drawn.requires_grad:
            return {"adversarial": fooled, "discriminator": hinge}
        (gradient,) = torch.autograd.grad(fooled, drawn, retain_graph=True)
        length = drawn.numel() ** -0.5  # of the gradient of the mean absolute error
        scale = self.strength * length / gradient.norm().clamp_min(1e-12)
        return {"adversarial": scale.detach() * fooled, "discriminator": hinge}


def patch_discriminator(in_channels: int, channels: int) -> torch.nn.Sequential:
    """`(B, in_channels, H, W)` => scores `(B, 1, H / 4, W / 4)`, each of a patch of 22 × 22 pixels."""
    widths = [in_channels, channels, 2 * channels, 4 * channels]
    layers: list[torch.nn.Module] = []
    for inner, outer, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
        layers += [spectral_norm(torch.nn.Conv2d(inner, outer, 4 if stride == 2 else 3, stride, 1))]
        layers += [torch.nn.LeakyReLU(_SLOPE)]
    return torch.nn.Sequential(*layers, spectral_norm(torch.nn.Conv2d(widths[-1], 1, 3, padding=1)))
