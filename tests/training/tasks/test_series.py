"""A run on series: from a table to a pipeline that goes on with it."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from brickwork import TimeSeriesPipeline, cli
from brickwork.eval.sets.series import SeriesTable
from brickwork.training import train_series
from brickwork.training.data.series import SeriesWindows, draw_mask, window_starts


@pytest.fixture
def data(tmp_path):
    time = np.arange(400)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 400))
    table = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=400, freq="h")})
    table["a"] = np.sin(2 * np.pi * time / 12) + noise[0] + 100
    table["b"] = 3 * np.cos(2 * np.pi * time / 5) + noise[1]
    table.loc[50:52, "a"] = np.nan
    table.to_csv(tmp_path / "s.csv", index=False)
    return tmp_path / "s.csv"


def words(data, **overrides):
    values = {
        "data.source": data, "data.length": 32, "data.held_out": 0.25, "run.output_dir": data.parent / "run",
        "run.total_images": 16, "run.batch_size": 8, "run.sample_images": 16, "run.checkpoint_images": 8,
        "run.log_images": 8, "run.mixed_precision": "no", "samples.count": 1, "samples.steps": 1,
        "model.config": "{block_out_channels: [8], layers_per_block: 1}",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (values | overrides).items()]


def test_a_run_leaves_what_forecasts(data, capsys):
    assert train_series.main(words(data)) == 0
    assert "variables a, b; periods" in capsys.readouterr().out
    folder = data.parent / "run"
    pipe = TimeSeriesPipeline.from_pretrained(folder / "pipeline")
    assert set(pipe.transformer.config.periods) == {12, 5} and pipe.config.names == ["a", "b"]
    assert pipe.config.mean[0] == pytest.approx(100, abs=0.1) and pipe.config.std[1] == pytest.approx(2.1, abs=0.1)
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert sum("held_out/loss" in line for line in logged) == 1

    command = ["forecast", str(data), "--model", str(folder / "pipeline"), "-n", "3", "-o", str(data.parent / "f.csv")]
    assert cli.main([*command, "--horizon", "20", "--quantiles", "0.25", "0.75"]) == 0
    found = pd.read_csv(data.parent / "f.csv", parse_dates=["time"])
    assert list(found.columns) == ["time", "variable", "mean", "q0.25", "q0.75"] and len(found) == 40
    assert found.time[0] == pd.Timestamp("2024-01-17 16:00") and (found["q0.25"] <= found["q0.75"]).all()
    assert cli.main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--fill", "--overwrite"]) == 0
    filled = pd.read_csv(data.parent / "f.csv", parse_dates=["time"])
    assert list(filled.variable) == ["a"] * 3 and filled.time[0] == pd.Timestamp("2024-01-03 02:00")


def test_going_on_changes_no_bit(data):
    for name, totals in (("whole", [24]), ("parts", [8, 24])):
        for total in totals:
            given = {"run.output_dir": data.parent / name, "run.total_images": total, "samples.count": 0}
            assert train_series.main(words(data, **given)) == 0
    first, second = (
        TimeSeriesPipeline.from_pretrained(data.parent / name / "pipeline").transformer.state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "override, message",
    [
        ({"data.length": 301}, "has no such stretch without gaps"),
        ({"data.length": 8, "model.periods": "[5]"}, "fewer than two cycles of the period 5"),
        ({"model.delay": "[3, 40]"}, "`length` has 32 steps, fewer than a column"),
        ({"model.network": "UNet"}, "`network_type` is 'UNet'"),
        ({"model.type": "LegoTransformer2DModel"}, "`model.type`"),
        ({"objective.gaps": 0.9}, "may be at most 1"),
        ({"data.columns": "[c]"}, "`columns` has 'c'"),
        ({"objective.options": "{sigma: 1}"}, "`objective.options`"),
        ({"metrics.every_images": 5}, "`metrics.every_images` is 5"),
    ],
)
def test_what_does_not_go_is_one_line(data, override, message, capsys):
    assert train_series.main(words(data, **override)) == 2
    assert message in capsys.readouterr().err
    assert not (data.parent / "run").exists()


def test_windows_and_masks():
    values = np.arange(40.0).reshape(2, 20)
    values[0, 9] = np.nan
    assert window_starts(values, 8).tolist() == [0, 1, 10, 11, 12]
    assert not len(window_starts(values, 11)) and not len(window_starts(values, 30))
    windows = SeriesWindows(SeriesTable(values, ("a", "b"), None, None, "s"), 8, 20, seed=0)
    sample = windows[3]
    assert torch.equal(sample["image"], windows[3]["image"]) and sample["mask"].shape == (2, 8)
    constant = SeriesTable(np.ones((1, 20)), ("a",), None, None, "s")
    with pytest.raises(ValueError, match="the same number everywhere in 'a'"):
        SeriesWindows(constant, 8, 20, seed=0)
    random = np.random.default_rng(0)
    masks = [draw_mask(random, 2, 20, 0.4, 0.4) for _ in range(300)]
    shares = np.array([mask.mean() for mask in masks])
    assert 0.1 < (shares == 0).mean() < 0.3 and (shares == 1).mean() < 0.05
    assert 0.3 < np.mean([m[:, :10].all() and not m[:, -1].any() for m in masks])
    nothing = [draw_mask(random, 1, 20, 0, 0).sum() for _ in range(5)]
    assert nothing == [0] * 5
