"""What accelerate is asked for, fitted to the network, or refused."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from brickwork.training.distribution import fit_distribution
from brickwork.training.loop import train


@pytest.mark.parametrize(("kind", "name"), [("DEEPSPEED", "DEEPSPEED,"), ("FSDP", "FSDP version 1")])
def test_ways_to_share_that_checkpoints_cannot_hold_are_refused(tiny_run, tmp_path, monkeypatch, kind, name):
    run = tiny_run("run")
    monkeypatch.setattr(type(run.accelerator), "distributed_type", DistributedType(kind))
    monkeypatch.setattr(type(run.accelerator), "is_fsdp2", False)
    with pytest.raises(ValueError, match=f"{name}.*whose optimiser states.*one_node_fsdp2.yaml"):
        train(run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("asked", "wrapped"), [(None, ["DiTTokenBlock"]), (["LegoBrick"], ["LegoBrick"])])
def test_fsdp2_wraps_the_blocks_that_there_are_or_those_asked_for(tiny_run, asked, wrapped):
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=asked)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.FSDP, is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin)
    )
    network = tiny_run("run").model
    fit_distribution(accelerator, network)
    assert plugin.transformer_cls_names_to_wrap == wrapped
    assert "PretrainedBrick" in network._no_split_modules  # which accelerate would look for in vain
