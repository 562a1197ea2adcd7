"""DeepSpeed through accelerate: two processes over gloo equal one without it, and go on with it and without."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType

from brickwork.training.engine import loop
from brickwork.training.engine.loop import fit_distribution, train

# Not imported here: it would set up what GPUs there are, and these tests fork.
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
ALL_BRICKS = "objective.brick_dropout=0"


@pytest.fixture
def two_zero_processes(two_processes, monkeypatch):
    """`two_zero_processes(stage, function)`: as `two_processes`, where accelerate shares networks by DeepSpeed.

    It does so on GPUs alone; here it is told that two processors, which talk over gloo, are two of them.
    """
    from accelerate.state import PartialState

    def run(stage, function):
        def child(rank):
            file = Path(loop.__file__).parents[1] / "configs" / "accelerate" / "deepspeed.yaml"
            values = yaml.safe_load(file.read_text())["deepspeed_config"] | {"zero_stage": stage}
            os.environ |= {f"ACCELERATE_DEEPSPEED_{name.upper()}": str(value) for name, value in values.items()}
            os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "false"}
            os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
            monkeypatch.setattr(PartialState, "_prepare_backend", lambda *_: ("gloo", DistributedType.MULTI_GPU))
            function(rank)

        two_processes(child)

    return run


@needs_deepspeed
@pytest.mark.parametrize(("stage", "precision"), [(1, "no"), (2, "no"), (2, "bf16")])
def test_two_processes_equal_one_without_it_and_resume_exactly(
    two_zero_processes, tiny_run, tmp_path, final_tensors, equal_bits, stage, precision
):
    options = [ALL_BRICKS, f"run.mixed_precision={precision}", "run.gradient_accumulation_steps=2"]
    options += ["optimizer.max_grad_norm=0.05", "optimizer.weight_decay=0.1", "optimizer.schedule=inverse_sqrt"]
    options += ["optimizer.decay_images=8"]

    def checked(call):
        import deepspeed

        def called(model, step):
            assert type(model) is deepspeed.DeepSpeedEngine and model.zero_optimization_stage() == stage
            assert len(step.images) == 2  # 8 images a step = 2 × 2 accumulated × 2 processes
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
            seen, linear = [], next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
            hook = linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
            outputs = call(model, step)
            hook.remove()
            assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32]
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")  # for what is computed beside the network
            return outputs

        return called

    def train_both(rank):
        for name, *overrides in (("two",), ("two-parts", "run.total_images=16"), ("two-parts",)):
            run = tiny_run(name, *options, *overrides)
            run.task.call = checked(run.task.call)
            train(run)

    two_zero_processes(stage, train_both)
    two, parts = final_tensors(tmp_path / "two"), final_tensors(tmp_path / "two-parts")
    assert equal_bits(two, parts)
    train(tiny_run("one", *options))
    one = final_tensors(tmp_path / "one")
    assert set(one) == set(two)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-3, atol=1e-5 if precision == "no" else 1e-3)


@needs_deepspeed
def test_a_run_goes_on_with_it_and_without(two_zero_processes, tiny_run, tmp_path, final_tensors):
    def train_until(name, total):
        train(tiny_run(name, ALL_BRICKS, f"run.total_images={total}"))

    train_until("whole", 48)
    train_until("changed", 16)
    two_zero_processes(2, lambda rank: train_until("changed", 32))
    train_until("changed", 48)
    whole, changed = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "changed")
    assert set(whole) == set(changed)
    assert {tensor.item() for name, tensor in changed.items() if name.endswith("|step")} == {6.0}
    for name, tensor in whole.items():
        torch.testing.assert_close(changed[name], tensor, rtol=2e-3, atol=1e-5)


@needs_deepspeed
def test_gradients_that_are_not_finite_are_left_out(
    two_zero_processes, tiny_run, tmp_path, final_tensors, with_losses
):
    def train_both(rank):
        def broken(losses):
            calls.append(1)
            # of one process, in the second step
            return losses * (float("nan") if len(calls) == 2 and rank == 1 else 1.0)

        calls = []
        train(with_losses(tiny_run("run", ALL_BRICKS, "run.log_images=8"), broken))

    two_zero_processes(2, train_both)
    tensors = final_tensors(tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert {tensor.item() for name, tensor in tensors.items() if name.endswith("|step")} == {3.0}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    counts = [line["train/nonfinite_steps"] for line in lines if "train/nonfinite_steps" in line]
    assert counts == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("plugin", "overrides", "message"),
    [
        ({"zero_stage": 3}, [ALL_BRICKS], "`zero_stage` is 3; 1 and 2 are possible"),
        ({"offload_optimizer_device": "cpu"}, [ALL_BRICKS], "offload to the CPU or a disk"),
        ({}, [], "`objective.brick_dropout` has steps that leave parts out"),
        ({}, [ALL_BRICKS, "optimizer.type=adamw_8bit"], "`optimizer.type` is 'adamw_8bit'; adamw"),
        ({}, [ALL_BRICKS, "run.mixed_precision=fp16"], "`run.mixed_precision` is 'fp16'; bf16"),
    ],
)
def test_what_it_cannot_do_is_refused(tiny_run, plugin, overrides, message):
    """With words that name the key and another way."""
    run = tiny_run("run", *overrides)
    plugin = {"zero_stage": 2, "offload_optimizer_device": "none", "offload_param_device": "none"} | plugin
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config={}, **plugin))
    run.task.accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=state, num_processes=2)
    with pytest.raises(ValueError, match=f"{message}.*one_node"):
        fit_distribution(run.task, run.settings.run, run.settings.optimizer)
