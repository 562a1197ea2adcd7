"""Series drawn, filled in and gone on with."""

import math

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler

from brickwork import SeriesDenoiser, SubnetSchedule, TimeSeriesPipeline

NETWORK = {"block_out_channels": [8], "layers_per_block": 1}


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    denoiser = SeriesDenoiser(in_channels=2, length=24, periods=[6, 4], weights=[2, 1], network=NETWORK)
    for parameter in denoiser.parameters():  # a fresh one ends in zeros
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = TimeSeriesPipeline(
        denoiser.eval(), EDMEulerScheduler(sigma_data=1.0), mean=[5, -1], std=[2, 0.5], names=["a", "b"], step="h",
        num_inference_steps=2,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_series_are_drawn_in_the_units_of_the_data(pipe):
    first = pipe(3, 31, generator=seeded()).series
    assert first.shape == (3, 2, 31) and first.dtype == np.float64 and np.isfinite(first).all()
    latent = pipe(3, 31, generator=seeded(), output_type="latent").series.numpy()
    np.testing.assert_allclose(first, latent * np.array([[2], [0.5]]) + np.array([[5], [-1]]), rtol=1e-6)
    assert pipe().series.shape == (1, 2, 24)
    alone = pipe(1, 31, generator=[seeded(7)]).series
    np.testing.assert_allclose(pipe(2, 31, generator=[seeded(3), seeded(7)]).series[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", ["nan", "mask"])
def test_what_is_known_is_kept_exactly_and_read(pipe, given):
    known = np.random.default_rng(0).normal(5, 2, (2, 24))
    at = np.ones_like(known, dtype=bool)
    at[0, 5:9], at[1, 20:] = False, False
    asked = {"known": np.where(at, known, np.nan)} if given == "nan" else {"known": known, "mask": at}
    found = pipe(4, **asked, generator=seeded(), quantiles=[0.5])
    assert (found.series[:, at] == known[at]).all() and np.isfinite(found.series).all()
    assert found.quantiles.shape == (1, 2, 24) and (found.quantiles[0][at] == known[at]).all()
    assert found.series[:, ~at].std(axis=0).min() > 0
    other = pipe(4, known=np.where(at, known + 1, np.nan), generator=seeded()).series
    assert not np.allclose(other[:, ~at], found.series[:, ~at])
    each = np.stack([np.where(at, known + k, np.nan) for k in range(4)])
    assert (pipe(4, known=each).series[3][at] == (known + 3)[at]).all()


@pytest.mark.parametrize("steps, horizon", [(60, 5), (60, 30), (13, 7), (24, 12)])
def test_forecasts_of_any_length(pipe, steps, horizon):
    history = np.random.default_rng(1).normal(0, 1, (2, steps))
    history[1, 4] = np.nan
    found = pipe.forecast(history, horizon, n=5, quantiles=(0.1, 0.5, 0.9), generator=seeded())
    assert found.series.shape == (5, 2, horizon) and found.quantiles.shape == (3, 2, horizon)
    assert (np.diff(found.quantiles, axis=0) >= 0).all() and np.isfinite(found.series).all()
    again = pipe.forecast(history, horizon, n=5, generator=seeded())
    assert (again.series == found.series).all()


def test_several_networks_share_the_noise_levels(pipe):
    torch.manual_seed(1)
    small = SeriesDenoiser(in_channels=2, length=24, periods=[6], weights=[1], network=NETWORK).eval()
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    alone = TimeSeriesPipeline(small, pipe.scheduler, **{key: pipe.config[key] for key in ("mean", "std", "names")})
    alone.set_progress_bar_config(disable=True)
    drawn = [
        one(2, num_inference_steps=3, generator=seeded(), **further).series
        for one, further in (
            (pipe, {"networks": {"small": small}, "subnet_schedule": SubnetSchedule(("small",))}),
            (alone, {}),
            (pipe, {"networks": {"small": small}, "subnet_schedule": SubnetSchedule(("full", "small"), (1.0,))}),
            (pipe, {}),
        )
    ]
    assert (drawn[0] == drawn[1]).all()
    assert not any(np.allclose(drawn[2], other) for other in (drawn[1], drawn[3]))
    with pytest.raises(ValueError, match="`subnet` is 'small'; choose one of full"):
        pipe(2, subnet_schedule=SubnetSchedule(("small",)))


def test_a_saved_pipeline_is_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    expected = pipe(2, generator=seeded()).series
    for loaded in (TimeSeriesPipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)):
        loaded.set_progress_bar_config(disable=True)
        assert isinstance(loaded, TimeSeriesPipeline) and loaded.config.names == ["a", "b"]
        assert loaded.transformer.folding.weights == pytest.approx([2 / 3, 1 / 3])
        np.testing.assert_array_equal(loaded(2, generator=seeded()).series, expected)
    network = SeriesDenoiser.from_pretrained(tmp_path / "transformer")
    assert network.config.periods == [6, 4]
    assert 0 < network.subnets(24)["full"] < network.subnets(48)["full"]


def test_a_delay_embedding_folds_in_place_of_periods(pipe, tmp_path):
    denoiser = SeriesDenoiser(in_channels=2, length=24, delay=(3, 8), network=NETWORK)
    denoiser.denoiser.load_state_dict(pipe.transformer.denoiser.state_dict())  # the same network
    other = TimeSeriesPipeline(denoiser.eval(), pipe.scheduler, num_inference_steps=2)
    other.set_progress_bar_config(disable=True)
    other.save_pretrained(tmp_path)
    loaded = TimeSeriesPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    known = np.arange(48.0).reshape(2, 24)
    known[0, 5:9] = np.nan
    drawn = other(2, known=known, generator=seeded()).series
    assert (drawn[:, np.isfinite(known)] == known[np.isfinite(known)]).all() and np.isfinite(drawn).all()
    np.testing.assert_array_equal(loaded(2, known=known, generator=seeded()).series, drawn)
    assert loaded.forecast(known[:, :12], 7, n=2).series.shape == (2, 2, 7)
    with pytest.raises(ValueError, match="`length` has 7 steps, fewer than a column of the delay embedding; give"):
        loaded(1, 7)


def test_one_variable_may_be_a_row(tmp_path):
    denoiser = SeriesDenoiser(length=12, periods=[5], network=NETWORK)
    pipe = TimeSeriesPipeline(denoiser, EDMEulerScheduler(sigma_data=1.0))
    pipe.set_progress_bar_config(disable=True)
    known = [1.0, 2.0, math.nan, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    found = pipe(2, known=known, num_inference_steps=1).series
    assert found.shape == (2, 1, 10) and found[0, 0, 3] == 4.0


SERIES = np.ones((2, 24))
ENDS = np.ones((2, 24))
ENDS[1, :3] = ENDS[1, -2:] = np.nan


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: p(1, 11), "`length` has 11 steps, fewer than two cycles of the period 6; give at least 12"),
        (lambda p: p(1, known=np.ones((2, 8))), "`known` has 8 steps"),
        (lambda p: p(1, known=ENDS), r"gaps at both ends of 'b' \(3 steps at the beginning, 2 at the end\)"),
        (lambda p: p(1, known=np.ones(24)), r"`known` has shape \(24,\); give \(2, length\): a row for each of a, b"),
        (lambda p: p(1, known=SERIES * np.inf), "infinite"),
        (lambda p: p(1, known=[["x"] * 24] * 2), "`known` is no array of numbers"),
        (lambda p: p(3, known=np.ones((2, 2, 24))), "`known` has 2 series for `n` = 3"),
        (lambda p: p(1, 20, known=SERIES), "`length` is 20, but `known` has 24 steps"),
        (lambda p: p(1, mask=SERIES), "`mask` was given without `known`"),
        (lambda p: p(1, known=SERIES, mask=np.ones((2, 12))), "`mask` has shape"),
        (lambda p: p(1, known=SERIES * np.nan, mask=SERIES), "48 NaN that they are known"),
        (lambda p: p(0), "`n` is 0"),
        (lambda p: p(1, quantiles=[1.5]), "`quantiles` is"),
        (lambda p: p(1, num_inference_steps=0), "`num_inference_steps` is 0"),
        (lambda p: p(1, output_type="pil"), "`output_type` is 'pil'"),
        (lambda p: p.forecast(SERIES[:, :10], 4), "`history` has 10 steps"),
        (lambda p: p.forecast(ENDS, 4), "`history` ends with a gap in 'b'"),
        (lambda p: p.forecast(SERIES, 0), "`horizon` is 0"),
        (lambda p: TimeSeriesPipeline(p.transformer, p.scheduler, std=[1.0]), "`std` has 1 entries for 2 variables"),
        (lambda p: TimeSeriesPipeline(p.transformer, p.scheduler, std=[1.0, 0.0]), "finite numbers"),
        (lambda p: SeriesDenoiser(length=20, periods=[12]), "fewer than two cycles of the period 12"),
        (lambda p: SeriesDenoiser(length=20, delay=(3, 24)), "`length` has 20 steps, fewer than a column"),
        (lambda p: SeriesDenoiser(delay=(3,)), "`delay` is .* give two whole numbers"),
        (lambda p: SeriesDenoiser(num_classes=3), "series have no classes"),
        (lambda p: SeriesDenoiser(network={"widths": 3}), "`network` has a value that BlockUNet2DModel does not take"),
        (lambda p: p.transformer(torch.zeros(1, 3, 24), 1.0), r"reads \(batch, 2, length\)"),
        (lambda p: p.transformer(torch.zeros(1, 2, 24), 1.0, known=torch.zeros(1, 2, 24)), "belong together"),
    ],
)
def test_what_does_not_go_is_told(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        call(pipe)


def test_values_that_are_not_known_are_not_read(pipe):
    sample, known = torch.randn(2, 2, 24, generator=seeded()), torch.randn(2, 2, 24, generator=seeded(1))
    mask = (torch.rand(2, 2, 24, generator=seeded(2)) > 0.5).float()
    with torch.no_grad():
        first = pipe.transformer(sample, 1.0, known=known, mask=mask).sample
        other = pipe.transformer(sample, 1.0, known=torch.where(mask > 0, known, math.nan), mask=mask).sample
    assert torch.equal(first, other)
