"""Untrained pipelines of any size."""

from pathlib import Path

import datasets
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline

from brickwork.pipelines.stable_diffusion import load_pipeline
from brickwork.training.new_stable_diffusion import learn_tokenizer, main

SAMPLE = Path(__file__).parents[3] / "data" / "emoji" / "sample.parquet"
CAPTIONS = ["grinning face", "grinning cat", "red apple", "green apple"] * 4
CONFIG = {
    "tokenizer": {"vocabulary": 530, "max_length": 9},
    "text_encoder": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "unet": {
        "sample_size": 4,
        "block_out_channels": [4, 8],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
    },
}


def test_a_tokenizer_learns_words_and_takes_every_text(tmp_path):
    tokenizer = learn_tokenizer(CAPTIONS, 540, 9)
    assert 514 < len(tokenizer) <= 540  # captions this few have no more pairs to merge
    assert tokenizer.tokenize("apple grinning") == ["apple</w>", "grinning</w>"]
    assert tokenizer("Zürich 🍎!").input_ids.count(tokenizer.eos_token_id) == 1  # nothing is unknown
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("red apple", padding="max_length").input_ids == tokenizer("red apple", padding="max_length").input_ids
    assert again.model_max_length == 9
    with pytest.raises(ValueError, match="give 514 or more"):
        learn_tokenizer(CAPTIONS, 500, 9)


@pytest.fixture
def arguments(bases, tmp_path):
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(CONFIG))
    return [
        "--config", str(tmp_path / "new.yaml"), "--vae", str(bases["sd1"]), "--captions", str(SAMPLE),
        "--output", str(tmp_path / "new"),
    ]  # fmt: skip


def test_a_pipeline_that_draws_and_trains(arguments, tmp_path):
    assert main(arguments) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "new", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("red apple", height=8, width=16, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 16, 3)
    encoder = pipeline.text_encoder.config
    assert (encoder.eos_token_id, encoder.bos_token_id) == (529, 528)
    assert load_pipeline(str(tmp_path / "new")).scheduler.config.beta_schedule == "scaled_linear"


def test_weights_follow_from_the_seed(arguments, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([*arguments[:-1], str(tmp_path / name), "--seed", seed]) == 0
    first, same, other = (load_pipeline(str(tmp_path / name)).unet.conv_in.weight for name in ("a", "b", "c"))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_bad_input_is_one_line(arguments, tmp_path, capsys):
    assert main([*arguments, "--caption-column", "name"]) == 2
    assert "`--caption-column` is 'name'" in capsys.readouterr().err
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(CONFIG | {"unet": {"channels": 3}}))
    assert main(arguments) == 2
    assert "does not fit" in capsys.readouterr().err
    (tmp_path / "new.yaml").write_text(yaml.safe_dump({"unet": {}}))
    assert main(arguments) == 2
    assert "it takes tokenizer, text_encoder, unet" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    assert main([*arguments, "--overwrite"]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_a_text_encoder_learns_what_captions_say(tmp_path, bases, capsys):
    said = [(colour, thing) for colour in ("red", "blue") for thing in ("cat", "dog")] * 20
    columns = {
        "image": [{"bytes": b"x", "path": None}] * len(said),
        "text": [f"a {colour} {thing}" for colour, thing in said],
        "colour": [colour for colour, _ in said],
        "thing": [thing for _, thing in said],
        "number": list(range(len(said))),
        "name": [f"picture {number}" for number in range(len(said))],
    }
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "said.parquet"))
    config = CONFIG | {"scheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(config))
    words = [
        "--config", str(tmp_path / "new.yaml"), "--vae", str(bases["sd1"]),
        "--captions", str(tmp_path / "said.parquet"), "--output", str(tmp_path / "new"),
    ]  # fmt: skip
    assert main([*words, "--teach", "300"]) == 0
    assert "colour 100%, thing 100%" in capsys.readouterr().out
    scheduler = StableDiffusionPipeline.from_pretrained(tmp_path / "new", safety_checker=None).scheduler
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.beta_end == 0.012
    assert main([*words, "--teach", "-1"]) == 2
    datasets.Dataset.from_dict({"text": columns["text"]}).to_parquet(str(tmp_path / "said.parquet"))
    assert main([*words, "--teach", "300", "--overwrite"]) == 2
    assert "needs columns of 2 to 64 different values" in capsys.readouterr().err


def test_a_pipeline_may_start_from_another(arguments, tmp_path, bases, capsys):
    words = ["--captions", str(SAMPLE), "--output", str(tmp_path / "next"), "--start-from", str(bases["sd1"])]
    assert main(words) == 0
    first, then = (load_pipeline(str(folder)) for folder in (bases["sd1"], tmp_path / "next"))
    for name in ("unet", "vae", "text_encoder"):
        weights = getattr(then, name).state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in getattr(first, name).state_dict().items())
    assert main([*words, "--overwrite", "--config", arguments[1]]) == 2
    assert "is for a pipeline from scratch" in capsys.readouterr().err
    assert main([*words[:2], "--output", str(tmp_path / "none")]) == 2
    assert "`--config` and `--vae`" in capsys.readouterr().err
