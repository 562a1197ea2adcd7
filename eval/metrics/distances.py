"""Distances between sets of features, in float64, on top of torchmetrics.

torchmetrics keeps the states, adds them up over processes and has the kernel distance and the Inception Score; what is
added here is a Fréchet distance by symmetric eigenvalues, seeded subsets, refusals of numbers that would mean nothing,
and the manifold scores, which it lacks.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torchmetrics import Metric
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

# Count, mean `(dimension,)` and unbiased covariance `(dimension, dimension)` of features, float64.
Statistics = tuple[int, torch.Tensor, torch.Tensor]
BLOCK = 256  # columns of the second moment computed at once: only blocks on and above the diagonal are needed
ROWS = 2048  # rows that distances are computed for at once


class FeatureStatistics(Metric):
    """Mean and covariance of a stream of features: float64 sums that add up over batches and processes.

    Args:
        dimension: Length of a feature vector.
    """

    full_state_update = False

    def __init__(self, dimension: int, **kwargs):
        super().__init__(**kwargs)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(dimension, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("second_moment", torch.zeros(dimension, dimension, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: torch.Tensor) -> None:
        """Add features `(count, dimension)`; a few hundred rows at a time are quickest."""
        features = features.double()
        if features.ndim != 2 or features.shape[1] != self.total.shape[0]:
            raise ValueError(f"features: got shape {tuple(features.shape)}, need (count, {self.total.shape[0]})")
        total = features.sum(dim=0)
        if not bool(torch.isfinite(total).all()):
            bad = int((~torch.isfinite(features)).any(dim=1).sum())
            raise ValueError(f"features: {bad} of {len(features)} rows are not finite; look at these images")
        self.count += len(features)
        self.total += total
        for start in range(0, features.shape[1], BLOCK):
            rows = slice(start, start + BLOCK)
            self.second_moment[rows, start:] += features[:, rows].T @ features[:, start:]

    def compute(self) -> Statistics:
        """Count, mean `(dimension,)` and unbiased covariance `(dimension, dimension)`, float64."""
        if self.count < 2:
            raise ValueError(f"features: got {int(self.count)} rows, need at least 2 for a covariance")
        mean = self.total / self.count
        upper = torch.addr(self.second_moment, mean, mean, alpha=-float(self.count)).div_(float(self.count - 1))
        covariance = upper.triu_() + torch.triu(upper, diagonal=1).T
        return int(self.count), mean, covariance


def feature_statistics(features: torch.Tensor) -> Statistics:
    """Count, mean and covariance of features that are all there."""
    statistics = FeatureStatistics(features.shape[1], sync_on_compute=False)
    for rows in features.split(ROWS):
        statistics.update(rows)
    return statistics.compute()


def require_samples(count: int, dimension: int, name: str) -> None:
    """Refuse a covariance of more dimensions than samples: its distance is bias, whatever the pictures show."""
    if count <= dimension:
        raise ValueError(
            f"{name}: {count} images for a Fréchet distance of {dimension} features; need more than {dimension}"
            " (10 times as many are better), or ask for the kernel distance (kd, KID), which is unbiased at any count"
        )


def frechet_distance(
    mean_a: torch.Tensor, covariance_a: torch.Tensor, mean_b: torch.Tensor, covariance_b: torch.Tensor
) -> float:
    """Squared Fréchet distance of two normal distributions, |m_a - m_b|² + tr(A + B - 2 (A B)^½).

    With A = L Lᵀ the eigenvalues of A B are those of the symmetric Lᵀ B L, so that no square root of a matrix and no
    complex number is needed. L is the Cholesky factor, or for a singular A the scaled eigenvectors.

    Args:
        mean_a, mean_b: `(dimension,)`.
        covariance_a, covariance_b: `(dimension, dimension)`, symmetric and positive semi-definite.
    """
    mean_a, covariance_a, mean_b, covariance_b = (x.double() for x in (mean_a, covariance_a, mean_b, covariance_b))
    factor, info = torch.linalg.cholesky_ex(covariance_a)
    if int(info) != 0:
        values, vectors = torch.linalg.eigh(covariance_a)
        factor = vectors * values.clamp_min(0).sqrt()
    eigenvalues = torch.linalg.eigvalsh(factor.T @ covariance_b @ factor)
    trace = covariance_a.trace() + covariance_b.trace() - 2 * eigenvalues.clamp_min(0).sqrt().sum()
    # Two equal distributions come out a rounding error beside zero, on either side.
    return max(0.0, ((mean_a - mean_b).square().sum() + trace).item())


def _compute(metric: Callable[[], Metric], updates: Sequence[tuple], seed: int) -> tuple[float, float]:
    """Mean and deviation of a metric of torchmetrics over its draws, from a seed of their own.

    The global generator is left as it was, and warnings about memory and about single splits are left out.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)
        measured = metric()
        for update in updates:
            measured.update(*update)
        torch.manual_seed(seed)
        mean, deviation = measured.compute()
    return mean.item(), deviation.item()


