"""The search for blocks: its space, its bootstrapping, and a winner that the trainer takes."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml

from brickwork.cli import main
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.config.config import load_config
from brickwork.training.config.library import CONFIGS
from brickwork.training.objectives.adversarial import shift_images
from brickwork.training.studies import block_search
from brickwork.training.studies.block_search import SearchConfig, Space, read_stages, search_blocks
from brickwork.training.tasks.block_supernet import (
    Choice,
    Learning,
    StageSupernet,
    bootstrap_losses,
    make_views,
    rate_choices,
    train_stage,
)

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
STAGES = [
    {"blocks": ["resnet", "basic"], "channels": [16, 24], "layers": [1]},
    {"blocks": ["resnet", {"type": "sra", "sr_ratio": 2}], "channels": [16], "layers": [1, 2]},
]
SETTINGS = {"attention_head_dim": 8, "time_embed_dim": 16}


@pytest.fixture
def configured(tmp_path):
    def load(*overrides: str) -> SearchConfig:
        path = tmp_path / "space.yaml"
        values = {
            "space": {"stages": STAGES, "config": SETTINGS},
            "search": {"steps": 3, "paths": 2, "rated": 6},
            "data": {"source": str(SAMPLE), "size": 16, "group_column": "codepoints", "held_out": 0.1},
            "run": {"batch_size": 4, "mixed_precision": "no"},
        }
        path.write_text(yaml.safe_dump(values))
        return load_config(path, list(overrides), SearchConfig)

    return load


def supernet() -> StageSupernet:
    torch.manual_seed(0)
    choices = [Choice("resnet", 8, 1), Choice("resnet", 8, 2), Choice("basic", 8, 1), Choice("resnet", 16, 1)]
    return StageSupernet(choices, 3, 1, SETTINGS, cond_dim=16, project_dim=8)


def views(images: torch.Tensor, seed: int = 0):
    return make_views(images, EDMObjective(), [], torch.Generator().manual_seed(seed))


def test_choices_of_one_kind_and_width_share_their_layers():
    stage = supernet()
    one, two, other, wide = (stage.path(choice) for choice in stage.choices)
    assert one.blocks[0] is two.blocks[0] and len(two.blocks) == 2 and one.blocks[0] is not other.blocks[0]
    assert one.entry is other.entry and one.entry is not wide.entry
    hidden_states = torch.randn(2, 3, 6, 5)
    assert wide(hidden_states, torch.randn(2)).shape == (2, 16, 6, 5)


def test_views_share_pictures_and_levels_and_not_noise():
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    seen = views(images)
    assert seen.first.shape == images.shape == seen.second.shape and seen.timestep.shape == (4,)
    assert not torch.equal(seen.first, seen.second)
    again = views(images)
    assert torch.equal(seen.first, again.first) and torch.equal(seen.timestep, again.timestep)
    constant = torch.ones(2, 3, 8, 8)
    assert torch.equal(shift_images(constant, 1 / 8, "reflect", torch.Generator().manual_seed(0)), constant)


def test_the_target_is_the_mean_of_projections_of_length_one():
    """Against the expression written out, both ways round."""
    stage, images = supernet(), torch.rand(4, 3, 16, 16) * 2 - 1
    twin, seen = copy.deepcopy(stage), views(images)
    chosen = stage.choices[:2]
    losses = list(bootstrap_losses(stage, twin, chosen, seen))
    for choice, loss in zip(chosen, losses):
        expected = 0.0
        for view, other in ((seen.first, seen.second), (seen.second, seen.first)):
            made = [twin.projection(c, other, seen.timestep).detach() for c in chosen]
            target = sum(vector / vector.norm(dim=1, keepdim=True) for vector in made) / len(made)
            found = stage.predict(stage.projection(choice, view, seen.timestep))
            found, target = (vector / vector.norm(dim=1, keepdim=True) for vector in (found, target))
            expected = expected + (found - target).square().sum(dim=1).mean()
        torch.testing.assert_close(loss, expected)


def test_a_stage_learns_and_its_twin_follows():
    stage, images = supernet(), torch.rand(16, 3, 16, 16) * 2 - 1
    before = copy.deepcopy(stage.state_dict())
    twin, losses = train_stage(stage, [], images, EDMObjective(), Learning(25, 8, 3, 3e-3, 0.9, 0))
    assert len(losses) == 25 and sum(losses[-5:]) < sum(losses[:5])
    name = "entries.8.weight"
    gap, moved = ((twin.state_dict()[name] - one[name]).norm() for one in (stage.state_dict(), before))
    assert 0 < gap < (stage.state_dict()[name] - before[name]).norm() and moved > 0
    ratings = rate_choices(stage, twin, [], images[:8], EDMObjective(), 0)
    assert list(ratings) == [choice.name for choice in stage.choices]
    assert all(0 <= rating <= 4 for rating in ratings.values())


def test_a_search_and_again(configured, tmp_path, capsys, monkeypatch):
    config, out = configured("space.budget=3.0e+7"), tmp_path / "out"
    assert search_blocks(config, out)
    assert "16 members: 4 × 4 choices of 2 stages" in capsys.readouterr().out
    found = json.loads((out / "search-blocks.json").read_text())
    ranking = found["ranking"]
    assert 0 < len(ranking) <= 10 and [row["rating"] for row in ranking] == sorted(row["rating"] for row in ranking)
    assert len(found["stages"]["stages/0"]["ratings"]) == 4 and len(found["stages"]["stages/1"]["losses"]) == 3
    winner = load_config(out / "winner.yaml", [])
    network = BlockUNet2DModel(**winner.model.config, num_classes=2)
    assert list(network.config.block_types) == ranking[0]["block_types"]
    assert Space(config).counted == {} and network.subnets(16, 16)["full"] <= 3.0e7

    def not_again(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(block_search, "train_stage", not_again)
    assert search_blocks(config, out)
    with pytest.raises(ValueError, match="holds another search-blocks: search.steps was 3 and is 4"):
        search_blocks(configured("space.budget=3.0e+7", "search.steps=4"), out)


def test_depth_says_where_to_downsample(configured):
    space = Space(configured("space.depth=3"))
    assert space.check() == 8 and all(sum(choice.layers for choice in member) == 3 for member in space.members())


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["space.budget=1000"], r"`space.budget` is 1000, and no member .*the cheapest needs [\d,]+ operations"),
        (["space.depth=9"], "`space.depth` is 9, and the stages together have 2 to 3 layers"),
        (["space.stages=[]"], "a list of at least one stage"),
        (["space.stages=[{blocks: [resnet], channels: [8]}]"], r"`space.stages\[0\]` has .*layers"),
        (["space.stages=[{blocks: [resnet], channels: [0], layers: [1]}]"], r"channels` is \[0\]; give whole numbers"),
        (["space.stages=[{blocks: [resnett], channels: [16], layers: [1]}]"], "did you mean 'resnet'"),
        (["space.stages=[{blocks: [{type: sra, sr: 2}], channels: [16], layers: [1]}]"], "sr_ratio"),
        (["space.config={width: 3}"], "width"),
    ],
)
def test_spaces_that_do_not_do(configured, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        search_blocks(configured(*overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_space_that_ships():
    stages = read_stages(yaml.safe_load((CONFIGS / "block_space.yaml").read_text())["space"]["stages"])
    assert [len(choices) for choices in stages] == [24, 24]


def test_the_command_says_what_there_is(configured, tmp_path, capsys):
    configured()
    assert main(["search-blocks", str(tmp_path / "space.yaml"), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "16 members" in capsys.readouterr().out and not (tmp_path / "out").exists()
