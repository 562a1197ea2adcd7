"""What needs a GPU: fp16 with its scaler, and FSDP2 through accelerate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from brickwork.training.checkpoints import CheckpointFolder

TRAINING = Path(__file__).parents[2] / "training"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("kind", ["one_gpu", "one_node_fsdp2"])
def test_a_run_goes_on_and_leaves_a_pipeline(tiny_yaml, tmp_path, kind):
    folder = tmp_path / "run"
    processes = 1 if kind == "one_gpu" else torch.cuda.device_count()
    precision = "fp16" if kind == "one_gpu" else "bf16"
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", TRAINING / "configs" / "accelerate" / f"{kind}.yaml", f"--num_processes={processes}"]
    for total in (16 * processes, 32 * processes):
        overrides = [
            f"run.output_dir={folder}", f"run.total_images={total}", f"run.batch_size={8 * processes}",
            f"run.mixed_precision={precision}", "samples.count=2", "samples.steps=1", "run.sample_images=16",
        ]  # fmt: skip
        command = [*launch, TRAINING / "train_backbone.py", "--config", tiny_yaml, *overrides]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert [start["images"] for start in starts] == [0, 16 * processes]
    assert starts[0]["distributed"] == ("NO" if kind == "one_gpu" else "FSDP")
    tensors, state = CheckpointFolder(folder / "checkpoints").newest()
    assert (state["scaler"] is not None) == (precision == "fp16")
    assert all(torch.isfinite(tensor).all() for tensor in tensors["ema"].values())
    assert (folder / "pipeline" / "model_index.json").exists()
