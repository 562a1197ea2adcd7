"""Grids of samples, and the page of a run."""

import pytest

from brickwork.training.engine.page import curves, read_log, run_page
from brickwork.training.engine.previews import sample_labels


@pytest.mark.parametrize(
    ("classes", "count", "expected"),
    [
        (None, 3, [None] * 3),
        (1, 3, [0, 0, 0]),
        (3, 7, [0, 0, 0, 1, 1, 2, 2]),
        (4, 4, [0, 1, 2, 3]),
        (1000, 4, [0, 250, 500, 750]),
    ],
)
def test_labels_of_a_grid_are_spread_over_the_classes(classes, count, expected):
    assert sample_labels(classes, count) == expected


def test_the_page_survives_a_log_cut_short_and_values_that_are_not_finite(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        '{"images": 8, "time": 1, "train/loss": 2.0, "loss_at/sigma_1": 1}\n'
        '{"images": 16, "time": 2, "train/loss": Infinity}\n{"images": 24, "train/loss": 1.0}\n{"images": 3'
    )
    (tmp_path / "config.yaml").write_text("data: <script>")
    assert read_log(tmp_path / "log.jsonl")["train/loss"] == [(8, 2.0), (16, float("inf")), (24, 1.0)]
    page = run_page(tmp_path)
    assert page.count("data:image/png;base64") == 1 and "train/loss" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_curve_is_what_was_logged_and_levels_share_one():
    series = {
        "train/loss": [(0, 2.0), (10, 1.0)],
        "held_out_at/sigma_1": [(0, 3.0)],
        "held_out_at/sigma_2": [(0, 4.0)],
    }
    loss, levels = curves(series)
    assert loss.series == {"train/loss": ((0, 10), (2.0, 1.0))}
    assert levels.title == "held_out_at" and list(levels.series) == ["sigma_1", "sigma_2"]
