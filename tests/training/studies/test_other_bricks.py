"""The experiment with other bricks counts what its runs do, and scores as `paired_loss` does."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from brickwork import EDMHeunScheduler, LegoPipeline, LegoTransformer2DModel
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.config.config import load_config
from brickwork.training.studies import other_bricks
from brickwork.training.studies.ablation import AblationConfig
from brickwork.training.studies.other_bricks import (
    CONFIG,
    OtherBricks,
    losses_of,
    stage_costs,
    table,
    training_operations,
)
from brickwork.training.tasks.backbones import TrainedOn, build_model

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Every run's stages, and the operations of its network, before its first step."""
    config, found = load_config(CONFIG, ["data.set=smileys", "data.source=data"], AblationConfig), {}
    study = OtherBricks(config, tmp_path_factory.mktemp("runs"))
    for name in config.ways:
        run = study.run(name, 0)
        model = build_model(run.model, run.objective, TrainedOn(["faces"], 32, 3))
        LegoPipeline(transformer=model, scheduler=EDMHeunScheduler()).save_pretrained(study.pipeline(name, 0))
        found[name] = stage_costs(run, model), max(model.subnets(32, 32).values())
    return found


def test_the_runs_are_those_of_the_page(stages):
    lengths = {name: [length for length, _ in own] for name, (own, _) in stages.items()}
    once = dict.fromkeys(("longer", "with-brick", "thawed"), [12000])
    assert lengths == once | {"denoiser": [20000], "plain": [32000], "one-by-one": [30000, 22500]}


def test_the_plain_stack_has_the_operations_of_the_denoiser_and_the_brick(stages):
    assert stages["plain"][1] == pytest.approx(stages["with-brick"][1], rel=0.01)
    assert training_operations(stages["one-by-one"][0]) == pytest.approx(
        training_operations(stages["plain"][0]), rel=0.01
    )


def test_a_frozen_brick_costs_its_forward_pass_alone(stages):
    (with_brick,), (thawed,), (longer,) = (stages[name][0] for name in ("with-brick", "thawed", "longer"))
    assert thawed[1] - with_brick[1] == longer[1] - longer[1] // 3


def test_operations_of_a_part_of_a_run():
    assert training_operations([(30000, 30), (22500, 13)], 30000) == 30000 * 30
    assert training_operations([(30000, 30), (22500, 13)], 30001) == 30000 * 30 + 13
    assert training_operations([(12000, 13)]) == 12000 * 13


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
    windows = {"window_sizes": [8, 4], "patch_sizes": [2, 2]}
    unet = {
        "sample_size": 8, "attention_head_dim": 4, "block_out_channels": [4, 8], "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": 2,
    }  # fmt: skip
    brick = {"class_name": "UNet2DModel", "prediction_type": "v_prediction", "config": unet}
    models = {
        "denoiser": {"pretrained_brick": brick, "window_sizes": [8], "patch_sizes": [2], "num_layers": [0]},
        "with-brick": windows | {"num_layers": [0, 1], "hidden_sizes": [0, 8], "num_attention_heads": [0, 2]},
        "plain": windows | {"num_layers": [1, 1], "hidden_sizes": 8, "num_attention_heads": 2},
    }
    models |= {"thawed": models["with-brick"], "one-by-one": models["plain"]}
    values = yaml.safe_load(CONFIG.read_text())
    for name, variant in values["variants"].items():
        variant["set"] = dict(variant["set"]) | {"run.total_images": 32 if name == "one-by-one" else 16}
        if name in models:
            variant["set"]["model.config"] = models[name]
    values["variants"]["one-by-one"]["set"]["objective.brick_images"] = [16, 16]
    values["data"]["size"], values["run"]["sample_images"], values["samples"]["count"] = 8, 8, 0
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    monkeypatch.setattr(other_bricks, "CONFIG", tmp_path / "tiny.yaml")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # CUDA does not survive a fork
    assert other_bricks.main([str(SAMPLE), str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "other-bricks.md").read_text()
    assert text.count("\n| ") == 10 and "plain stack, one brick after the other: its first brick alone" in text
    assert (tmp_path / "out" / "plot.png").is_file()
    capsys.readouterr()
    assert other_bricks.main([str(SAMPLE), str(tmp_path / "out")]) == 0
    assert "[" not in capsys.readouterr().out.replace("The report", "")  # nothing was done again
