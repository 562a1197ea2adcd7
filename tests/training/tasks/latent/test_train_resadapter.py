"""The entry script, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from brickwork.training.config.latent import ResAdapterConfig
from brickwork.training.engine.loop import train
from brickwork.training.tasks.latent.task import shapes_listed
from brickwork.training.train_resadapter import main

TRAINING = Path(__file__).parents[4] / "training"


@pytest.fixture
def arguments(tiny_run, bases, tmp_path):
    """A tiny run's, for the command line."""
    tiny_run("none")  # writes tiny.yaml
    return [
        "--config",
        str(tmp_path / "tiny.yaml"),
        f"model.base={bases['sd1']}",
        f"run.output_dir={tmp_path / 'run'}",
    ]


def test_two_processes_under_accelerate_launch_equal_one(tiny_run, arguments, tmp_path, final_tensors):
    """They could not, if they drew different resolutions: every step's images would have other noise and shapes."""
    values = ["run.total_images=4", f"data.cache={tmp_path / 'cache'}", "data.label_column=label"]
    values += ["data.classes=[Flags]", "data.held_out=0"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [TRAINING / "configs" / "accelerate" / "two_cpu_processes.yaml", TRAINING / "train_resadapter.py"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments, *values], capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr
    start = json.loads((tmp_path / "run" / "starts.jsonl").read_text())
    assert (start["processes"], start["model"]) == (2, "DistributedDataParallel")
    train(tiny_run("one", *values))
    one, two = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "run")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-3, atol=1e-5)
    assert (tmp_path / "run" / "adapter" / "run.safetensors").exists()
    assert "The adapter is in" in done.stdout


def test_a_dry_run_says_everything_and_leaves_nothing(arguments, tmp_path, capsys):
    capsys.readouterr()
    assert main([*arguments, "--dry-run", f"data.cache={tmp_path / 'cache'}", "run.seed=5"]) == 0
    out = capsys.readouterr().out
    assert "37,360 parameters in the UNet" in out
    assert "1,136 of them trained" in out
    assert "102 captioned images to train on, 6 held out; 8 images are 0.1 epochs, 4 steps" in out
    assert "captions are cut to the encoder's 12 tokens" in out
    assert "5 shapes from 8×8 to 24×24, one a step: 8×8, 16×16, 16×32, 24×24, 32×16" in out
    assert yaml.safe_load(out[out.index("model:\n") :])["run"]["seed"] == 5
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_filling_the_cache_alone(arguments, tmp_path, capsys):
    few = ["data.label_column=label", "data.classes=[Flags]", "resolution.max_size=16"]
    assert main([*arguments, "--cache-only", f"data.cache={tmp_path / 'cache'}", *few]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1 + 2
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--cache-only"]) == 2
    assert "`data.cache` is null" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.ranks=4", "Unknown key `adapter.ranks` in the configuration; did you mean `rank`"),
        ("adapter.kind=intrapolation", "did you mean 'interpolation'?"),
        ("adapter.rank=0", "`adapter.rank` is 0; give at least 1, or null"),
        ("adapter.init_from=/nowhere", "`adapter.init_from` cannot be taken: /nowhere"),
        ("model.base=/nowhere", "holds no pipeline (no model_index.json)"),
        ("data.caption_column=name", "`data.caption_column` is 'name', which the data set does not have"),
        ("resolution.min_size=12", "`resolution.min_size` is 12, which the VAE and the UNet cannot take"),
        ("resolution.max_size=0", "`resolution.max_size` is 0; give resolution.min_size = 8 or more"),
        ("resolution.step=12", "sides must be multiples of 8"),
        ("resolution.ratios=own", "choose one of any, data"),
        ("data.max_upscale=0.5", "give 1 (never) or more"),
        ("objective.min_snr_gamma=-1", "give a positive number, or null"),
        ("objective.size_conditions=crop", "choose one of size, picture"),
        ("samples.sizes=[512]", "give pairs of height and width"),
        ("optimizer.type=adamw_4bit", "did you mean 'adamw_8bit'?"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, capsys, override, message):
    assert main([*arguments, "--dry-run", override]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("file", sorted((TRAINING / "configs").glob("resadapter_*.yaml")), ids=lambda file: file.stem)
def test_the_configurations_that_ship(file):
    from brickwork.training.config.config import load_config

    config = load_config(file, None, ResAdapterConfig)
    assert config.resolution.min_size < config.resolution.max_size


def test_one_shape_is_said_in_a_word():
    assert shapes_listed([(64, 64)]) == "All pictures are 64×64."
    assert shapes_listed([(8, 8), (16, 32)]) == "2 shapes from 8×8 to 16×32, one a step: 8×8, 16×32."
