"""A Stable Diffusion base in few steps, from epsilon and from v, with a cache and without."""

import json
import math

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import StableDiffusionPipeline

from brickwork.cli import main
from brickwork.training.engine.loop import train


def steps(base, count=2):
    objective = {"type": "steps", "teacher": str(base), "steps": count, "substeps": 2, "guidance": 3.0}
    return f"objectives={json.dumps([objective])}"


@pytest.mark.parametrize("kind, cached", [("sd1", True), ("sd2", False), ("sdxl", False)])
def test_guided_paths_are_answered(tiny_run, bases, tmp_path, kind, cached):
    """The teacher's own half-trained answer is not the target: that lies on its guided path."""
    extra = [f"data.cache={tmp_path / 'cache'}"] if cached else []
    run = tiny_run("run", steps(bases[kind]), "run.total_images=4", *extra, kind=kind)
    assert train(run) == 4
    scheduler = run.task.base.scheduler
    assert (type(scheduler).__name__, scheduler.config.timestep_spacing) == ("DDIMScheduler", "trailing")
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [999, 499]
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert all(math.isfinite(value) for value in line.values())


def test_the_command(bases, tmp_path, monkeypatch, tiny_run):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.chdir(tmp_path)
    source = tiny_run("unused").config.data.source
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    words = ["run.total_images=4", "run.batch_size=2", "run.sample_images=0", "samples.count=0", "samples.held_out=0"]
    words += ["data.caption_column=text", "run.mixed_precision=no", "data.held_out=0", "run.output_dir=few"]
    assert main(["distill", str(bases["sd1"]), "--steps", "2", "--data", source, *words]) == 0
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "few" / "pipeline")
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert "num_inference_steps=2, guidance_scale=1" in (tmp_path / "few" / "pipeline" / "README.md").read_text()
