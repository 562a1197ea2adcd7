"""Step distillation: paths between noise levels, and a student that lands where its teacher does."""

import json

import pytest
import torch

from brickwork import LegoPipeline
from brickwork.gen.parameterization import EDMObjective, EpsilonObjective, FlowObjective, VObjective
from brickwork.training.engine.loop import train
from brickwork.training.objectives.steps import CLEAN, Paths, StepsObjective, chosen_grid, grid, sampler_changes

KINDS = (EDMObjective, EpsilonObjective, VObjective, FlowObjective)
DEVIATION = 0.3  # of the images that the exact denoiser below is for


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_grid_is_the_samplers(kind, steps):
    """A scheduler of diffusers calls the network at the same levels, and ends at the image."""
    parameterization = kind()
    levels = grid(parameterization, steps)
    assert torch.equal(grid(parameterization, 3 * steps)[::3], levels) and levels[-1] == CLEAN
    scheduler = type(parameterization.scheduler()).from_config(
        parameterization.scheduler().config, **sampler_changes(parameterization, steps)
    )
    scheduler.set_timesteps(steps)
    zeros = torch.zeros(steps, 1, 1, 1)
    expected = parameterization.network_inputs(zeros, zeros, levels[:-1])[1]
    torch.testing.assert_close(scheduler.timesteps.float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps, rho", [(1, 7.0), (4, 7.0), (4, -7.0)])
def test_a_chosen_grid_is_the_samplers_too(steps, rho):
    """A scheduler of diffusers ends at the chosen level, and the teacher's levels lie between the student's."""
    levels = chosen_grid(steps, 3, 0.4, rho)
    assert len(levels) == 3 * steps + 1 and (levels.diff() < 0).all() and levels[-1] == CLEAN
    changes = sampler_changes(EDMObjective(), steps, 0.4, rho)
    scheduler = type(EDMObjective().scheduler()).from_config(EDMObjective().scheduler().config, **changes)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas[:-1], levels[:-1:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_of_an_exact_denoiser(kind):
    """Images of a normal distribution have a path in closed form: their deviation shrinks with the level's."""
    torch.manual_seed(0)
    parameterization, steps, substeps = kind(), 4, 16
    paths, levels = Paths(parameterization), grid(kind(), steps * substeps)

    def ask(sample, level, timestep):
        signal, scale = paths.coefficients(level, sample)
        images = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + scale**2) * sample
        return parameterization.target(images, (sample - signal * images) / scale, level)

    for step in range(steps):
        along = levels[step * substeps : (step + 1) * substeps + 1][:, None].expand(-1, 3)
        images, noise = DEVIATION * torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
        sample, _ = paths.inputs(images, noise, along[0])
        solved = paths.solve(parameterization.target(images, noise, along[0]), sample, along[0])
        torch.testing.assert_close(solved[1], noise, rtol=1e-2, atol=1e-2)
        landed = paths.follow(ask, sample, along)
        before, after = (
            (part**2 * DEVIATION**2 + other**2).sqrt()
            for part, other in (paths.coefficients(level, sample) for level in (along[0], along[-1]))
        )
        error = (landed - sample * after / before).abs().max() / (sample * after / before).abs().max()
        assert error < 0.01
        # The student that gives this image and this noise lands there in one step.
        there = paths.meeting(sample, along[0], landed, along[-1])
        torch.testing.assert_close(paths.inputs(*there, along[0])[0], sample, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(paths.inputs(*there, along[-1])[0], landed, rtol=1e-3, atol=1e-3)


def test_weights_are_those_of_the_image():
    """The error of the clean image weighs max(SNR, 1), for epsilon, whatever weights the run has."""
    for kind, options in ((EpsilonObjective, {}), (EpsilonObjective, {"min_snr_gamma": 5.0})):
        objective = StepsObjective("nowhere", steps=4)
        objective.paths = Paths(kind(**options))
        levels = grid(kind(), 4)[:-1]
        snr = objective.paths.snr(levels)
        of_image = objective._weight(levels) * kind(**options).weights(levels) * snr
        torch.testing.assert_close(of_image, snr.clamp(min=1))


def test_a_lego_stack_in_two_steps(tiny_run, tmp_path, final_tensors, equal_bits):
    """It trains, goes on where it was stopped bit for bit, and leaves a pipeline that knows its steps."""
    train(tiny_run("teacher", "objective.brick_dropout=0", "run.total_images=16"))
    teacher = str(tmp_path / "teacher" / "pipeline")
    described = {"type": "steps", "teacher": teacher, "steps": 2, "substeps": 2, "guidance": 2.0}
    values = [f"objectives={json.dumps([described])}", f"model.init_from={teacher}", "samples.steps=2"]
    values += ["objective.label_dropout=0", "samples.guidance_scale=1"]
    train(tiny_run("whole", *values))
    train(tiny_run("parts", *values, "run.total_images=16"))
    train(tiny_run("parts", *values))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    line = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss_at/sigma_80", "loss_at/sigma_2.52"} <= line.keys()
    pipe = LegoPipeline.from_pretrained(tmp_path / "whole" / "pipeline")
    calls = []
    pipe.transformer.register_forward_hook(lambda module, inputs, output: calls.append(inputs[1]))
    pipe.set_progress_bar_config(disable=True)
    pipe(class_labels=[0], output_type="np")
    assert len(calls) == 2 and calls[0].exp().pow(4).item() == pytest.approx(80, rel=1e-3)


def test_bad_input():
    for options in ({"steps": 0}, {"steps": True}, {"substeps": 65}, {"guidance": -1}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` is"):
            StepsObjective("teacher", **options)
    for options, named in (
        ({"sigma_min": 90.0}, "sigma_min"),
        ({"rho": 3.0}, "rho"),
        ({"sigma_min": 1.0, "rho": 0}, "rho"),
    ):
        with pytest.raises(ValueError, match=f"`{named}` is"):
            StepsObjective("teacher", **options)
