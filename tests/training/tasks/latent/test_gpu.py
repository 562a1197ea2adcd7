"""What needs a GPU: text-to-image and ResAdapter training in fp16."""

import json

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from brickwork.training import train_resadapter, train_text_to_image
from brickwork.training.engine.checkpoints import CheckpointFolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("task", ["resadapter", "unet", "unet_and_text", "lora"])
def test_a_step_in_fp16_leaves_a_result(tiny_run, bases, tmp_path, task):
    tiny_run("none")  # writes tiny.yaml
    AcceleratorState._reset_state(reset_partial_state=True)
    script = train_resadapter
    values = [f"model.base={bases['sd1']}", f"run.output_dir={tmp_path / 'run'}", "run.mixed_precision=fp16"]
    values += ["run.total_images=2", "run.sample_images=2", f"data.cache={tmp_path / 'cache'}"]
    if task != "resadapter":
        script = train_text_to_image
        config = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
        del config["adapter"]
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
        values.append(f"parts.train={task}")
    assert script.main(["--config", str(tmp_path / "tiny.yaml"), *values]) == 0
    start = json.loads((tmp_path / "run" / "starts.jsonl").read_text())
    assert start["device"].startswith("cuda")
    tensors, state = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()
    assert state["scaler"]["scale"] >= 1.0
    assert all(torch.isfinite(tensor).all() for tensor in tensors["ema"].values())
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    results = {"resadapter": "adapter/run.safetensors", "lora": "pytorch_lora_weights.safetensors"}
    assert (tmp_path / "run" / results.get(task, "pipeline/model_index.json")).is_file()