def kernel_distance(
    real: torch.Tensor, generated: torch.Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """Unbiased squared maximum mean discrepancy with the cubic kernel (KID, arXiv 1801.01401), in float64.

    Args:
        real, generated: `(count, dimension)`; need not be of one count.
        subsets: how many pairs of subsets the mean and the deviation are taken over.
        subset_size: images in each, cut to the smaller set.
        seed: of the draws.

    Returns:
        Mean and standard deviation over the subsets, the latter `None` for a single subset.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"features: got {len(real)} real and {len(generated)} generated rows, need 2 of each")
    size = min(subset_size, len(real), len(generated))
    # Each process has all features: torchmetrics must not put those of several together.
    metric = partial(KernelInceptionDistance, torch.nn.Identity(), subsets, size, sync_on_compute=False)
    mean, deviation = _compute(metric, [(real.double(), True), (generated.double(), False)], seed)
    return mean, deviation if subsets > 1 else None


def inception_score(logits: torch.Tensor, splits: int = 10, seed: int = 0) -> tuple[float, float | None]:
    """torchmetrics' Inception Score on given logits `(count, classes)`.

    Returns:
        Mean and deviation over the splits, the latter `None` for a single split.
    """
    if len(logits) < 2 * splits:
        raise ValueError(f"logits: got {len(logits)} rows, need at least {2 * splits} for {splits} splits")
    metric = partial(InceptionScore, torch.nn.Identity(), splits=splits, sync_on_compute=False)
    mean, deviation = _compute(metric, [(logits.double(),)], seed)
    return mean, deviation if splits > 1 else None


def _distances(a: torch.Tensor, b: torch.Tensor):
    """Euclidean distances `(up to ROWS, len(b))` of `a` to `b`, block by block, in float64."""
    b = b.double()
    for block in a.double().split(ROWS):
        yield torch.cdist(block, b)


def neighbour_radii(features: torch.Tensor, ks: Sequence[int]) -> torch.Tensor:
    """Distance `(count, len(ks))` of each row to its k-th nearest other row, for each k."""
    if len(features) <= max(ks):
        raise ValueError(
            f"features: got {len(features)} rows, need more than {max(ks)}, the neighbour asked for; use more images"
            " or a smaller k"
        )
    # A row is its own nearest, so the k-th nearest other is the one after.
    nearest = [block.topk(max(ks) + 1, dim=1, largest=False).values for block in _distances(features, features)]
    return torch.cat(nearest)[:, list(ks)]


def nearest_neighbours(queries: torch.Tensor, features: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances and row numbers, both `(len(queries), k)`, of the k nearest features of each query."""
    found = [block.topk(k, dim=1, largest=False) for block in _distances(queries, features)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def manifold_scores(
    real: torch.Tensor,
    generated: torch.Tensor,
    precision_k: int = 3,
    density_k: int = 5,
    real_radii: torch.Tensor | None = None,
) -> dict[str, float]:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    Args:
        real, generated: Features `(count, dimension)`.
        precision_k, density_k: The neighbour that sets a ball's radius; 3 and 5 are the papers' choices.
        real_radii: `neighbour_radii(real, (precision_k, density_k))`, if it is known already.

    Returns:
        `precision`: share of generated images inside some real image's ball; `recall`: the other way round;
        `density`: mean number of real balls a generated image lies in, over k (may exceed 1); `coverage`: share of
        real images with a generated one in their ball.
    """
    if real_radii is None:
        real_radii = neighbour_radii(real, (precision_k, density_k))
    real_precision, real_density = real_radii.unbind(dim=1)
    generated_precision = neighbour_radii(generated, (precision_k,))[:, 0]
    precise, balls, nearest = 0, 0, torch.full((len(real),), torch.inf, dtype=torch.float64)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    start = 0
    for distances in _distances(generated, real):
        stop = start + len(distances)
        precise += int((distances <= real_precision).any(dim=1).sum())
        recalled |= (distances <= generated_precision[start:stop, None]).any(dim=0)
        balls += int((distances < real_density).sum())
        nearest = torch.minimum(nearest, distances.amin(dim=0))
        start = stop
    return {
        "precision": precise / len(generated),
        "recall": recalled.double().mean().item(),
        "density": balls / (density_k * len(generated)),
        "coverage": (nearest < real_density).double().mean().item(),
    }
