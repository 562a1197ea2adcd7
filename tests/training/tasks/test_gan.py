import json

import pytest
import torch
import yaml

from brickwork.eval.extractors.features import load_extractor
from brickwork.eval.metrics.reference import make_reference
from brickwork.pipelines.one_step import OneStepPipeline
from brickwork.training.config.config import load_config
from brickwork.training.engine.loop import prepare, train
from brickwork.training.objectives.adversarial import AdversarialObjective, shift_images
from brickwork.training.tasks.gan import GanTask
from brickwork.training.train_gan import main

MODEL = {
    "discriminator_channels": [8, 8, 8],
    "generator_config": {
        "latent_dim": 8,
        "block_out_channels": [8, 8],
        "layers_per_stage": 1,
        "attention_head_dim": 8,
        "window_size": 4,
    },
}


@pytest.fixture
def gan_run(tiny_yaml, tmp_path):
    """`gan_run("name", "section.key=value", …)` => a `Run` in `tmp_path/name`."""
    values = yaml.safe_load(tiny_yaml.read_text())
    values["model"] = {"type": "MaxViTGAN2DModel", "config": MODEL}
    values["objective"] = {"type": "non_saturating", "options": {"r1_gamma": 0.5}}
    tiny_yaml.write_text(yaml.safe_dump(values))

    def build(name, *overrides):
        return prepare(GanTask, load_config(tiny_yaml, [f"run.output_dir={tmp_path / name}", *overrides]))

    return build


def test_a_run_leaves_a_pipeline_and_resumes_bit_for_bit(gan_run, tmp_path, final_tensors):
    train(gan_run("whole", "samples.count=2", "run.sample_images=32", "run.log_images=8"))
    train(gan_run("halves", "run.total_images=16"))
    train(gan_run("halves"))
    whole, halves = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())
    assert any("discriminator" in name for name in whole)
    pipe = OneStepPipeline.from_pretrained(tmp_path / "whole" / "pipeline")
    assert pipe(2, torch.Generator().manual_seed(0), output_type="pt").images.shape == (2, 3, 8, 8)
    assert len(list((tmp_path / "whole" / "samples").glob("*.png"))) == 1
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"objective/discriminator", "objective/r1", "train/loss"} <= lines[0].keys()
    assert len({line["objective/discriminator"] for line in lines if "objective/discriminator" in line}) > 1


def test_both_networks_learn(gan_run):
    run = gan_run("run", "run.total_images=8")
    before = {name: tensor.clone() for name, tensor in run.task.network.state_dict().items()}
    train(run)
    after = run.task.network.state_dict()
    for part in ("generator.", "discriminator."):
        assert any(not torch.equal(after[name], tensor) for name, tensor in before.items() if name.startswith(part))


def test_kernel_distance_on_the_way(gan_run, tmp_path, tiny_yaml):
    pytest.importorskip("efficientnet_lite_pytorch")
    source = yaml.safe_load(tiny_yaml.read_text())["data"]["source"]
    from brickwork.eval.sets.pictures import Preparation

    reference = make_reference(
        source, load_extractor("efficientnet-lite0"), "clean", Preparation(resolution=8), limit=6, progress=False
    )
    reference.save(tmp_path / "reference.safetensors")
    metrics = [f"metrics.reference={tmp_path / 'reference.safetensors'}", "metrics.every_images=16", "metrics.count=4"]
    train(gan_run("run", "run.total_images=16", *metrics))
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "metrics/KD-EffNetLite0" in log


def test_every_image_moves_by_itself_and_its_edge_goes_on():
    torch.manual_seed(0)
    images = torch.arange(8.0).expand(6, 1, 8, 8).clone()
    moved = shift_images(images, 0.25)
    assert moved.shape == images.shape
    shifts = {tuple(row.tolist()) for row in moved[:, 0, 0]}
    assert len(shifts) > 1
    for row in shifts:
        assert any(row == tuple(min(max(k + by, 0), 7) for k in range(8)) for by in range(-2, 3))
    assert torch.equal(shift_images(images, 0.0), images)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.type=BlockUNet2DModel"], "`model.type` is 'BlockUNet2DModel'; this script trains with"),
        (["objective.type=edm"], "`objective.type` is 'edm'"),
        (["objective.options={r1: 1}"], "`objective.options` or `model.config` has a value that does not fit"),
        (["objective.options={r1_gamma: -1}"], "`r1_gamma` and `max_shift` are -1 and 0.125"),
        (["data.size=18"], "`discriminator_channels` has 3 entries"),
    ],
)
def test_bad_input(gan_run, overrides, message):
    with pytest.raises(ValueError, match=message):
        gan_run("run", *overrides)


def test_objective_is_checked():
    with pytest.raises(ValueError, match="a share below 1"):
        AdversarialObjective(max_shift=1.0)


def test_the_script_tries_its_configuration(gan_run, tiny_yaml, tmp_path, capsys):
    assert main(["--config", str(tiny_yaml), "--dry-run", f"run.output_dir={tmp_path / 'run'}"]) == 0
    assert "discriminator" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["--config", str(tiny_yaml), "model.type=nothing"]) == 2
