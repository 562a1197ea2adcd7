"""What a run needs on many GPUs, against what small runs really take."""

import pytest
import torch

from brickwork.cli import main
from brickwork.eval.benchmark.memory import TensorBytes
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.training.config import at_scale
from brickwork.training.engine.loop import train


def lego() -> LegoTransformer2DModel:
    return LegoTransformer2DModel(**LegoTransformer2DModel.smallest)


def test_a_checkpoint_is_as_large_as_computed(tiny_run, tmp_path):
    run = tiny_run("run", "run.total_images=8", "run.checkpoint_images=8")
    computed = at_scale.checkpoint_bytes(at_scale.weights_of(run.task.network))
    train(run)
    written = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints").rglob("*.safetensors"))
    tensors = 3 * len(list(run.task.network.parameters())) + len(run.task.network.state_dict())
    assert computed < written < computed + 250 * tensors  # names, and AdamW's counts of steps


def test_activations_are_those_of_a_real_forward_pass():
    counted = at_scale.count_run(lego, 16, 3, half=False, checkpointing=False)
    with TensorBytes() as alive:  # from the network on, whose weights would else be counted when first read
        network = lego().train()
        inputs = network.example_inputs(3, 16, 16)
        before = alive.now
        output = network(**inputs).sample.sum()
    assert output.requires_grad and counted.activations == alive.now - before
    assert counted.parameters == at_scale.weights_of(network)
    fewer = at_scale.count_run(lego, 16, 3, half=False, checkpointing=True)
    halved = at_scale.count_run(lego, 16, 3, half=True, checkpointing=False)
    assert fewer.activations < counted.activations and 0.45 < halved.activations / counted.activations < 0.8


def test_sums():
    counted = at_scale.Counted(
        parameters=1000, largest_block=100, activations=7, operations=10**6, batch=2, number=at_scale.HALF
    )
    assert at_scale.memory_of_gpu(counted, 10)["total"] == 4 * 5 * 100 + 2 * 2 * 100 + 2 * 100 + 7
    assert at_scale.traffic_of_step(counted, 10) == pytest.approx(0.9 * 1000 * 2 * 3)
    seconds = at_scale.time_of_step(counted, at_scale.Cluster(10, rate=1e6, link=5400, disk=1), 4)
    assert seconds == pytest.approx({"computing": 12, "traffic": 1, "step": 12})


@pytest.mark.parametrize(
    "words, message",
    [(["run.batch_size=6", "--gpus", "4"], "multiple of 4"), (["--link", "0"], "--link"), (["--gpus", "0"], "--gpus")],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert main(["plan", "tiny-maxvit", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_the_command_says_all(capsys):
    torch.manual_seed(0)
    assert main(["plan", "lego-s-pg-64", "--gpus", "8", "run.batch_size=16", "run.gradient_accumulation_steps=2"]) == 0
    said = capsys.readouterr().out
    assert "8 GPUs with 1 images each" in said
    for what in ("activations", "traffic of a step", "a checkpoint", "reading pictures"):
        assert what in said
