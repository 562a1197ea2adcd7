"""Two processes over gloo: equal to one with the same global batch, exact to resume, and sharded by fully_shard."""

import os
from pathlib import Path

import pytest
import torch


def test_two_processes_equal_one_and_resume_exactly(
    two_processes, tiny_run, tmp_path, final_tensors, equal_bits, watch
):
    from brickwork.training.engine.loop import train

    def checked(network, step):
        assert type(network) is torch.nn.parallel.DistributedDataParallel
        assert torch.distributed.get_world_size() == 2
        assert len(step.images) == 2  # 8 images a step = 2 × 2 accumulated × 2 processes

    def train_both(rank):
        for name, *overrides in (
            ("two",),
            ("two-parts", "run.total_images=16"),
            ("two-parts", "data.num_workers=1"),
        ):
            train(watch(tiny_run(name, "run.gradient_accumulation_steps=2", *overrides), checked))

    two_processes(train_both)
    assert equal_bits(final_tensors(tmp_path / "two"), final_tensors(tmp_path / "two-parts"))
    train(tiny_run("one"))
    one, two = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("block", ["DiTTokenBlock", "I2RMB"])
def test_fsdp2_through_accelerate_equals_one_and_resumes_exactly(
    two_processes, tiny_run, tiny_yaml, tmp_path, monkeypatch, final_tensors, equal_bits, watch, block
):
    """accelerate shards on GPUs alone; here it is told that two processors, which talk over gloo, are two of them.

    The second network has BatchNorm, whose statistics are not sharded, and a frozen table of positions, which is.
    """
    import yaml
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    from brickwork.training.engine import loop
    from brickwork.training.engine.loop import train

    if block == "I2RMB":
        values = yaml.safe_load(tiny_yaml.read_text())
        config = {"block_types": "i2rmb", "patch_size": 2, "num_layers": 2, "hidden_size": 16}
        config |= {"attention_head_dim": 8, "window_size": 4}
        values["model"] = {"type": "BlockTransformer2DModel", "config": config}
        values["objective"]["brick_dropout"] = 0
        tiny_yaml.write_text(yaml.safe_dump(values))

    def checked(network, step):
        blocks = [module for module in network.modules() if type(module).__name__ == f"FSDP{block}"]
        assert len(blocks) == 2 and len(step.images) == 4

    def train_both(rank):
        file = Path(loop.__file__).parents[1] / "configs" / "accelerate" / "one_node_fsdp2.yaml"
        values = yaml.safe_load(file.read_text())["fsdp_config"]
        os.environ |= {name.upper(): str(value) for name, value in values.items()}  # as accelerate launch does
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "false", "ACCELERATE_TORCH_DEVICE": "cpu"}
        monkeypatch.setattr(PartialState, "_prepare_backend", lambda *_: ("gloo", DistributedType.MULTI_GPU))
        for name, *overrides in (("two",), ("two-parts", "run.total_images=16"), ("two-parts",)):
            run = tiny_run(name, *overrides)
            assert run.accelerator.is_fsdp2
            train(watch(run, checked))

    two_processes(train_both)
    assert equal_bits(final_tensors(tmp_path / "two"), final_tensors(tmp_path / "two-parts"))
    assert (tmp_path / "two" / "pipeline" / "model_index.json").is_file()
    if block == "I2RMB":
        return  # half a batch has other statistics
    train(tiny_run("one"))
    one, two = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-3, atol=1e-5)


def test_losses_are_gathered_over_processes(two_processes, tiny_run, tmp_path):
    import json

    from brickwork.training.engine.loop import train

    def loss_of(name):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return [line["train/loss"] for line in lines]

    two_processes(lambda rank: train(tiny_run("two")))
    train(tiny_run("one"))
    assert loss_of("two") == pytest.approx(loss_of("one"), rel=1e-4)


def test_one_process_that_is_asked_to_stop_stops_both(two_processes, tiny_run, tmp_path, watch):
    import signal

    from brickwork.training.engine.loop import train

    def train_both(rank):
        def signalled(network, step):
            calls.append(1)
            if rank == 1 and len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        calls = []
        assert train(watch(tiny_run("run"), signalled)) == 16

    two_processes(train_both)
    assert (tmp_path / "run" / "checkpoints" / "images-000000000016").is_dir()


def test_both_processes_are_refused_alike(two_processes, tiny_run, tmp_path):
    from brickwork.training.engine.loop import train

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("")

    def refused(rank):
        with pytest.raises(ValueError, match=r"holds mine.txt and no run"):
            train(tiny_run("run"))

    two_processes(refused)


def test_sharded_averages_and_checkpoints(two_processes, tmp_path):
    """A network sharded by torch's fully_shard: averages follow the shards, files hold whole tensors."""
    from brickwork.training.engine.checkpoints import (
        CheckpointFolder,
        load_optimizer_tensors,
        load_tensors,
        optimizer_tensors,
        trained_tensors,
    )
    from brickwork.training.engine.ema import EMA

    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.SiLU(), torch.nn.Linear(7, 3))

    def trained(model, steps, ema, optimizer, first=0):
        for step in range(first, first + steps):
            torch.manual_seed(step)
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update(4 * (step + 1), 4)

    def parts(sharded):
        from torch.distributed.fsdp import fully_shard

        model = network()
        if sharded:
            fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, EMA(model, 8, 0)

    def save(folder, model, optimizer, ema, write=True):
        tensors = {
            "model": trained_tensors(model),
            "ema": ema.state_dict(),
            "optimizer": optimizer_tensors(optimizer, model),
        }
        CheckpointFolder(tmp_path / folder).save(1, tensors, {}, write=write)

    def sharded(rank):
        from torch.distributed.tensor import DTensor

        torch.distributed.init_process_group("gloo")
        model, optimizer, ema = parts(True)
        assert all(isinstance(tensor, DTensor) for tensor in ema.average.values())
        trained(model, 2, ema, optimizer)
        save("half", model, optimizer, ema, write=rank == 0)
        torch.distributed.barrier()
        model, optimizer, ema = parts(True)  # another process group's worth of fresh shards
        tensors, _ = CheckpointFolder(tmp_path / "half").newest()
        load_tensors(trained_tensors(model), tensors["model"])
        load_optimizer_tensors(optimizer, model, tensors["optimizer"])
        ema.load_state_dict(tensors["ema"])
        trained(model, 2, ema, optimizer, first=2)
        before = [p.to_local().clone() for p in model.parameters()]
        with ema.applied() as averaged:
            assert not torch.equal(before[0], next(averaged.parameters()).to_local())
            averaged(torch.ones(1, 5))
        assert all(torch.equal(a, p.to_local()) for a, p in zip(before, model.parameters()))
        save("sharded", model, optimizer, ema, write=rank == 0)

    two_processes(sharded)
    model, optimizer, ema = parts(False)
    trained(model, 4, ema, optimizer)
    save("whole", model, optimizer, ema)
    expected, _ = CheckpointFolder(tmp_path / "whole").newest()
    got, _ = CheckpointFolder(tmp_path / "sharded").newest()
    assert {stem: set(content) for stem, content in got.items()} == {s: set(c) for s, c in expected.items()}
    for stem, content in expected.items():
        for name, tensor in content.items():
            torch.testing.assert_close(got[stem][name], tensor, rtol=1e-4, atol=1e-6)
