"""The judge of avatars' attributes: its file, its numbers, and that it knows renders."""

from pathlib import Path

import pytest
import torch

from brickwork.eval.extractors.attributes import AttributeJudge, accuracy, load_judge, save_judge
from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.training.train_attributes import loss, main, read

SAMPLE = Path(__file__).parents[2] / "data" / "avatars" / "sample.parquet"
ATTRIBUTES = {"mood": ["happy", "sad"], "ground": ["blue", "green", "red"]}


def test_a_saved_judge_says_the_same(tmp_path):
    judge = AttributeJudge(ATTRIBUTES).half().float().eval()
    pictures = torch.randint(256, (5, 3, 96, 80), dtype=torch.uint8)
    again = load_judge(save_judge(judge, tmp_path / "judge.safetensors"))
    assert again.attributes == ATTRIBUTES
    assert again.name(pictures, batch_size=2) == judge.name(pictures)
    assert set(judge.name(pictures)[0]) == set(ATTRIBUTES)


def test_accuracy_counts_what_was_asked_for():
    named = [{"mood": "happy", "ground": "red"}, {"mood": "sad", "ground": "blue"}]
    asked = [{"mood": "happy", "ground": None, "hat": "cap"}, {"mood": "happy", "ground": "blue"}]
    assert accuracy(named, asked) == {"mood": 0.5, "ground": 1.0}


def test_attributes_that_a_picture_does_not_have_cost_nothing():
    outputs = AttributeJudge(ATTRIBUTES)(torch.zeros(2, 3, 64, 64))
    targets = {"mood": torch.tensor([-1, -1]), "ground": torch.tensor([-1, -1])}
    assert loss(outputs, targets) == 0
    assert loss(outputs, targets | {"mood": torch.tensor([0, -1])}) > 0


def test_other_files_are_refused(tmp_path):
    (tmp_path / "judge.safetensors").write_text("nothing")
    with pytest.raises(ValueError, match="`path` is .*holds no judge"):
        load_judge(tmp_path / "judge.safetensors")


def test_the_judge_that_ships_knows_renders():
    pictures, asked = read(SAMPLE)
    shares = accuracy(load_judge().name(pictures), asked)
    assert sum(shares.values()) / len(shares) > 0.9, shares
    features = load_extractor("avatar-attributes")(pictures[:4], get_protocol("clean"))["features"]
    assert features.shape[0] == 4 and features.std() > 0


def test_it_is_trained_by_one_command(tmp_path, capsys):
    for name in ("train.parquet", "held_out_seeds.parquet", "held_out_combinations.parquet"):
        (tmp_path / name).write_bytes(SAMPLE.read_bytes())
    output = tmp_path / "judge.safetensors"
    assert main([str(tmp_path), "--output", str(output), "--images", "32", "--batch-size", "16"]) == 0
    assert "combination: mean" in capsys.readouterr().out
    assert "style" in load_judge(output).attributes
