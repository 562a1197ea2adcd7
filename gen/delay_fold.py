"""Series as pictures by delay embedding: stretches of a series that overlap, side by side (ImagenTime, 2410.19538)."""

import torch

from brickwork.errors import whole_number


class DelayFold:
    """Folds series into columns of `rows` steps, each of which begins `delay` steps after the one before.

    A last column that reaches past the end is filled up with zeros. It folds and merges as `PeriodFold` does, so that
    either may stand in a `SeriesDenoiser`.

    Args:
        delay: steps from a column to the next, at most `rows`, so that no step is left out.
        rows: steps of a column.
    """

    def __init__(self, delay: int, rows: int):
        whole_number("delay", delay, of="steps")
        whole_number("rows", rows, of="steps")
        if delay > rows:
            raise ValueError(
                f"`delay` is {delay} for columns of {rows} steps; give at most {rows}, or longer columns."
            )
        self.delay, self.rows = delay, rows

    def check_length(self, name: str, length: int) -> None:
        """Raise a `ValueError` for a series `name` that is shorter than a column."""
        if length < self.rows:
            raise ValueError(
                f"`{name}` has {length} steps, fewer than a column of the delay embedding; give at least {self.rows}."
            )

    def columns(self, length: int) -> int:
        """How many a series of `length` steps makes, as the authors count them: one that is cut short is the last."""
        full = (length - self.rows) // self.delay + 1
        return full + (full * self.delay != length)

    def fold(self, series: torch.Tensor) -> list[torch.Tensor]:
        """`(B, C, L)` => one picture `(B, C, rows, columns)`.

        Raises:
            ValueError: for another shape, and for a series shorter than a column.
        """
        if series.ndim != 3:
            raise ValueError(f"`series` has shape {tuple(series.shape)}; give (batch, variables, length).")
        length = series.shape[-1]
        self.check_length("series", length)
        reach = (self.columns(length) - 1) * self.delay + self.rows
        filled = torch.nn.functional.pad(series, (0, reach - length))
        return [filled.unfold(-1, self.rows, self.delay).transpose(-1, -2)]

    def unfold(self, folded: list[torch.Tensor], length: int) -> torch.Tensor:
        """`[(B, C, rows, columns)]` => `(B, C, length)`, each step the mean of the columns that have it.

        Where they agree, that is their value bit for bit: `unfold(fold(series), length)` is the series. The authors'
        code takes the last column that has a step; under a loss of the series the other rows would then learn nothing.
        """
        if len(folded) != 1 or folded[0].shape[-2:] != (self.rows, self.columns(length)):
            raise ValueError(
                f"`folded` has shapes {[tuple(picture.shape) for picture in folded]}; {length} steps make one of "
                f"{self.rows} by {self.columns(length)}."
            )
        columns, (picture,) = self.columns(length), folded
        time = torch.arange(length, device=picture.device)
        column = (time // self.delay).clamp(max=columns - 1)  # the last that has the step
        last = picture[..., time - column * self.delay, column]
        starts = torch.arange(columns, device=picture.device) * self.delay
        step = (torch.arange(self.rows, device=picture.device)[:, None] + starts).flatten()
        inside = step < length
        step, values = step[inside], picture.flatten(-2)[..., inside]
        count = torch.bincount(step, minlength=length).to(picture.dtype)
        beyond = torch.zeros_like(last).index_add(-1, step, values - last[..., step])
        return last + beyond / count

    def __repr__(self) -> str:
        return f"DelayFold(delay={self.delay}, rows={self.rows})"
