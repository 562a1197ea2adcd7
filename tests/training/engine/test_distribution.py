"""What accelerate is asked for, fitted to the network, or refused."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from brickwork.training.engine.loop import fit_distribution, train


def test_the_first_fsdp_is_refused(tiny_run, tmp_path, monkeypatch):
    run = tiny_run("run")
    monkeypatch.setattr(type(run.accelerator), "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(type(run.accelerator), "is_fsdp2", False)
    with pytest.raises(ValueError, match="FSDP version 1, whose optimiser states.*one_node_fsdp2.yaml"):
        train(run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("asked", "wrapped"), [(None, ["DiTTokenBlock"]), (["LegoBrick"], ["LegoBrick"])])
def test_fsdp2_wraps_the_blocks_that_there_are_or_those_asked_for(tiny_run, asked, wrapped):
    plugin, run = SimpleNamespace(transformer_cls_names_to_wrap=asked), tiny_run("run")
    run.task.accelerator = SimpleNamespace(
        distributed_type=DistributedType.FSDP, is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin)
    )
    fit_distribution(run.task, run.settings.run, run.settings.optimizer)
    assert plugin.transformer_cls_names_to_wrap == wrapped
    assert "PretrainedBrick" in run.task.network._no_split_modules  # which accelerate would look for in vain


def test_fsdp2_refuses_networks_that_draw_with_a_part():
    network = type("UNetWithText", (), {})()
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True)
    task = SimpleNamespace(accelerator=accelerator, network=network, drawn_in_part=True)
    with pytest.raises(ValueError, match="a part of a UNetWithText.*one_node.yaml or deepspeed.yaml"):
        fit_distribution(task, None, SimpleNamespace(type="adamw"))


def test_fsdp2_refuses_muon():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True)
    task = SimpleNamespace(accelerator=accelerator, network=None)
    with pytest.raises(ValueError, match="`optimizer.type` is 'muon'.*take adamw, or launch with one_node.yaml"):
        fit_distribution(task, None, SimpleNamespace(type="muon"))
