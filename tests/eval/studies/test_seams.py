"""Edges at window borders against those around them: pictures whose seams are known, and the command."""

import json

import numpy as np
import pytest

from brickwork.eval.studies.seams import border_gradients, border_lines, parse_size, seam_ratio, table, window_lines


def pictures(height=32, width=48, count=6, seam=0.0, axis=2, window=16, seed=0):
    """Smooth noise, with a step of `seam` at every border of windows across an axis."""
    random = np.random.default_rng(seed)
    images = np.cumsum(random.standard_normal((count, height, width, 3)), axis=axis)
    steps = np.arange(images.shape[axis]) // window * seam
    return images + steps.reshape([-1 if i == axis else 1 for i in range(4)])


def test_pictures_without_seams_have_a_ratio_of_one():
    measured = seam_ratio(pictures(count=40), 16, 4)
    assert abs(measured["ratio"] - 1) < 0.03
    assert measured["low"] < 1 < measured["high"]


@pytest.mark.parametrize("axis", [1, 2])
def test_seams_of_either_direction_show(axis):
    size = (32, 16) if axis == 1 else (16, 32)
    plain, seamed = (seam_ratio(pictures(*size, seam=seam, axis=axis), 16, 4) for seam in (0.0, 3.0))
    assert seamed["ratio"] > 2 > 1.2 > plain["ratio"]
    assert seamed["low"] > 1
    assert seamed["low"] < seamed["ratio"] < seamed["high"]


def test_the_ratio_is_that_of_the_gradients_by_hand():
    images = pictures(16, 40, count=3)
    across = np.abs(np.diff(images, axis=2)).mean(axis=3).sum(axis=1)  # (N, lines)
    sums = border_gradients(images, 16, 4)
    np.testing.assert_allclose(sums[:, 0], across[:, [15, 31]].sum(axis=1))
    np.testing.assert_allclose(sums[:, 1], across[:, [11, 19, 27, 35]].sum(axis=1) / 2)


def test_lines_around_borders():
    assert border_lines(48, 16, 4) == {16: [12, 20], 32: [28, 36]}
    assert border_lines(17, 16, 4) == {16: [12]}
    assert border_lines(16, 16, 4) == {}
    assert border_lines(192, 64, 8)[64] == [48, 56, 72, 80]
    assert border_lines(40, 16, 8)[16] == [8, 24]


def test_lines_of_a_network():
    assert window_lines({"window_sizes": [64, 8], "patch_sizes": [4, 2]}) == (64, 8)
    assert window_lines({"window_sizes": [4, 16, 64], "patch_sizes": [2, 8, 2]}) == (64, 16)
    assert window_lines({"window_sizes": [32], "patch_sizes": [4]}, scale=8) == (256, 32)


def test_pictures_of_one_colour_have_no_ratio():
    assert seam_ratio(np.ones((3, 16, 32, 3)), 16, 4) == {"ratio": None, "low": None, "high": None}


def test_sizes_are_height_first():
    assert parse_size("64x192") == (64, 192)
    for text in ("64", "64x", "64 x 128", "axb"):
        with pytest.raises(ValueError, match="such as 64x192"):
            parse_size(text)


def test_the_table_has_a_line_for_each_size():
    row = {"height": 8, "width": 16, "ratio": 1.25, "low": 1.0, "high": 1.5, "operations": 2e9}
    rows = [row | {"windows": "fixed"}, row | {"windows": "shifted", "ratio": None, "low": None, "high": None}]
    assert table(rows).markdown().splitlines()[2] == "| 8 × 16 | 1.25 (1.00–1.50) | no edges | 2.0 | 2.0 |"


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder with a tiny network of random weights."""
    import torch

    from brickwork import EDMHeunScheduler, LegoPipeline, LegoTransformer2DModel

    torch.manual_seed(0)
    stack = {"sample_size": 8, "window_sizes": [8, 4], "patch_sizes": [2, 1], "num_layers": [1, 1]}
    model = LegoTransformer2DModel(**stack, hidden_sizes=8, num_attention_heads=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    LegoPipeline(model, EDMHeunScheduler()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_the_command_writes_table_plot_and_pictures(folder, tmp_path, capsys):
    from brickwork.cli import main

    words = [
        "seams",
        str(folder),
        "--sizes",
        "8x20",
        "17x8",
        "--count",
        "2",
        "--steps",
        "2",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    result = json.loads((tmp_path / "out" / "seams.json").read_text())
    assert [(row["height"], row["width"], row["windows"]) for row in result["rows"]] == [
        (8, 20, "fixed"), (8, 20, "shifted"), (17, 8, "fixed"), (17, 8, "shifted"),
    ]  # fmt: skip
    assert result["rows"][0]["operations"] == result["rows"][1]["operations"] > 0
    assert result["settings"]["window"] == 8 and result["settings"]["lines"] == 4
    for name in ("seams.png", "fixed-8x20.png", "shifted-17x8.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    assert "| 8 × 20 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "8x8"], "8x8, which has no border of windows of 8 pixels"),
        (["--windows", "moving"], "`--windows` is 'moving'; choose one of"),
        (["--count", "1"], "draw at least 2"),
        (["--sizes", "large"], "such as 64x192"),
    ],
)
def test_the_command_refuses_what_cannot_be_measured(folder, tmp_path, capsys, words, message):
    from brickwork.cli import main

    assert main(["seams", str(folder), "-o", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
