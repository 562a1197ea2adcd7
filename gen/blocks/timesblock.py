"""TimesNet's block (Wu et al., arXiv 2210.02186): convolutions over a series folded by its periods.

A map is read row by row as a series of H·W steps with C variables. The published network takes the periods from the
spectrum of what comes in; in a denoiser that is noise, whose spectrum says nothing, so periods are better given.
"""

from collections.abc import Sequence

import torch
from torch import nn

from brickwork.errors import whole_number
from brickwork.gen.blocks.modulation import BlockModulation, gated_residual_map, modulate_map
from brickwork.gen.blocks.registry import Block, register_block
from brickwork.gen.period_fold import PeriodFold, fold_once, unfold_once


class Inception(nn.Module):
    """The mean of convolutions with kernels 1, 3, 5, …

    Args:
        dim: channels of the input.
        out_dim: channels of the output.
        num_kernels: how many.
    """

    def __init__(self, dim: int, out_dim: int, num_kernels: int):
        super().__init__()
        self.kernels = nn.ModuleList(nn.Conv2d(dim, out_dim, 2 * i + 1, padding=i) for i in range(num_kernels))
        for conv in self.kernels:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` => `(B, out_dim, H, W)`."""
        return torch.stack([conv(hidden_states) for conv in self.kernels], dim=-1).mean(-1)


@register_block("timesblock")
class TimesBlock(Block):
    """Two inception layers on each folding, merged, gated (zero at the start) and added.

    Args beside those of `Block`:
        periods: in pixels along the row-major map, each with an equal share of the merge; `None` takes for every call
            the `top_k` frequencies of the greatest amplitude over the batch, and merges by the softmax of each
            image's amplitudes, as the authors do. A batch is then not its images.
        top_k: how many frequencies, without `periods`.
        num_kernels: convolutions of an inception layer.
        mlp_ratio: channels between the two layers over `dim`.
        modulation: see `BlockModulation`.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        periods: Sequence[int] | None = None,
        top_k: int = 2,
        num_kernels: int = 6,
        mlp_ratio: float = 1.0,
        modulation: str = "adaln_zero",
        **settings,
    ):
        super().__init__(dim, cond_dim, **settings)
        self.top_k = whole_number("top_k", top_k)
        whole_number("num_kernels", num_kernels)
        self.periods = None if periods is None else PeriodFold(periods).periods
        hidden = max(1, int(dim * mlp_ratio))
        self.conv = nn.Sequential(Inception(dim, hidden, num_kernels), nn.GELU(), Inception(hidden, dim, num_kernels))
        self.modulation = BlockModulation(cond_dim, dim, 1, modulation)

    def mix(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        ((shift, scale, gate),) = self.modulation(temb)
        update = self.merged(modulate_map(hidden_states, shift, scale).flatten(2)).view_as(hidden_states)
        return gated_residual_map(hidden_states, gate, update)

    def merged(self, series: torch.Tensor) -> torch.Tensor:
        """`(B, C, L)` => what the convolutions make of its foldings, merged `(B, C, L)`."""
        length = series.shape[-1]
        if self.periods is not None:
            found = [unfold_once(self.conv(fold_once(series, period)), length) for period in self.periods]
            return torch.stack(found).mean(0)
        frequencies, amplitudes = strongest(series, self.top_k)
        found = [unfold_once(self.conv(fold_once(series, length // f)), length) for f in frequencies]
        shares = amplitudes.softmax(dim=1).to(series.dtype)  # (B, frequencies)
        return (torch.stack(found, dim=1) * shares[:, :, None, None]).sum(1)


def strongest(series: torch.Tensor, top_k: int) -> tuple[list[int], torch.Tensor]:
    """The frequencies of the greatest mean amplitude in `(B, C, L)`, and each series' amplitudes `(B, top_k)`."""
    spectrum = torch.fft.rfft(series.float(), dim=-1).abs()
    mean = spectrum.mean((0, 1)).index_fill(0, torch.zeros(1, dtype=torch.long, device=series.device), 0.0)
    chosen = mean.topk(min(top_k, len(mean) - 1)).indices
    return [max(1, int(f)) for f in chosen], spectrum.mean(1)[:, chosen]
