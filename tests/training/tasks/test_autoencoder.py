"""Training an autoencoder."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from brickwork.training.config.config import load_config
from brickwork.training.engine.loop import prepare, train
from brickwork.training.objectives.divergence import DivergenceObjective
from brickwork.training.tasks.autoencoder import AutoencoderTask, at_random_size
from brickwork.training.train_autoencoder import main

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
TINY = {
    "model": {
        "type": "AutoencoderKL",
        "config": {
            "block_out_channels": [4, 4],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "norm_num_groups": 2,
        },
    },
    "data": {"source": str(SAMPLE), "label_column": None, "group_column": "codepoints", "size": 32, "held_out": 0.1},
    "objective": {"type": "reconstruction", "options": {"min_size": 16}},
    "optimizer": {"learning_rate": 1.0e-2, "warmup_images": 4},
    "run": {
        "total_images": 8,
        "batch_size": 2,
        "log_images": 4,
        "sample_images": 8,
        "checkpoint_images": 4,
    },
}


@pytest.fixture
def build(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def run(name: str, *overrides: str):
        return prepare(
            AutoencoderTask, load_config(tmp_path / "tiny.yaml", [f"run.output_dir={tmp_path / name}", *overrides])
        )

    return run


def test_going_on_equals_never_stopping_and_latents_have_unit_deviation(
    build, tmp_path, final_tensors, equal_bits, capsys
):
    train(build("whole"))
    assert "held_out/psnr_16" in capsys.readouterr().out
    train(build("parts", "run.total_images=4"))
    train(build("parts"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    vae = AutoencoderKL.from_pretrained(tmp_path / "whole" / "vae").eval()
    run = build("other")
    rows, _ = run.task.stream.images.split(0.1)
    pictures = torch.stack([torch.from_numpy(run.task.stream.images.sample(int(row))[0]) for row in rows])
    small = torch.nn.functional.interpolate(pictures, size=16, mode="bilinear", antialias=True)
    with torch.no_grad():
        latents = vae.encode(small).latent_dist.mean * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, rel=0.02)
    assert list((tmp_path / "whole" / "samples").glob("*.png"))


def test_sizes_differ_and_follow_from_torchs_seed():
    pictures = torch.randn(3, 3, 32, 32)
    shapes = set()
    for seed in range(12):
        torch.manual_seed(seed)
        first = at_random_size(pictures, 16)
        torch.manual_seed(seed)
        assert torch.equal(first, at_random_size(pictures, 16))
        shapes.add(tuple(first.shape))
    assert shapes == {(3, 3, 16, 16), (3, 3, 24, 24), (3, 3, 32, 32)}


def test_the_divergence_is_that_of_normal_distributions():
    mean, logvar = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    ours = DivergenceObjective()(None, {"quant_conv": torch.cat([mean, logvar], dim=1)}, None)["kl"]
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.type=BlockUNet2DModel", "`model.type` is 'BlockUNet2DModel'"),
        ("objective.type=edm", "`objective.type` is 'edm'"),
        ("objective.options.min_size=2", "at least 8"),
        ("objective.options.kl=2", "does not fit"),
        ("model.config.channels=2", "does not fit"),
    ],
)
def test_bad_input_is_one_line(build, tmp_path, capsys, override, message):
    arguments = ["--config", str(tmp_path / "tiny.yaml"), f"run.output_dir={tmp_path / 'run'}", override]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
