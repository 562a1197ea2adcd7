"""The classical ways of the study of series: how each forecasts, and how it fills in.

A way is made of the training part and says what it can do, either or both: `forecast(history, horizon)` and
`fill(known, start)`, of `(variables, steps)`, give `(n, variables, steps)`; `start` is the step of the series at which
a window begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

PERIODS = 30  # of the training part that statsmodels reads
HARMONICS = 3  # of each period


@dataclass(frozen=True)
class Way:
    forecast: Callable[[np.ndarray, int], np.ndarray] | None = None
    fill: Callable[[np.ndarray, int], np.ndarray] | None = None


def seasonal_naive(period: int, samples: int, history: np.ndarray, horizon: int) -> np.ndarray:
    """What was a period ago, plus what that has been off by before."""
    last = history[:, -period:]
    point = np.stack([last[:, k % period] for k in range(horizon)], axis=1)
    errors = history[:, period:] - history[:, :-period]
    chosen = np.random.default_rng(history.shape[1]).integers(0, errors.shape[1], (samples, horizon))
    return point + errors[:, chosen].transpose(1, 0, 2)


def exponential_smoothing(period: int, samples: int, history: np.ndarray, horizon: int) -> np.ndarray:
    """ETS(A, N, A) of statsmodels on the last periods of each variable, simulated."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    drawn = []
    for row in history[:, -PERIODS * period :]:
        fitted = ETSModel(pd.Series(row), error="add", seasonal="add", seasonal_periods=period).fit(disp=False)
        noise = np.random.default_rng(history.shape[1]).normal(0, np.sqrt(fitted.scale), (horizon, samples))
        simulated = fitted.simulate(horizon, anchor="end", repetitions=samples, random_errors=noise)
        drawn.append(np.asarray(simulated).reshape(horizon, samples))
    return np.stack(drawn).transpose(2, 0, 1)


def interpolate(known: np.ndarray, start: int) -> np.ndarray:
    """Straight lines."""
    steps = np.arange(known.shape[1])
    return np.stack([np.interp(steps, steps[np.isfinite(row)], row[np.isfinite(row)]) for row in known])[None]


def seasonal_mean(period: int, known: np.ndarray, start: int) -> np.ndarray:
    """The mean of the same phase in the window, or a straight line where nothing of that phase is known."""
    filled = np.where(np.isnan(known), interpolate(known, start)[0], known)
    for row, given in zip(filled, known):
        for phase in range(period):
            part = given[phase::period]
            if np.isfinite(part).any():
                row[phase::period] = np.where(np.isnan(part), np.nanmean(part), part)
    return filled[None]


class Sarimax:
    """SARIMAX(1, 0, 0)(1, 0, 0) of statsmodels about a mean and waves of every period, for each variable.

    It is fitted once, to the last periods of the training part, and then tells of any part what it learned. With
    seasonal differences it would need every phase to be known somewhere in a window with gaps.

    Args:
        periods: the seasonal one first.
        samples: how many to draw of each answer.
        training: `(variables, steps)`.
    """

    def __init__(self, periods: Sequence[int], samples: int, training: np.ndarray):
        self.periods, self.samples, self.reach = periods, samples, PERIODS * periods[0]
        first, self.parameters = max(training.shape[1] - self.reach, 0), []
        for row in training[:, first:]:
            self.parameters.append(self._model(row, first).fit(disp=False).params)

    def _waves(self, first: int, steps: int) -> np.ndarray:
        """Sines and cosines of the periods, from step `first` of the series on, `(steps, waves)`."""
        time = np.arange(first, first + steps)[:, None]
        cycles = np.array([k / period for period in self.periods for k in range(1, HARMONICS + 1)])
        return np.concatenate([np.sin(2 * np.pi * time * cycles), np.cos(2 * np.pi * time * cycles)], axis=1)

    def _model(self, row: np.ndarray, first: int):
        from statsmodels.tsa.statespace.sarimax import SARIMAX

        seasonal = (1, 0, 0, self.periods[0])
        return SARIMAX(row, self._waves(first, len(row)), order=(1, 0, 0), seasonal_order=seasonal, trend="c")

    def forecast(self, history: np.ndarray, horizon: int) -> np.ndarray:
        now = history.shape[1]
        first, waves = max(now - self.reach, 0), self._waves(now, horizon)
        models = (self._model(row, first).smooth(given) for row, given in zip(history[:, first:], self.parameters))
        return self._drawn([model.get_forecast(horizon, exog=waves) for model in models], now)

    def fill(self, known: np.ndarray, start: int) -> np.ndarray:
        models = (self._model(row, start).smooth(given) for row, given in zip(known, self.parameters))
        return self._drawn([model.get_prediction(information_set="smoothed") for model in models], start)

    def _drawn(self, found: list, seed: int) -> np.ndarray:
        """Normal numbers `(n, variables, steps)`, each step on its own, as it is scored."""
        mean, variance = (
            np.stack([getattr(one, name) for one in found]) for name in ("predicted_mean", "var_pred_mean")
        )
        noise = np.random.default_rng(seed).normal(size=(self.samples, *mean.shape))
        return mean + noise * np.sqrt(np.maximum(variance, 0))


def classical_ways(periods: Sequence[int], samples: int, training: np.ndarray) -> dict[str, Callable[[], Way]]:
    """Every way by name, made when called.

    Args:
        periods: the seasonal one first; of the others SARIMAX alone is told.
        samples: how many answers to draw.
        training: `(variables, steps)`.
    """

    def sarimax() -> Way:
        model = Sarimax(periods, samples, training)
        return Way(model.forecast, model.fill)

    return {
        "seasonal naive": lambda: Way(partial(seasonal_naive, periods[0], samples)),
        "ETS": lambda: Way(partial(exponential_smoothing, periods[0], samples)),
        "SARIMAX": sarimax,
        "linear interpolation": lambda: Way(fill=interpolate),
        "seasonal mean": lambda: Way(fill=partial(seasonal_mean, periods[0])),
    }
