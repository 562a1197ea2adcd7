"""The learning rate over images."""

import math

import pytest
import torch

from brickwork.training.config.config import load_config
from brickwork.training.engine import schedule
from brickwork.training.engine.schedule import build_optimizer

BASE = ["optimizer.learning_rate=0.5"]


def config_of(*overrides):
    return load_config(None, [*BASE, *overrides]).optimizer


def learning_rate(optimizer, images):
    return schedule.learning_rate(optimizer, images, total=1000, batch_size=10)


def test_rise_plateau_fall():
    config = config_of("optimizer.warmup_images=100", "optimizer.cooldown_images=200")
    assert learning_rate(config, 0) == pytest.approx(0.05)  # the first step already learns
    assert learning_rate(config, 40) == pytest.approx(0.25)
    assert learning_rate(config, 90) == learning_rate(config, 800) == 0.5
    assert learning_rate(config, 900) == pytest.approx(0.25)
    assert learning_rate(config, 1000) == 0


def test_neither_warm_up_nor_cool_down():
    config = config_of("optimizer.warmup_images=0")
    assert learning_rate(config, 0) == learning_rate(config, 1000) == 0.5


def test_cosine_and_inverse_square_root():
    cosine = config_of("optimizer.warmup_images=0", "optimizer.schedule=cosine")
    assert [learning_rate(cosine, images) for images in (0, 500, 1000)] == pytest.approx([0.5, 0.25, 0])
    root = config_of("optimizer.warmup_images=0", "optimizer.schedule=inverse_sqrt", "optimizer.decay_images=100")
    assert [learning_rate(root, n) for n in (0, 100, 400)] == pytest.approx([0.5, 0.5, 0.5 / math.sqrt(4)])


def test_only_what_is_not_frozen_is_optimised():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    network[0].requires_grad_(False)
    optimizer = build_optimizer(config_of(), network, torch.device("cpu"))
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [(1, 3), (1,)]


def test_8_bit_states_without_the_package_are_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="needs bitsandbytes"):
        build_optimizer(config_of("optimizer.type=adamw_8bit"), torch.nn.Linear(1, 1), torch.device("cpu"))


def test_one_image_is_one_image():
    run = load_config(None, ["run.batch_size=1", "run.total_images=3"]).run
    assert schedule.course(run, "images of no classes", 1, 0, 1).startswith(
        "1 image of no classes to train on, 0 held"
    )
    assert "\n1 image a step = 1 × 1 " in schedule.course(run, "images of no classes", 1, 0, 1)
    assert schedule.course(run, "images of 2 classes", 1000, 5, 1).startswith("1,000 images of 2 classes to train on")
