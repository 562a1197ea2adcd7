"""Every metric against a formula written out independently, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance

from brickwork.eval.metrics.distances import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_scores,
    nearest_neighbours,
    neighbour_radii,
    require_samples,
)


def features(seed: int, count: int = 200, dimension: int = 12, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, dimension, generator=generator) @ mixing + shift


def fd(a: torch.Tensor, b: torch.Tensor) -> float:
    return frechet_distance(*feature_statistics(a)[1:], *feature_statistics(b)[1:])


def test_frechet_distance_equals_the_formula_with_a_matrix_square_root():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    a, b = features(0).double().numpy(), features(1, shift=0.3).double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(cov_a @ cov_b))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert fd(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_commuting_covariances_has_a_closed_form():
    scales_a, scales_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.1, 0.5]).double()
    mean_a, mean_b = torch.zeros(3).double(), torch.tensor([1.0, -2.0, 0.0]).double()
    expected = 5.0 + (scales_a - scales_b).square().sum().item()
    found = frechet_distance(mean_a, torch.diag(scales_a**2), mean_b, torch.diag(scales_b**2))
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_equals_torchmetrics_for_the_same_features():
    a, b = features(0, 500), features(1, 400, shift=0.2)

    class Identity(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x

    metric = FrechetInceptionDistance(feature=Identity())
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert fd(a, b) == pytest.approx(metric.compute().item(), rel=1e-9)


def test_frechet_distance_takes_singular_covariances():
    """A dead feature has no Cholesky factor; the distance is that of the others."""
    a, b = features(0), features(1, shift=0.3)
    dead = torch.zeros(len(a), 1)
    assert fd(torch.cat([a, dead], 1), torch.cat([b, dead], 1)) == pytest.approx(fd(a, b), rel=1e-9)
    assert fd(torch.cat([dead, a], 1), torch.cat([dead, b], 1)) == pytest.approx(fd(a, b), rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero_and_it_is_symmetric():
    a, b = features(0), features(1)
    assert 0.0 <= fd(a, a) < 1e-9
    assert fd(a, b) == pytest.approx(fd(b, a), rel=1e-9)


@given(st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=20)
def test_statistics_do_not_depend_on_how_the_features_are_cut(pieces, seed):
    rows = features(seed, 100, 700 if seed % 5 == 0 else 5) + 50.0
    whole, parts = FeatureStatistics(rows.shape[1]), FeatureStatistics(rows.shape[1])
    whole.update(rows)
    for piece in rows.chunk(pieces):
        parts.update(piece)
    count, mean, covariance = parts.compute()
    assert count == 100
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance, torch.cov(rows.double().T), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(covariance, whole.compute()[2], rtol=1e-10, atol=1e-10)


def test_statistics_refuse_features_that_mean_nothing():
    rows = features(0, 10)
    rows[3, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 10 rows are not finite"):
        FeatureStatistics(12).update(rows)
    with pytest.raises(ValueError, match=r"need \(count, 5\)"):
        FeatureStatistics(5).update(features(0, 10))
    with pytest.raises(ValueError, match="got 1 rows, need at least 2"):
        feature_statistics(features(0, 1))


@pytest.mark.parametrize("count, refused", [(11, True), (12, True), (13, False)])
def test_no_more_samples_than_features_are_refused_and_the_kernel_distance_offered(count, refused):
    if refused:
        with pytest.raises(ValueError, match=rf"{count} images .* 12 features.*kernel distance"):
            require_samples(count, 12, "samples")
    else:
        require_samples(count, 12, "samples")


def written_out_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n = len(x)
    total = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return total - 2 * sum(kernel(x[i], y[j]) for i in range(n) for j in range(n)) / n**2


def test_kernel_distance_equals_the_sum_written_out():
    a, b = features(0, 30), features(1, 30, shift=0.3)
    mean, spread = kernel_distance(a, b, subsets=3, subset_size=30)
    assert mean == pytest.approx(written_out_kernel_distance(a.double().numpy(), b.double().numpy()), rel=1e-9)
    assert spread == pytest.approx(0.0, abs=1e-9)  # subsets of everything are all alike


def test_kernel_distance_depends_on_its_own_seed_alone():
    a, b = features(0, 80), features(1, 60)
    torch.manual_seed(1)
    first = kernel_distance(a, b, subsets=5, subset_size=20, seed=3)
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), following)
    assert kernel_distance(a, b, subsets=5, subset_size=20, seed=3) == first
    assert kernel_distance(a, b, subsets=5, subset_size=20, seed=4) != first


def test_inception_score_equals_the_formula():
    logits = features(0, 60)
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    marginal = probabilities.mean(0)
    expected = np.exp(np.mean(np.sum(probabilities * np.log(probabilities / marginal), axis=1)))
    assert inception_score(logits, splits=1) == (pytest.approx(expected, rel=1e-9), None)
    assert inception_score(logits, splits=3, seed=1) == inception_score(logits, splits=3, seed=1)
    with pytest.raises(ValueError, match="need at least 62"):
        inception_score(logits, splits=31)


def written_out_manifold(real: np.ndarray, fake: np.ndarray, precision_k: int, density_k: int) -> dict:
    def distance(a, b):
        return np.sqrt(np.sum((a - b) ** 2))

    def radius(rows, i, k):
        return sorted(distance(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    r3 = [radius(real, i, precision_k) for i in range(len(real))]
    f3 = [radius(fake, i, precision_k) for i in range(len(fake))]
    r5 = [radius(real, i, density_k) for i in range(len(real))]
    d = np.array([[distance(f, r) for r in real] for f in fake])
    return {
        "precision": np.mean([any(d[i, j] <= r3[j] for j in range(len(real))) for i in range(len(fake))]),
        "recall": np.mean([any(d[i, j] <= f3[i] for i in range(len(fake))) for j in range(len(real))]),
        "density": sum(d[i, j] < r5[j] for i in range(len(fake)) for j in range(len(real))) / (density_k * len(fake)),
        "coverage": np.mean([min(d[:, j]) < r5[j] for j in range(len(real))]),
    }


@pytest.mark.parametrize("precision_k, density_k", [(3, 5), (1, 2)])
def test_manifold_scores_equal_brute_force(precision_k, density_k):
    real, fake = features(0, 40, 4), features(1, 35, 4, shift=0.8)
    expected = written_out_manifold(real.double().numpy(), fake.double().numpy(), precision_k, density_k)
    found = manifold_scores(real, fake, precision_k, density_k)
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0 < found["precision"] < 1 and 0 < found["coverage"] < 1  # or the comparison would show nothing


def test_manifold_scores_of_more_rows_than_a_block(monkeypatch):
    real, fake = features(0, 2100, 2), features(1, 2070, 2, shift=0.5)
    found = manifold_scores(real, fake)
    distances = torch.cdist(fake.double(), real.double())
    radii = torch.cdist(real.double(), real.double()).kthvalue(4, dim=1).values
    assert found["precision"] == pytest.approx((distances <= radii).any(1).double().mean().item(), rel=1e-12)
    fakes = torch.cdist(fake.double(), fake.double()).kthvalue(4, dim=1).values
    assert found["recall"] == pytest.approx((distances <= fakes[:, None]).any(0).double().mean().item(), rel=1e-12)


def test_neighbours_are_found_in_order_and_a_row_is_not_its_own():
    rows = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    distances, indices = nearest_neighbours(torch.tensor([[3.0, 3.0]]), rows, k=2)
    assert indices.tolist() == [[2, 3]]
    assert distances.tolist() == [[1.0, pytest.approx(13**0.5)]]
    radii = neighbour_radii(rows, (1, 3))
    assert radii[:, 0].tolist() == [0.0, 0.0, pytest.approx(18**0.5), 1.0]
    assert radii[:, 1].tolist() == [5.0, 5.0, 5.0, pytest.approx(18**0.5)]
    with pytest.raises(ValueError, match="need more than 4"):
        neighbour_radii(rows, (1, 4))
