"""The experiment with other bricks counts what its runs do, and scores as `paired_loss` does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from brickwork import EDMHeunScheduler, LegoPipeline, LegoTransformer2DModel
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.config.config import load_config
from brickwork.training.studies import other_bricks
from brickwork.training.studies.other_bricks import CONFIG, RUNS, losses_of, overrides_of, table, training_operations
from brickwork.training.tasks.backbones import TrainedOn, build_model
from brickwork.training.tasks.brick_by_brick import stages_of

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Every run's configuration and network, before its first step."""
    folder, built = tmp_path_factory.mktemp("runs"), {}
    for name in RUNS:
        config = load_config(CONFIG, overrides_of(name, "data", folder))
        model = build_model(config.model, config.objective, TrainedOn(["faces"], 32, 3))
        pipeline = LegoPipeline(transformer=model, scheduler=EDMHeunScheduler())
        pipeline.save_pretrained(folder / name / "run" / "pipeline")
        built[name] = config, model
    return built


def test_the_stages_counted_are_those_of_the_runs(networks):
    for name, (config, model) in networks.items():
        stages = [
            (stage.end - stage.start, stage.learns, stage.runs or tuple(range(model.num_bricks)))
            for stage in stages_of(config.objective, model, config.run.total_images, config.model.comes_trained)
        ]
        assert tuple(stages) == RUNS[name].stages
        assert config.run.total_images == sum(stage[0] for stage in stages)


def test_the_plain_stack_has_the_operations_of_the_denoiser_and_the_brick(networks):
    costs = {name: list(model.subnets(32, 32).values())[-1] for name, (_, model) in networks.items()}
    assert costs["plain"] == pytest.approx(costs["with-brick"], rel=0.01)
    both = {name: networks[name][1] for name in ("plain", "one-by-one")}
    spent = {
        name: training_operations(name, [brick.operations(32, 32) for brick in model.bricks])
        for name, model in both.items()
    }
    assert spent["one-by-one"] == pytest.approx(spent["plain"], rel=0.01)


def test_operations_of_a_part_of_a_run():
    assert training_operations("one-by-one", (10, 1), 30000) == 30000 * 30
    assert training_operations("one-by-one", (10, 1), 30001) == 30000 * 30 + 13
    assert training_operations("with-brick", (10, 1)) == 12000 * 13


def test_losses_of_every_image_average_to_the_paired_loss():
    torch.manual_seed(0)
    model = LegoTransformer2DModel(
        sample_size=8,
        window_sizes=[8, 4],
        patch_sizes=[4, 2],
        num_layers=[1, 1],
        hidden_sizes=8,
        num_attention_heads=2,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pairs, objective = PairedSet.from_images(torch.rand(3, 3, 8, 8) * 2 - 1, None), EDMObjective()
    losses, expected = losses_of(model, pairs, objective), paired_loss(model, pairs, objective)
    assert losses.shape == (2, 8, 3)
    np.testing.assert_allclose(losses.mean(axis=(1, 2)), expected["per_estimate"], rtol=1e-6)
    np.testing.assert_allclose(losses[-1].mean(axis=1), list(expected["per_level"].values()), rtol=1e-6)


def test_the_table():
    row = {
        "run": "plain", "label": "plain", "operations": 3e6, "images": 1000, "training_operations": 2e12,
        "loss": 0.25, "difference": -0.01, "standard_error": 0.002, "per_level": [0.5, 0.125], "training_loss": 0.24,
    }  # fmt: skip
    lines = table({"sigmas": [0.1, 2.0], "rows": [row]}).markdown().splitlines()
    assert lines[2] == "| plain | 3 | 1,000 | 2.0 | 0.2400 | 0.2500 | -0.0100 ± 0.0020 | 0.500 | 0.125 |"
    assert {line.count("|") for line in lines} == {10}


def test_the_command_trains_scores_and_tells(tmp_path, monkeypatch, forked_cells, capsys):
    """All six runs and the report, on a few images of tiny networks."""
    windows = "window_sizes: [8, 4], patch_sizes: [2, 2]"
    unet = (
        "{class_name: UNet2DModel, prediction_type: v_prediction, config: {sample_size: 8, attention_head_dim: 4, "
        "block_out_channels: [4, 8], down_block_types: [DownBlock2D, DownBlock2D], "
        "up_block_types: [UpBlock2D, UpBlock2D], layers_per_block: 1, norm_num_groups: 2}}"
    )
    models = {
        "denoiser": f"{{pretrained_brick: {unet}, window_sizes: [8], patch_sizes: [2], num_layers: [0]}}",
        "with-brick": f"{{{windows}, num_layers: [0, 1], hidden_sizes: [0, 8], num_attention_heads: [0, 2]}}",
        "plain": f"{{{windows}, num_layers: [1, 1], hidden_sizes: 8, num_attention_heads: 2}}",
    }
    models |= {"thawed": models["with-brick"], "one-by-one": models["plain"]}
    shorter = {"one-by-one": ["objective.brick_images=[16, 16]", "run.total_images=32"]}
    real = other_bricks.overrides_of

    def tiny(name: str, data: str, output) -> list[str]:
        model = [f"model.config={models[name]}"] if name in models else []
        short = shorter.get(name, ["run.total_images=16"])
        return [*real(name, data, output), "data.size=8", "run.sample_images=8", "samples.count=0", *model, *short]

    monkeypatch.setattr(other_bricks, "overrides_of", tiny)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # CUDA does not survive a fork
    config = other_bricks.load_config
    monkeypatch.setattr(other_bricks, "load_config", lambda path, values: config(path, [*values, "data.size=8"]))
    assert other_bricks.main([str(SAMPLE), str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "other-bricks.md").read_text()
    assert text.count("\n| ") == 10 and "plain stack, one brick after the other: its first brick alone" in text
    assert (tmp_path / "out" / "plot.png").is_file()
    capsys.readouterr()
    assert other_bricks.main([str(SAMPLE), str(tmp_path / "out")]) == 0
    assert "[" not in capsys.readouterr().out.replace("The report", "")  # nothing was done again
