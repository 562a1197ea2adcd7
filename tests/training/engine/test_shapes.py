"""The engine takes samples of any shape: pictures with a frame axis, and series."""

import json

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from brickwork.eval.held_out.paired_loss import PairedSet, estimates, paired_loss
from brickwork.gen.parameterization import EDMObjective, FlowObjective
from brickwork.training.config.config import TrainConfig, load_config
from brickwork.training.engine.loop import prepare, train
from brickwork.training.engine.previews import draw_samples, show_sheet
from brickwork.training.tasks.denoising import DenoisingTask

SHAPES = {"frames": (2, 3, 4, 6), "series": (2, 24)}


class Convolution(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, axes: int = 3):
        super().__init__()
        kind = {1: torch.nn.Conv1d, 3: torch.nn.Conv3d}[axes]
        self.layer = kind(2, 2, 3, padding=1)

    def forward(self, sample, timestep, class_labels=None):
        shift = timestep.view(-1, *[1] * (sample.ndim - 1))
        return type("Output", (), {"sample": self.layer(sample) + shift})()


class Stream(torch.utils.data.Dataset):
    fingerprint = "none"

    def __init__(self, shape):
        self.shape = shape

    def __getitem__(self, position):
        random = np.random.default_rng(position)
        image, noise = (torch.from_numpy(random.standard_normal(self.shape, dtype=np.float32)) for _ in range(2))
        level = torch.tensor(random.standard_normal(), dtype=torch.float32)
        return {"image": image, "noise": noise, "level": level, "broken": torch.tensor(-1)}


class AnyShape(DenoisingTask):
    configuration, shape = TrainConfig, ()

    @classmethod
    def build(cls, config, accelerator, dry_run=False):
        task = cls()
        torch.manual_seed(0)
        task.config, task.accelerator, task.parameterization = config, accelerator, EDMObjective()
        task.network, task.stream = Convolution(len(cls.shape) - 1), Stream(cls.shape)
        task.held_out = PairedSet.from_images(torch.stack([task.stream[n]["image"] for n in range(3)]), None)
        return task

    def step(self, batch, number):
        return self.noisy(batch["image"], batch, {})

    def call(self, network, step):
        return estimates(network, step.sample, step.timestep)

    def preview(self, images, log):
        log.scalars(images, {"held_out/loss": paired_loss(self.network, self.held_out, self.parameterization)["loss"]})
        show_sheet(self, None, images, log)

    def export(self, weights, folder):
        (folder / "weights.txt").write_text(" ".join(sorted(weights)))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_task_of_another_shape_trains_shows_and_goes_on(kind, tiny_yaml, tmp_path, final_tensors, equal_bits):
    task = type("Shaped", (AnyShape,), {"shape": SHAPES[kind]})
    output = "objectives=[]"

    def run(name, *overrides):
        values = [f"run.output_dir={tmp_path / name}", "run.sample_images=16", output, *overrides]
        return prepare(task, load_config(tiny_yaml, values))

    train(run("whole"))
    train(run("parts", "run.total_images=16"))
    train(run("parts"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [line["held_out/loss"] for line in lines if "held_out/loss" in line]
    assert len(losses) == 2 and losses[0] != losses[1]
    assert (tmp_path / "whole" / "weights.txt").read_text() == "layer.bias layer.weight"


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("parameterization", [EDMObjective, FlowObjective])
def test_noise_lies_on_every_axis_alike(kind, parameterization):
    """A flattened copy is asked for the same, number by number."""
    shape, objective = (4, *SHAPES[kind]), parameterization()
    images, noise, level = torch.randn(shape), torch.randn(shape), objective.noise_levels(torch.randn(4))
    sample, _ = objective.network_inputs(images, noise, level)
    flat, _ = objective.network_inputs(images.flatten(1), noise.flatten(1), level)
    assert sample.shape == shape and torch.equal(sample.flatten(1), flat)
    losses = objective.losses(torch.zeros(shape), images, noise, level)
    torch.testing.assert_close(
        losses, objective.losses(torch.zeros_like(flat), *(images.flatten(1), noise.flatten(1)), level)
    )


def test_the_frames_of_a_video_lie_side_by_side():
    from PIL import Image

    frames = [[Image.new("L", (4, 3), 50 * k + f) for f in range(5)] for k in range(2)]

    class Pipeline:
        def set_progress_bar_config(self, disable):
            pass

        def __call__(self, **arguments):
            return type("Output", (), {"frames": frames})()

    drawn = draw_samples(Pipeline(), None, 2, 1, 1.0)
    assert drawn.shape == (2, 3, 20, 3)
    assert drawn[1, 0, ::4, 0].tolist() == [50, 51, 52, 53, 54]
