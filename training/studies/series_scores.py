"""Scores of series: of forecasts and fillings against the truth, of drawn series against real ones."""

import numpy as np
import torch
from torch import nn

WIDTH, STEPS, BATCH = 16, 200, 64  # of the classifier


def crps(samples: np.ndarray, truth: np.ndarray) -> float:
    """The continuous ranked probability score of `(n, …)` samples, mean over what is not NaN in `truth`; fair form."""
    n = len(samples)
    ordered = np.sort(samples, axis=0)
    weights = (2 * np.arange(1, n + 1) - n - 1).reshape(-1, *(1,) * truth.ndim)
    spread = (weights * ordered).sum(0) / (n * (n - 1)) if n > 1 else 0.0
    return float(np.nanmean(np.abs(samples - truth).mean(0) - spread))


def scores(samples: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The squared error of the mean of `(n, …)` samples, and their CRPS."""
    return {"mse": float(np.nanmean((samples.mean(0) - truth) ** 2)), "crps": crps(samples, truth)}


def autocorrelation(windows: np.ndarray) -> np.ndarray:
    """`(N, variables, length)` => the mean autocorrelation `(variables, length / 2)` at lags from 1 up."""
    centred = windows - windows.mean(-1, keepdims=True)
    power = (centred**2).sum(-1)
    lags = range(1, windows.shape[-1] // 2 + 1)
    return np.stack([((centred[..., lag:] * centred[..., :-lag]).sum(-1) / power).mean(0) for lag in lags], axis=-1)


def autocorrelation_distance(real: np.ndarray, drawn: np.ndarray) -> float:
    """The mean distance of the mean autocorrelations of two sets of windows `(N, variables, length)`."""
    return float(np.abs(autocorrelation(real) - autocorrelation(drawn)).mean())


class _Classifier(nn.Module):
    def __init__(self, variables: int):
        super().__init__()
        self.gru, self.head = nn.GRU(variables, WIDTH, batch_first=True), nn.Linear(WIDTH, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """`(N, variables, length)` => the logit of being drawn `(N,)`."""
        return self.head(self.gru(windows.transpose(1, 2))[0][:, -1]).squeeze(-1)


def discriminative_score(real: tuple[np.ndarray, np.ndarray], drawn: tuple[np.ndarray, np.ndarray]) -> float:
    """|accuracy - 0.5| of a small recurrent network that tells real from drawn: 0 is best, 0.5 the worst.

    The score of TimeGAN (Yoon et al., 2019), with two departures: windows to learn from and to be told are given
    apart, since windows of one series overlap; the accuracy is the mean of that among real and among drawn ones.

    Args:
        real: windows to learn from, and to be told `(N, variables, length)`, in units of about their deviation.
        drawn: the same of what was drawn.
    """
    (real_train, real_test), (drawn_train, drawn_test) = (
        [torch.from_numpy(np.asarray(part)).float() for part in pair] for pair in (real, drawn)
    )
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(0)
        network = _Classifier(real_train.shape[1])
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        labels = torch.cat([torch.zeros(BATCH // 2), torch.ones(BATCH // 2)])
        for _ in range(STEPS):
            batch = [part[torch.randint(len(part), (BATCH // 2,))] for part in (real_train, drawn_train)]
            loss = nn.functional.binary_cross_entropy_with_logits(network(torch.cat(batch)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = [(network(real_test) < 0).float().mean(), (network(drawn_test) > 0).float().mean()]
    return abs(float(sum(right)) / 2 - 0.5)
