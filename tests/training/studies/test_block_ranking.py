"""The test of rankings: members that share weights, agreement of orders, and a study that goes through."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from brickwork.training.config.config import load_config
from brickwork.training.studies import block_ranking
from brickwork.training.studies.block_ranking import RankingConfig, SharedUNets, spearman_rho
from brickwork.training.studies.block_search import Space

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
VALUES = {
    "space": {
        "stages": [
            {"blocks": ["resnet", "basic", "osa"], "channels": [8], "layers": [1]},
            {"blocks": ["resnet"], "channels": [16], "layers": [1]},
        ],
        "config": {"attention_head_dim": 8},
    },
    "search": {"steps": 1, "paths": 2, "rated": 4},
    "ranking": {"early": 0.5, "repeated": 1, "seeds": [0, 1], "shared_images": 8},
    "data": {"source": str(SAMPLE), "size": 8, "group_column": "codepoints", "held_out": 0.1},
    "run": {"batch_size": 4, "total_images": 8, "mixed_precision": "no"},
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


def test_equal_choices_are_the_same_modules_and_others_are_not(path):
    space = Space(load_config(path, kind=RankingConfig))
    members = {" ".join(choice.block for choice in member): member for member in space.members()}
    supernet = SharedUNets(space, members, ["a", "b"], 3)
    first, second = supernet.networks["resnet resnet"], supernet.networks["basic resnet"]
    assert first.conv_in is second.conv_in and first.down_blocks[1].blocks is second.down_blocks[1].blocks
    assert first.down_blocks[0].blocks is not second.down_blocks[0].blocks
    assert first.up_blocks[0].blocks is second.up_blocks[0].blocks
    assert first.up_blocks[1].blocks is not second.up_blocks[1].blocks
    ours = {id(parameter) for network in supernet.networks.values() for parameter in network.parameters()}
    assert ours == {id(parameter) for parameter in supernet.parameters()}
    output = second(torch.zeros(2, 3, 8, 8), torch.zeros(2), class_labels=torch.tensor([0, 1])).sample
    assert output.shape == (2, 3, 8, 8)


def test_agreement_of_orders():
    assert spearman_rho([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman_rho([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman_rho([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 · 4 / (5 · 24)
    assert spearman_rho([1, 1, 2], [1, 1, 2]) == pytest.approx(1)


def test_the_study_goes_through_and_does_not_train_twice(path, tmp_path, capsys):
    assert block_ranking.main([str(path), "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "block-ranking.json").read_text())
    assert len(found["losses"]) == 3 and {len(values) for values in found["seeds"].values()} == {1, 2}
    assert all(-1 <= way["tau"] <= 1 for way in found["ways"]) and len(found["ways"]) == 7
    capsys.readouterr()
    assert block_ranking.main([str(path), "-o", str(tmp_path / "out")]) == 0
    assert "members/" not in capsys.readouterr().out
