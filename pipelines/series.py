"""Series of numbers from a denoiser of folded series: drawn, filled in, and gone on with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput

from brickwork.errors import explained, whole_number
from brickwork.pipelines.sampling import Generators, SamplingPipeline, checked_generator, first_noise
from brickwork.pipelines.schedules import Schedule

QUANTILES = (0.1, 0.5, 0.9)


@dataclass
class SeriesOutput(BaseOutput):
    """Series that were drawn.

    Attributes:
        series: `(n, variables, length)` in the data's own units, float64; known values are those that were given.
        quantiles: `(quantiles, variables, length)` of the series, in the order asked for; `None` unless asked for.
    """

    series: np.ndarray | torch.Tensor
    quantiles: np.ndarray | torch.Tensor | None = None


class TimeSeriesPipeline(SamplingPipeline):
    """Draws series, fills gaps in them, and goes on with them.

    Args:
        transformer: a `SeriesDenoiser`.
        scheduler: a scheduler of diffusers of what it was trained to predict, or `EDMHeunScheduler`.
        mean: of each variable in the training data; `None` for zeros.
        std: the standard deviation of each, by which the network's values are scaled; `None` for ones.
        names: of the variables; `None` for their numbers.
        step: between two time stamps as pandas writes it (`"1h"`), or `None`.
        num_inference_steps: recommended for calls that name none; `None` for 18.
    """

    default_steps = 18
    _optional_components = []
    model_cpu_offload_seq = "transformer"
    _axes = ("batch", "variables", "length")
    takes_conditions = False
    output_types = ("np", "pt", "latent")
    vae = schedule = None

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        step: str | None = None,
        num_inference_steps: int | None = None,
    ):
        super().__init__(transformer=transformer, scheduler=scheduler)
        count = transformer.config.in_channels
        told = {
            "mean": [0.0] * count if mean is None else [float(value) for value in mean],
            "std": [1.0] * count if std is None else [float(value) for value in std],
            "names": [str(number) for number in range(count)] if names is None else [str(name) for name in names],
        }
        for name, values in told.items():
            if len(values) != count:
                raise ValueError(f"`{name}` has {len(values)} entries for {count} variables; give one each.")
        if not all(0 < value < math.inf for value in told["std"]) or not all(map(math.isfinite, told["mean"])):
            raise ValueError("`mean` and `std` must be finite numbers, the second above 0.")
        self.register_to_config(**told, step=step, num_inference_steps=num_inference_steps)

    @torch.no_grad()
    def __call__(
        self,
        n: int = 1,
        length: int | None = None,
        known: Any = None,
        mask: Any = None,
        num_inference_steps: int | None = None,
        quantiles: Sequence[float] | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        subnet_schedule: Schedule | None = None,
        networks: Mapping[str, torch.nn.Module] | None = None,
    ) -> SeriesOutput | tuple:
        """Draw series.

        Args:
            n: how many.
            length: of them in steps, at least two cycles of the longest period, or a column of a delay embedding; by
                default that of `known`, else the training length.
            known: what is known, `(variables, length)` for all of them or `(n, variables, length)`, in the data's own
                units; NaN where it is not known. One variable may be given as `(length,)`.
            mask: true where it is known, shaped like `known`; by default where it is a number.
            num_inference_steps: steps of the sampler.
            quantiles: also return these of the drawn series, each between 0 and 1.
            generator: one for all, or a list with one a series.
            latents: noise of unit variance `(n, variables, length)` instead of drawing it.
            output_type: `"np"`, `"pt"`, or `"latent"` for the network's own scale.
            return_dict: return a `SeriesOutput` rather than a tuple.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": …})`.
            callback_on_step_end_tensor_inputs: what the callback gets.
            subnet_schedule: which subnet, or which of `networks`, runs at which noise level; by default the network.
            networks: further networks of the same objective by name; the pipeline's own is then `"full"`.

        Raises:
            ValueError: for series shorter than two cycles, gaps at both ends, and values that are no numbers.
        """
        steps = self._recommended("num_inference_steps", num_inference_steps, self.default_steps)
        self._check_arguments(steps, 1.0, output_type, callback_on_step_end_tensor_inputs, n=n)
        _check_quantiles(quantiles)
        values, known_at = self._known(n, length, known, mask)
        device = self._execution_device
        self._others = self._check_networks(networks or {})
        subnets = self._set_steps(steps, subnet_schedule)
        mean, std = (torch.tensor(self.config[name], dtype=torch.float64)[:, None] for name in ("mean", "std"))
        scaled = torch.where(known_at, (values - mean) / std, torch.zeros_like(values)).to(device, torch.float32)
        conditions = {"known": (scaled, None), "mask": (known_at.to(device, torch.float32), None)}
        generator = checked_generator(generator, n)
        result, _ = self._denoise(
            first_noise(latents, tuple(values.shape), generator, device),
            {} if known is None else conditions,
            generator,
            subnets,
            callback=callback_on_step_end,
            tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        self.maybe_free_model_hooks()
        series = result
        if output_type != "latent":
            series = torch.where(known_at, values, result.double().cpu() * std + mean)
        found = None if quantiles is None else _quantiles(series, quantiles)
        if output_type == "np":
            series, found = series.numpy(), None if found is None else found.numpy()
        output = SeriesOutput(series=series, quantiles=found)
        return output if return_dict else output.to_tuple()

    def forecast(
        self,
        history: Any,
        horizon: int,
        n: int = 100,
        quantiles: Sequence[float] = QUANTILES,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> SeriesOutput:
        """Go on with a series.

        Each call of the network sees the training length: what lies before, and up to half of it as the next part.
        Longer horizons are drawn part by part, every drawn series on its own.

        Args:
            history: what was `(variables, steps)`, or `(steps,)`; NaN for gaps, but not at the end.
            horizon: steps to go on for.
            n: drawn series.
            quantiles: of them.
            num_inference_steps: steps of the sampler.
            generator: draws the noise.

        Returns:
            `series (n, variables, horizon)` and `quantiles (quantiles, variables, horizon)`.
        """
        whole_number("horizon", horizon, of="steps")
        past = self._array(history, "history")
        if past.ndim != 2:
            raise ValueError(f"`history` has shape {tuple(past.shape)}; give (variables, steps).")
        self._check_length("history", past.shape[-1])
        for name, row in zip(self.config.names, past):
            if not row.isfinite()[-1]:
                raise ValueError(f"`history` ends with a gap in {name!r}; cut it off there, or fill it in first.")
        full, drawn = self.transformer.config.length, past.expand(n, -1, -1)
        whole_number("n", n)
        _check_quantiles(quantiles)
        while drawn.shape[-1] < past.shape[-1] + horizon:
            part = min(full // 2, past.shape[-1] + horizon - drawn.shape[-1])
            context = drawn[..., -(full - part) :]
            gap = torch.full((n, past.shape[0], part), math.nan, dtype=torch.float64)
            # A gap at the beginning of the context would be one at both ends.
            first = max(int(row.isfinite().to(torch.int8).argmax()) for row in context[0])
            whole = torch.cat([context[..., first:], gap], dim=-1)
            found = self(
                n, None, whole, num_inference_steps=num_inference_steps, generator=generator, output_type="pt"
            )
            drawn = torch.cat([drawn, found.series[..., -part:]], dim=-1)
        series = drawn[..., past.shape[-1] :]
        return SeriesOutput(series=series.numpy(), quantiles=_quantiles(series, quantiles).numpy())

    def _array(self, values: Any, name: str) -> torch.Tensor:
        """Numbers as float64 `(…, variables, length)` on the CPU."""
        with explained(f"`{name}` is no array of numbers (variables, length)", TypeError, ValueError):
            found = torch.as_tensor(values if isinstance(values, torch.Tensor) else np.asarray(values, np.float64))
        found, count = found.detach().double().cpu(), self.transformer.config.in_channels
        if found.ndim == 1 and count == 1:
            found = found[None]
        if found.ndim not in (2, 3) or found.shape[-2] != count:
            raise ValueError(
                f"`{name}` has shape {tuple(found.shape)}; give ({count}, length): a row for each of "
                f"{', '.join(self.config.names)}."
            )
        if found.isinf().any():
            raise ValueError(f"`{name}` has infinite values; give numbers, and NaN for what is not known.")
        return found

    def _known(self, n: int, length: int | None, known: Any, mask: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Values `(n, variables, length)`, and where they are known."""
        count = self.transformer.config.in_channels
        if known is None:
            if mask is not None:
                raise ValueError("`mask` was given without `known`; give both, or neither.")
            length = self.transformer.config.length if length is None else length
            self._check_length("length", length)
            values = torch.zeros(n, count, length, dtype=torch.float64)
            return values, torch.zeros_like(values, dtype=torch.bool)
        values = self._array(known, "known")
        known_at = ~values.isnan()
        if mask is not None:
            given = self._array(mask, "mask")
            if given.shape != values.shape:
                raise ValueError(
                    f"`mask` has shape {tuple(given.shape)}; give that of `known`, {tuple(values.shape)}."
                )
            if (unknown := (given != 0) & ~known_at).any():
                raise ValueError(f"`mask` says of {int(unknown.sum())} NaN that they are known; set it to 0 there.")
            known_at = given != 0
        if length is not None and length != values.shape[-1]:
            raise ValueError(f"`length` is {length}, but `known` has {values.shape[-1]} steps; leave one out.")
        self._check_length("known", values.shape[-1])
        if values.ndim == 3 and len(values) != n:
            raise ValueError(f"`known` has {len(values)} series for `n` = {n}; give one for all, or one each.")
        shape = (n, count, values.shape[-1])
        self._check_ends(known_at.expand(shape)[0])
        return values.expand(shape), known_at.expand(shape)

    def _check_ends(self, known_at: torch.Tensor) -> None:
        """Raise for gaps at both ends of a variable `(variables, length)`, where something of it is known."""
        for name, row in zip(self.config.names, known_at):
            if row.any() and not row[0] and not row[-1]:
                first, last = int(row.to(torch.int8).argmax()), int(row.flip(0).to(torch.int8).argmax())
                raise ValueError(
                    f"`known` has gaps at both ends of {name!r} ({first} steps at the beginning, {last} at the end); "
                    "cut one of them off, fill in what is left, and then go on from there."
                )

    def _check_length(self, name: str, length: int) -> None:
        self.transformer.folding.check_length(name, whole_number(name, length, of="steps"))


def _check_quantiles(quantiles: Sequence[float] | None) -> None:
    if quantiles is not None and (not len(quantiles) or not all(0 <= level <= 1 for level in quantiles)):
        raise ValueError(f"`quantiles` is {quantiles!r}; give numbers between 0 and 1.")


def _quantiles(series: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    return torch.quantile(series, torch.tensor(list(levels), dtype=series.dtype, device=series.device), dim=0)
