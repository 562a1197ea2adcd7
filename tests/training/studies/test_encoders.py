"""Denoisers around a classifier's blocks: before and after it learned, alike in all else."""

from pathlib import Path

import torch

from brickwork import BlockUNet2DModel
from brickwork.adapters.dino.encoder import load_encoder, usual_size
from brickwork.training.config.config import load_config
from brickwork.training.studies.ablation import AblationConfig
from brickwork.training.studies.encoders import SIDE, Classifier, PatchClassifier, accuracy, main, train
from brickwork.training.tasks.backbones import TrainedOn, build_model

SAMPLE = Path(__file__).parents[2] / "data" / "avatars" / "sample.parquet"


def test_the_denoisers_differ_in_the_encoder_alone(tmp_path, capsys):
    for name in ("train.parquet", "held_out_seeds.parquet"):
        (tmp_path / name).write_bytes(SAMPLE.read_bytes())
    output = tmp_path / "encoders"
    arguments = [str(tmp_path), "-o", str(output), "--images", "64", "--limit", "16"]
    assert main(arguments) == 0
    assert "of learned" in capsys.readouterr().out
    before, after = (BlockUNet2DModel.from_pretrained(output / name) for name in ("untrained", "pretrained"))
    assert before.config.id2label and before.config == after.config and before.config.sample_size == SIDE
    differing = {
        name for (name, one), other in zip(before.state_dict().items(), after.state_dict().values())
        if not torch.equal(one, other)
    }  # fmt: skip
    assert differing and all(name.startswith("down_blocks.") for name in differing)
    assert "down_blocks.1.blocks.0.conv1.weight" in differing and "down_blocks.0.downsample.conv1.weight" in differing
    # The study that ships describes the same network, which is what its first variant begins as.
    config = load_config("ablation_encoder", ["data.source=none"], AblationConfig)
    data = TrainedOn(size=SIDE, channels=3, class_names=list(before.config.id2label.values()))
    fresh = build_model(config.model, config.objective, data)
    assert {name: one.shape for name, one in fresh.state_dict().items()} == {
        name: one.shape for name, one in before.state_dict().items()
    }
    assert main(arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--images", "0"]) == 2
    assert "`--images` is 0" in capsys.readouterr().err


def test_a_vision_transformer_learns_too_and_is_written_for_the_adapters(tmp_path, capsys):
    for name in ("train.parquet", "held_out_seeds.parquet"):
        (tmp_path / name).write_bytes(SAMPLE.read_bytes())
    output = tmp_path / "vit"
    assert main([str(tmp_path), "-o", str(output), "--kind", "vit", "--images", "64", "--limit", "16"]) == 0
    assert "of held-out renders" in capsys.readouterr().out
    encoder = load_encoder(output)
    assert encoder.config.patch_size == 8 and usual_size(encoder) == 64
    torch.manual_seed(0)
    pictures = torch.randint(0, 120, (32, 3, 64, 64), dtype=torch.uint8)
    targets = {"bright": torch.arange(32) % 2}
    pictures[targets["bright"] == 1] += 120
    classifier = PatchClassifier({"bright": 2})
    train(classifier, pictures, targets, 64 * 20, rate=1e-3)
    assert accuracy(classifier, pictures, targets) == 1.0


def test_the_classifier_learns_what_it_is_shown():
    torch.manual_seed(0)
    pictures = torch.randint(0, 120, (32, 3, 8, 8), dtype=torch.uint8)
    targets = {"bright": torch.arange(32) % 2}
    pictures[targets["bright"] == 1] += 120
    classifier = Classifier({"bright": 2})
    train(classifier, pictures, targets, 64 * 40)
    assert accuracy(classifier, pictures, targets) == 1.0
    targets = {"bright": torch.where(torch.arange(32) < 16, 1 - targets["bright"], -1)}
    assert accuracy(classifier, pictures, targets) == 0.0  # those without a value do not count
