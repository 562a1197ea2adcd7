"""Turning a run into a folder to share."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from brickwork import LegoPipeline, UnequalAutoencoderKL, cli
from brickwork.training.commands.publish import training_hours, vae_of


@pytest.fixture
def finished_run(tmp_path, monkeypatch):
    from pathlib import Path

    from brickwork.training import train_backbone
    from brickwork.training.commands import publish

    monkeypatch.setattr(publish, "CARD_SAMPLES", 4)
    sample = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
    overrides = [
        f"data.source={sample}", "data.classes=[Smileys & Emotion]", "data.group_column=codepoints", "data.size=16",
        "data.held_out=0.2", "run.total_images=8", "run.batch_size=4", f"run.output_dir={tmp_path / 'run'}",
        "model.config={window_sizes: [16, 8], patch_sizes: [4, 2], num_layers: [1, 1], hidden_sizes: 8, "
        "num_attention_heads: 2}", "samples.count=0",
    ]  # fmt: skip
    assert train_backbone.main(overrides) == 0
    return tmp_path / "run"


def test_a_run_becomes_a_pipeline_with_a_card(finished_run, tmp_path, capsys):
    licences = tmp_path / "ATTRIBUTION.md"
    licences.write_text("# Attribution\nDrawn by somebody, CC-BY 4.0.\n")
    output = tmp_path / "share" / "faces"
    output.parent.mkdir()
    words = ["publish", str(finished_run), str(output)]
    assert cli.main([*words, "--attribution", str(licences)]) == 0
    pipe = LegoPipeline.from_pretrained(output)
    assert pipe.transformer.config.id2label == {"0": "Smileys & Emotion"}
    card = (output / "README.md").read_text()
    for text in (
        "8 images seen",
        "Smileys & Emotion",
        "held-out denoising loss",
        "Drawn by somebody",
        "# faces",
        "of the held-out images for comparison",
    ):
        assert text in card
    assert str(tmp_path) not in card
    assert Image.open(output / "samples.png").size == (8 * 18 - 2, 16)
    assert Image.open(output / "neighbours.png").height > 4 * 16
    assert [path.name for path in output.parent.iterdir()] == ["faces"]

    assert cli.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (output / "README.md").read_text() == card
    assert cli.main([*words, "--overwrite", "--license", "cc-by-4.0"]) == 0
    again = (output / "README.md").read_text()
    assert "Drawn by somebody" not in again and "license: cc-by-4.0" in again and "license:" not in card


def test_a_run_of_another_kind_is_named(finished_run, tmp_path, capsys):
    config = finished_run / "config.yaml"
    config.write_text(config.read_text() + "clips: {}\n")
    assert cli.main(["publish", str(finished_run), str(tmp_path / "share")]) == 2
    assert "only runs of train_backbone.py can be published" in capsys.readouterr().err


def test_only_a_pipeline_is_replaced(finished_run, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    assert cli.main(["publish", str(finished_run), str(tmp_path / "precious"), "--overwrite"]) == 2
    assert "holds something else: 1 (thesis.txt)" in capsys.readouterr().err
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_what_lies_beside_a_published_pipeline_stays(finished_run, tmp_path, capsys):
    output = tmp_path / "faces"
    assert cli.main(["publish", str(finished_run), str(output)]) == 0
    (output / ".git").mkdir()
    (output / ".git" / "HEAD").write_text("ref")
    (output / "notes.md").write_text("mine")
    assert cli.main(["publish", str(finished_run), str(output), "--overwrite"]) == 0
    assert ((output / ".git" / "HEAD").read_text(), (output / "notes.md").read_text()) == ("ref", "mine")
    assert LegoPipeline.from_pretrained(output).transformer.config.num_classes == 1
    (tmp_path / "model" / ".git").mkdir(parents=True)
    (tmp_path / "model" / "model_index.json").write_text("{}")
    assert cli.main(["publish", str(finished_run), str(tmp_path / "model"), "--overwrite"]) == 2
    assert "Nothing in it is touched" in capsys.readouterr().err


def test_what_is_no_run(tmp_path, capsys):
    assert cli.main(["publish", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no config.yaml" in capsys.readouterr().err


def test_pauses_are_not_training(tmp_path):
    times = [0, 100, 160, 5000, 5060]
    (tmp_path / "log.jsonl").write_text("".join(f'{{"images": 1, "time": {time}}}\n' for time in times))
    assert training_hours(tmp_path) == pytest.approx((160 + 60) / 3600)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('[]\n{"images": 2}\n{"images": 3, "ti')
    assert training_hours(tmp_path) == pytest.approx((160 + 60) / 3600)


def test_another_decoder_of_the_same_latents_draws(tmp_path):
    kind = {"block_out_channels": (4,), "norm_num_groups": 2, "mid_block_add_attention": False}
    torch.manual_seed(0)
    own, stranger = AutoencoderKL(**kind), AutoencoderKL(**kind)
    other = UnequalAutoencoderKL(**kind | {"block_out_channels": (8,)}, encoder_block_out_channels=(4,))
    for name in ("encoder", "quant_conv"):
        other.get_submodule(name).load_state_dict(own.get_submodule(name).state_dict())
    for name, vae in (("other", other), ("stranger", stranger)):
        vae.save_pretrained(tmp_path / name)
    picture = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    run = SimpleNamespace(vae=own, images=SimpleNamespace(picture=lambda row: picture))
    assert vae_of(run, None) is own
    assert vae_of(run, str(tmp_path / "other")).config.block_out_channels == [8]
    with pytest.raises(ValueError, match="whose latents of the first picture are not the run's"):
        vae_of(run, str(tmp_path / "stranger"))
    with pytest.raises(ValueError, match="the run is of pixels"):
        vae_of(SimpleNamespace(), str(tmp_path / "other"))
