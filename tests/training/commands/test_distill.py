"""`brickwork distill`: a student in few steps, or a smaller one, of our pipelines and of a Stable Diffusion base."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import AutoencoderKL
from PIL import Image

from brickwork import BlockUNet2DModel, ClassToImagePipeline, LegoPipeline
from brickwork.cli import main
from brickwork.gen.parameterization import EDMObjective
from brickwork.pipelines.objective_file import save_objective
from brickwork.training.engine.loop import train

SHORT = ["run.total_images=16", "run.batch_size=8", "run.sample_images=0", "run.mixed_precision=no", "samples.count=0"]


def distill(*words):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return main(["distill", *map(str, words)])


@pytest.fixture
def teacher(tiny_run, tmp_path, monkeypatch):
    """A tiny LEGO pipeline in `teacher/pipeline`, and pictures of its classes."""
    monkeypatch.chdir(tmp_path)
    run = tiny_run("teacher", "objective.brick_dropout=0", "run.total_images=8", "data.classes=[Flags, Objects]")
    train(run)
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        path = tmp_path / "pictures" / ("Flags", "Objects")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "teacher"


def test_few_steps(teacher, tmp_path):
    words = [teacher, "--steps", 2, "--guidance", 2.0, "--data", "pictures", *SHORT]
    assert distill(*words) == 0
    run = tmp_path / "runs" / "teacher-2-steps"
    pipe = LegoPipeline.from_pretrained(run / "pipeline")
    assert pipe.config.num_inference_steps == 2 and type(pipe.scheduler).__name__ == "EDMEulerScheduler"
    assert distill(*words, "run.total_images=24") == 0  # goes on
    assert json.loads((run / "starts.jsonl").read_text().splitlines()[1])["images"] == 16
    described = (run / "config.yaml").read_text()
    assert "guidance: 2.0" in described and "label_dropout: 0.0" in described


def test_a_smaller_student_of_another_kind(teacher, tmp_path):
    small = "model.config={block_out_channels: [8, 8], block_types: resnet, layers_per_block: 1}"
    assert distill(teacher, "--student", "tiny-resnet", "--data", "pictures", small, *SHORT) == 0
    pipe = ClassToImagePipeline.from_pretrained(tmp_path / "runs" / "teacher-tiny-resnet" / "pipeline")
    assert pipe.transformer.config.num_classes == 2


def test_a_dry_run_leaves_no_latents_behind(teacher, tmp_path):
    vae = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, norm_num_groups=2, sample_size=8,
    )  # fmt: skip
    network = BlockUNet2DModel(
        sample_size=4, in_channels=2, num_classes=2, id2label={0: "Flags", 1: "Objects"}, block_types="resnet",
        block_out_channels=(8, 8), layers_per_block=1,
    )  # fmt: skip
    ClassToImagePipeline.from_objective(network, EDMObjective(), vae).save_pretrained(tmp_path / "latent")
    save_objective(tmp_path / "latent", "edm", {})
    before = sorted(tmp_path.rglob("*"))
    words = [tmp_path / "latent", "--steps", 2, "--data", "pictures", *SHORT]
    assert distill(*words, "--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert distill(*words) == 0
    assert (tmp_path / "runs" / "latent-2-steps-latents").is_dir()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--second", "b"], "`--second` is a second teacher of `--student`"),
        (["--student", "tiny-dit", "--guidance", "2"], "`--guidance` goes with `--steps`"),
        (["--steps", "0", "--data", "pictures"], "steps` is 0; give a whole number of 1 to"),
    ],
)
def test_options_that_do_not_go_together(teacher, words, message, capsys):
    assert distill(teacher, *words) == 2
    assert message in capsys.readouterr().err


def test_a_teacher_that_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert distill("nowhere") == 2
    assert "`TEACHER` is 'nowhere', which holds no pipeline" in capsys.readouterr().err
