"""How networks grow with a budget, and how hard their runs are held back."""

import pytest
import yaml

from brickwork.cli import main
from brickwork.training.config.config import load_config
from brickwork.training.config.scaling import depth_share, grow, grown_size, regularisation, scaled

UNET = {"layers_per_block": [1, 2, 1], "block_out_channels": [32, 64, 128], "time_embed_dim": 128}


def count(config: dict, side: int) -> tuple[int, int]:
    """As if every layer cost its width squared a pixel."""
    weights = sum(layers * dim**2 for layers, dim in zip(config["layers_per_block"], config["block_out_channels"]))
    return weights * side**2, weights


def test_short_runs_grow_in_width_and_long_ones_in_depth():
    assert [depth_share(epochs) for epochs in (1, 10, 1000**0.5, 100, 350)] == pytest.approx([0, 0, 0.5, 1, 1])
    start, _ = count(UNET, 32)
    short, long = (grow("BlockUNet2DModel", UNET, 32, 4 * start, epochs, count) for epochs in (5, 350))
    assert short.config["block_out_channels"] == [64, 128, 256] and short.config["layers_per_block"] == [1, 2, 1]
    assert long.config["layers_per_block"] == [4, 8, 4] and long.config["block_out_channels"] == [32, 64, 128]
    assert short.operations == long.operations == 4 * start and short.config["time_embed_dim"] == 256
    assert scaled("BlockUNet2DModel", UNET | {"layers_per_block": [1, 0, 1]}, 3, 1)["layers_per_block"] == [3, 0, 3]
    assert "depth" in long.reasons[1] and short.size == 32


@pytest.mark.parametrize("times", [0.4, 1, 1.7, 3.3, 10])
@pytest.mark.parametrize("epochs", [1, 30, 500])
def test_the_budget_is_kept(times, epochs):
    start, _ = count(UNET, 32)
    grown = grow("BlockUNet2DModel", UNET, 32, times * start, epochs, count)
    assert grown.operations <= times * start and (grown.operations, grown.parameters) == count(grown.config, 32)


def test_resolution_grows_with_the_power_of_the_papers_family():
    assert grown_size(160, 128 / 4.6, 1000, 8) == 320 and grown_size(160, 128 / 4.6, 256, 8) == 256
    assert grown_size(64, 0.5, 128, 8) == 64
    start, _ = count(UNET, 32)
    larger = grow("BlockUNet2DModel", UNET, 32, 40 * start, 350, count, largest=64)
    assert larger.size == 64 and larger.operations <= 40 * start


def test_heads_keep_their_width():
    lego = {"num_layers": (4, 2), "hidden_sizes": (128, 64), "num_attention_heads": (4, 2)}
    assert scaled("LegoTransformer2DModel", lego, 1, 2)["num_attention_heads"] == [8, 4]
    assert scaled("LegoTransformer2DModel", lego | {"num_attention_heads": 4}, 1, 0.5)["num_attention_heads"] == [2, 2]
    dit = {"num_layers": 4, "hidden_size": 128, "attention_head_dim": 64}
    assert scaled("BlockTransformer2DModel", dit, 2, 1.4) == dit | {"num_layers": 8, "hidden_size": 192}


def test_more_is_held_back_in_larger_networks_and_longer_runs():
    values = [regularisation(*given) for given in ((1e6, 5e6, 1e6), (1e7, 3e7, 1e6), (1e8, 3.5e8, 1e6))]
    assert [held["drop_path"] for held in values] == [0, pytest.approx(0.024, abs=1e-3), 0.1]
    # Decay grows too, but is 0.4 of itself beside stochastic depth.
    assert values[0]["weight_decay"] == 0 and values[2]["weight_decay"] == pytest.approx(0.004)
    assert regularisation(1e6, 3.5e8, 1e6)["weight_decay"] == 0.01
    # EDM2's widths at its smallest and its largest network.
    for parameters, width in ((125e6, 0.135), (1523e6, 0.070)):
        found = regularisation(parameters, 10**9, 10**6)["half_life_images"]
        assert found == pytest.approx(width * 0.6931 * 10**9, rel=0.01)


def test_the_command_writes_what_the_trainer_takes(tmp_path, capsys):
    output = tmp_path / "grown.yaml"
    command = ["scale", "tiny-dit", "--budget", "1.5x", "--images", "200000", "--pictures", "1000", "-o", str(output)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "200 epochs: depth" in said and "proposed" in said
    config = load_config(output, [])
    assert config.model.config["num_layers"] == 6 and config.model.config["hidden_size"] == 128
    assert (
        config.ema.half_life_images > 0 and yaml.safe_load(output.read_text())["optimizer"]["learning_rate"] == 0.001
    )
    assert main(command) == 2
    assert "there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["tiny-dti", "--budget", "2x"], "did you mean tiny-dit"),
        (["tiny-dit", "--budget", "much"], "`--budget` is 'much'; give operations"),
        (["tiny-dit", "--budget", "0x"], "`--budget` is '0x'"),
        (["tiny-dit", "--budget", "10"], "the smallest network of this shape at 32 px needs"),
        (["tiny-dit", "--budget", "2x", "--images", "0"], "`--images` is 0"),
    ],
)
def test_bad_input(words, message, capsys):
    assert main(["scale", *words]) == 2
    assert message in capsys.readouterr().err
