"""The entry script, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from brickwork.training.train_backbone import main

ACCELERATE = Path(__file__).parents[3] / "training" / "configs" / "accelerate"
SCRIPT = Path(__file__).parents[3] / "training" / "train_backbone.py"


def test_accelerate_launch_with_one_process_and_with_two(tiny_yaml, tmp_path):
    """One process by `accelerate launch`, then two over gloo (accelerate calls torchrun) go on with the same run."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [SCRIPT, "--config", tiny_yaml, f"run.output_dir={tmp_path / 'run'}"]
    for processes, total in (("one_cpu", 32), ("two_cpu_processes", 48)):
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            ACCELERATE / f"{processes}.yaml",
        ]
        done = subprocess.run(
            [*launch, *command, f"run.total_images={total}"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    assert "48.0/48.0" in done.stderr
    starts = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert [(s["processes"], s["distributed"], s["model"], s["images"]) for s in starts] == [
        (1, "NO", "LegoTransformer2DModel", 0),
        (2, "MULTI_CPU", "DistributedDataParallel", 32),
    ]
    assert (tmp_path / "run" / "checkpoints" / "images-000000000048").is_dir()


@pytest.mark.parametrize("file", sorted(ACCELERATE.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_takes_the_configuration_files(file):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(file)).num_processes >= 1


def test_the_slurm_job_starts_a_launcher_a_node_and_requeues_itself(tmp_path):
    """With stand-ins for SLURM's commands, and for accelerate: what they are called with."""
    stand_ins = {
        "scontrol": 'if [ "$1" = show ]; then echo n1; echo n2; else echo "$@" >> "$0.txt"; fi',
        "srun": 'while [ "$1" != bash ]; do echo "$1" >> "$0.txt"; shift; done; SLURM_NODEID=1 "$@"',
        "accelerate": 'echo "$OMP_NUM_THREADS $@" >> "$0.txt"; kill -USR1 "$JOB"; sleep 0.2',
    }
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}
    slurm |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = f"export JOB=$$; exec bash {ACCELERATE / 'slurm.sh'} my.yaml 'data.source=my pictures'"
    subprocess.run(["bash", "-c", command], env=os.environ | slurm, timeout=60)
    said = {name: (tmp_path / f"{name}.txt").read_text() for name in stand_ins}
    assert said["accelerate"].startswith("8 launch --config_file training/configs/accelerate/many_nodes.yaml ")
    assert "--num_machines 2 --num_processes 8 --machine_rank 1 --main_process_ip n1 " in said["accelerate"]
    assert said["accelerate"].endswith("train_backbone.py --config my.yaml data.source=my pictures\n")
    assert said["srun"].split() == ["--cpus-per-task=32", "--kill-on-bad-exit=1"]
    assert said["scontrol"] == "requeue 7\n"


def test_dry_run_checks_everything_and_leaves_nothing(tiny_yaml, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["--config", str(tiny_yaml), "--dry-run", f"run.output_dir={folder}", "run.seed=5"]) == 0
    out = capsys.readouterr().out
    assert "LegoTransformer2DModel: " in out
    assert "102 images of 9 classes to train on, 6 held out" in out
    assert "8 images a step = 8 × 1 accumulated × 1 process(es)" in out
    assert yaml.safe_load(out[out.index("model:\n") :])["run"]["seed"] == 5
    assert not folder.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.batchsize=8", "did you mean `batch_size`"),
        ("data.source=/nowhere.parquet", "/nowhere.parquet"),
        ("data.held_out=0.999", "No image is left to train on"),
        ("model.type=LegoTransformer", "did you mean 'LegoTransformer2DModel'"),
        ("objective.type=edn", "did you mean 'edm'"),
        ("model.config.window_size=[8]", "did you mean 'window_sizes'"),
        ("model.preset=lego-s-pg-46", "lego-s-pg-64"),
        ("model.init_from=/nowhere", "`model.init_from` is '/nowhere', which holds no LegoTransformer2DModel"),
        ("data.classes=[Smiles]", "the data set has Smileys & Emotion"),
        ("data.size=3", "3x3, less than one patch of 4x4"),
        (f"run.output_dir={__file__}", "which is a file; name a folder"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tiny_yaml, tmp_path, capsys, override, message):
    assert main(["--config", str(tiny_yaml), "--dry-run", f"run.output_dir={tmp_path / 'run'}", override]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_preset_with_values_over_it(tiny_run):
    run = tiny_run("run", "model.preset=lego-s-pg-64", "data.classes=[Flags]", "model.config.mlp_ratio=2.0")
    assert run.task.network.config.window_sizes == [8, 4]
    assert run.task.network.config.mlp_ratio == 2.0
    assert run.task.network.config.num_classes == 1
    assert run.task.network.config.id2label == {0: "Flags"}
    assert run.task.network.config.sample_size == 8


def test_initial_weights_follow_the_seed_alone(tiny_run):
    first = tiny_run("a").task.network
    torch.rand(3)
    second = tiny_run("b").task.network
    assert torch.equal(first.bricks[0].patch_embed.weight, second.bricks[0].patch_embed.weight)
    assert not torch.equal(
        first.bricks[0].patch_embed.weight, tiny_run("c", "run.seed=1").task.network.bricks[0].patch_embed.weight
    )


def test_starting_from_saved_weights(tiny_run, tmp_path):
    from brickwork.training.engine.loop import train

    train(tiny_run("first", "run.total_images=8", "objective.brick_dropout=0"))
    for source in ("pipeline", "pipeline/transformer"):
        run = tiny_run("second", f"model.init_from={tmp_path / 'first' / source}")
        exported = tiny_run("x").task.network.from_pretrained(tmp_path / "first" / "pipeline" / "transformer")
        assert torch.equal(run.task.network.bricks[1].proj_out.weight, exported.bricks[1].proj_out.weight)
        assert run.task.network.config.trained_subsets == "any"  # brick dropout is on in this run
    with pytest.raises(ValueError, match="a network of 9 classes; the data have 2"):
        tiny_run("third", f"model.init_from={tmp_path / 'first' / 'pipeline'}", "data.label_column=style")
    train(tiny_run("second", f"model.init_from={tmp_path / 'first' / 'pipeline'}", "run.total_images=8"))
    assert (tmp_path / "second" / "pipeline").exists()


def test_saved_weights_keep_the_classes_that_the_data_have(tiny_run, tmp_path):
    saved = tiny_run("all").task.network.eval()
    for parameter in saved.parameters():  # a fresh network takes all classes alike
        torch.nn.init.normal_(parameter, std=0.2)
    saved.save_pretrained(tmp_path / "saved")
    fewer = tiny_run(
        "few", f"model.init_from={tmp_path / 'saved'}", "data.classes=[Symbols, Flags]"
    ).task.network.eval()
    assert fewer.config.id2label == {0: "Symbols", 1: "Flags"}
    number = {name: int(key) for key, name in saved.config.id2label.items()}
    sample, timestep = torch.randn(3, 3, 8, 12), torch.zeros(3)
    labels = torch.tensor([number["Symbols"], number["Flags"], saved.config.num_classes])
    before = saved(sample, timestep, labels).sample
    after = fewer(sample, timestep, torch.tensor([0, 1, 2])).sample
    torch.testing.assert_close(after, before)
    assert not torch.allclose(after, fewer(sample, timestep, torch.tensor([1, 0, 2])).sample)


def test_saved_weights_take_the_names_of_as_many_other_classes(tiny_run, tmp_path):
    tiny_run("flags", "data.classes=[Flags]").task.network.save_pretrained(tmp_path / "saved")
    other = tiny_run("symbols", f"model.init_from={tmp_path / 'saved'}", "data.classes=[Symbols]").task.network
    assert other.config.id2label == {0: "Symbols"}


def test_settings_reach_the_network(tiny_run):
    run = tiny_run("run", "run.gradient_checkpointing=true", "model.attention_backend=_native_math")
    assert run.task.network.is_gradient_checkpointing


def test_buckets_train(tiny_run, tmp_path):
    """The sample's pictures are square; some are cut to be wide, so that steps of two shapes alternate."""
    import numpy as np

    from brickwork.training.engine.loop import train

    run = tiny_run("run", "data.bucket_step=2", "run.total_images=112", "data.size=8", "samples.count=0")
    images = run.task.stream.images
    assert len(images.shapes) > 1
    images.buckets = np.arange(len(images)) % len(images.shapes)
    run.task.stream.row = type(run.task.stream.row)(
        run.task.stream.row.rows, images.buckets[run.task.stream.row.rows], images.shapes, 8, 0
    )
    shapes = set()
    hook = run.task.network.register_forward_pre_hook(lambda m, inputs: shapes.add(tuple(inputs[0].shape)))
    train(run)
    hook.remove()
    assert {shape[2:] for shape in shapes if shape[0] == 8} >= set(images.shapes)
