"""The study of series: its scores on cases that are known, its classical ways, and a table of every row."""

import importlib.util

import numpy as np
import pytest

from brickwork.training.studies import series, series_scores
from brickwork.training.studies.series_scores import autocorrelation_distance, crps, discriminative_score, scores
from brickwork.training.studies.series_ways import Sarimax, classical_ways, interpolate, seasonal_mean, seasonal_naive

statsmodels = pytest.mark.skipif(importlib.util.find_spec("statsmodels") is None, reason="needs statsmodels")
NAME = "linear interpolation"
TIME = np.arange(400)
DAYS = np.stack([np.sin(2 * np.pi * TIME / 12), np.cos(2 * np.pi * TIME / 12) + 0.5 * np.sin(2 * np.pi * TIME / 5)])


def test_the_score_of_an_ensemble_is_its_distance_less_half_its_spread():
    samples, truth = np.array([[0.0], [1.0], [4.0]]), np.array([2.0])
    distance, pairs = np.abs(samples - truth).mean(), np.abs(samples - samples.T).sum() / 6
    assert crps(samples, truth) == pytest.approx(distance - pairs / 2)
    assert crps(samples[:1], truth) == 2  # a single line: the absolute error
    assert scores(samples, np.array([np.nan, 2.0]) * np.ones((1, 2)))["mse"] == pytest.approx((5 / 3 - 2) ** 2)


def test_series_that_differ_are_told_apart_and_others_not(monkeypatch):
    random = np.random.default_rng(0)
    waves = np.stack([DAYS[:, start : start + 24] for start in random.integers(0, 360, 96)])
    noise = random.normal(size=waves.shape)
    assert autocorrelation_distance(waves[:48], waves[48:]) < 0.02 < 0.2 < autocorrelation_distance(waves, noise)
    monkeypatch.setattr(series_scores, "STEPS", 60)
    assert discriminative_score((waves[:48], waves[48:]), (noise[:48], noise[48:])) > 0.4
    assert discriminative_score((noise[:48], noise[48:]), (noise[1:48:2], noise[49::2])) < 0.25


def test_ways_without_a_model():
    history = DAYS[:, :60]
    assert np.allclose(seasonal_naive(12, 3, history, 12)[:, 0], DAYS[0, 60:72])  # no past errors
    known = history.copy()
    known[:, 5:7] = np.nan
    assert np.allclose(interpolate(known, 0)[0, :, 5], history[:, 4] + (history[:, 7] - history[:, 4]) / 3)
    assert np.allclose(seasonal_mean(12, known, 0)[0, 0], history[0])


@statsmodels
def test_sarimax_knows_both_periods_wherever_it_begins():
    noise = np.random.default_rng(0).normal(0, 0.05, DAYS.shape)
    model = Sarimax((12, 5), 64, (DAYS + noise)[:, :300])
    assert np.abs(model.forecast((DAYS + noise)[:, :343], 12).mean(0) - DAYS[:, 343:355]).max() < 0.1
    known = (DAYS + noise)[:, 317:353]
    known[:, 8:20] = np.nan
    filled = model.fill(known, 317)
    assert filled.shape == (64, 2, 36) and np.abs(filled[..., 8:20].mean(0) - DAYS[:, 325:337]).max() < 0.1
    assert np.allclose(filled[..., :8], known[:, :8], atol=1e-3)
    assert list(classical_ways((12,), 4, DAYS)["SARIMAX"]().fill(known[:, :24], 0).shape) == [4, 2, 24]


def test_a_table_has_every_way_and_both_folds(tmp_path, monkeypatch):
    for name, value in {"IMAGES": 16, "WINDOWS": 2, "SAMPLES": 2, "STEPS": 1, "DRAWN": 8, "SEEDS": (0,)}.items():
        monkeypatch.setattr(series, name, value)
    monkeypatch.setattr(series_scores, "STEPS", 1)
    monkeypatch.setattr(series, "classical_ways", lambda *given: {"interpolated": classical_ways(*given)[NAME]})
    assert series.main([str(tmp_path), "--sets", "synthetic"]) == 0
    table = (tmp_path / "series.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "denoiser, delays", "denoiser, periods", "interpolated", "training windows",
    ]  # fmt: skip
    assert rows[4].split("|")[2].strip() == "–" and float(rows[5].split("|")[-2]) <= 0.5
    series.main([str(tmp_path), "--sets", "synthetic"])  # nothing is computed twice
    assert (tmp_path / "series.md").read_text() == table
