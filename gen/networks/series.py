"""A denoiser of series: a network for pictures sees them folded by their periods."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from brickwork.errors import explained, one_of
from brickwork.gen.delay_fold import DelayFold
from brickwork.gen.networks.base import Adaptable, Denoiser, SampleOutput
from brickwork.gen.networks.inputs import check_class_labels, check_sample, check_timestep
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.operations import count_operations
from brickwork.gen.period_fold import PeriodFold
from brickwork.gen.subnets import FULL, Subnets

KINDS = {"BlockUNet2DModel": BlockUNet2DModel, "BlockTransformer2DModel": BlockTransformer2DModel}
SEEN = 3  # times the variables: the noisy series, what is known of it, and where


class SeriesDenoiser(Denoiser, ModelMixin, ConfigMixin, Adaptable):
    """Estimates a series from its noisy self and from what is known of it.

    A series `(B, C, L)` becomes, for each period, a picture `(B, 3C, cycles, period)`: noisy values, known values
    (zeros elsewhere), and ones where they are known. One network sees all of these pictures; what it says of them is
    unfolded and merged by the periods' weights. A delay embedding is one picture `(B, 3C, rows, columns)` instead.

    Args:
        in_channels: variables C.
        length: of the training series L, in steps.
        periods: see `PeriodFold`; the longest fits twice into `length`.
        weights: of the periods in the merge, `None` for equal ones.
        delay: `(delay, rows)` of a `DelayFold`, which then folds in place of the periods.
        network_type: of the network for pictures, one of `KINDS`.
        network: its configuration, without the channels.
    """

    pipeline = "TimeSeriesPipeline"
    smallest = {
        "in_channels": 2, "length": 40, "periods": (10, 8), "network": BlockUNet2DModel.smallest | {
            "num_classes": None, "cross_attention_dim": None
        },
    }  # fmt: skip
    _skip_layerwise_casting_patterns = BlockUNet2DModel._skip_layerwise_casting_patterns

    @register_to_config
    def __init__(
        self,
        *,  # by position diffusers would take them for defaults, and not load them again
        in_channels: int = 1,
        length: int = 96,
        periods: Sequence[int] = (24,),
        weights: Sequence[float] | None = None,
        network_type: str = "BlockUNet2DModel",
        network: Mapping[str, Any] | None = None,
        delay: Sequence[int] | None = None,
        num_classes: int | None = None,
        id2label: dict[int, str] | None = None,
    ):
        super().__init__()
        if num_classes is not None:
            raise ValueError(f"`num_classes` is {num_classes}; series have no classes: leave it out.")
        if delay is not None and len(delay) != 2:
            raise ValueError(f"`delay` is {delay}; give two whole numbers: steps between columns, and of a column.")
        self.folding = PeriodFold([int(one) for one in periods], weights) if delay is None else DelayFold(*delay)
        self.folding.check_length("length", length)
        size = max(self.folding.periods) if delay is None else self.folding.rows
        kind = one_of("network_type", network_type, KINDS)
        channels = {"in_channels": SEEN * in_channels, "out_channels": in_channels}
        with explained(f"`network` has a value that {network_type} does not take", TypeError):
            self.denoiser = kind(**{"sample_size": size} | dict(network or {}) | channels)
        self._no_split_modules = self._repeated_blocks = self.denoiser._no_split_modules

    def example_inputs(self, batch: int, height: int, width: int = 1) -> dict[str, torch.Tensor]:
        """Arguments of `forward` that fit the network, all zeros, of series of `height` steps."""
        series = torch.zeros(batch, self.config.in_channels, height)
        return {"sample": series, "timestep": torch.ones(batch)}

    def subnets(self, height: int, width: int = 1) -> Subnets:
        """The operations of one series of `height` steps."""
        series = torch.zeros(1, self.config.in_channels, height * width, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            return Subnets({FULL: count_operations(lambda: self(series, 1.0))[0]})

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        known: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        class_labels: None = None,
        subnet: str | None = None,
        return_dict: bool = True,
    ) -> SampleOutput | tuple[torch.Tensor]:
        """Estimate.

        Args:
            sample: noisy series `(B, C, L)`, scaled as the scheduler does, at least two cycles long.
            timestep: `(B,)` or a scalar, what the scheduler says.
            known: the clean series where it is known `(B, C, L)`; elsewhere its values are not read.
            mask: 1 where it is known, else 0 `(B, C, L)`; with `known`, and without it.
            class_labels: `None`, as all pipelines give it to a network without classes.
            subnet: `None` or `"full"`.
            return_dict: return an output object rather than a tuple.

        Returns:
            The estimate `(B, C, L)`.
        """
        self._find_subnet(subnet)
        check_sample(sample, self.config.in_channels, axes=("length",))
        check_class_labels(class_labels, len(sample), None)
        if (known is None) != (mask is None):
            raise ValueError("`known` and `mask` belong together; give both, or neither.")
        if known is None:
            known = mask = torch.zeros_like(sample)
        for name, value in (("known", known), ("mask", mask)):
            if value.shape != sample.shape:
                raise ValueError(f"`{name}` has shape {tuple(value.shape)}; give that of `sample`.")
        mask = mask.to(sample.dtype)
        known = torch.where(mask > 0, known.to(sample.dtype), torch.zeros_like(sample))
        timestep = check_timestep(timestep, len(sample), sample.device)
        pictures = self.folding.fold(torch.cat([sample, known, mask], dim=1))
        estimates = [self.denoiser(picture, timestep, return_dict=False)[0] for picture in pictures]
        merged = self.folding.unfold(estimates, sample.shape[-1])
        return SampleOutput(sample=merged) if return_dict else (merged,)
