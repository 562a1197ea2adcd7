"""The networks inside a network, by name, and features out of one."""

import pytest
import torch

from brickwork.gen.subnets import FULL, Subnets, brick_subsets, bricks_of, find_subnet, name_of
from brickwork.gen.taps import tapped


def test_names_of_bricks_there_and_back():
    for bricks in brick_subsets(4, "any"):
        assert bricks_of(name_of(bricks)) == bricks
    assert brick_subsets(3, "prefix") == [(0,), (0, 1), (0, 1, 2)]
    for name in (None, "full", "whole"):
        assert bricks_of(name, 3) == (0, 1, 2)
    for name in ("0,1", "fulll", "", None, 3):
        with pytest.raises(ValueError, match="subnet"):
            bricks_of(name)


def test_the_last_is_the_network_itself():
    costs = Subnets({"small": 1, "large": 5})
    assert costs["full"] == costs["whole"] == 5 and list(costs) == ["small", "large"]
    assert [find_subnet(name, list(costs)) for name in (None, "whole", "small")] == ["large", "large", "small"]
    with pytest.raises(KeyError):
        costs["medium"]
    with pytest.raises(ValueError, match="did you mean 'small'"):
        find_subnet("smal", list(costs))


@torch.no_grad()
def test_a_stack_runs_the_bricks_of_a_name(lego):
    model = lego(trained_subsets="any")
    call = {"sample": torch.randn(2, 3, 13, 18), "timestep": torch.tensor([0.1, 0.7])}
    for name in model.subnets(13, 18):
        assert torch.equal(model(**call, subnet=name).sample, model(**call, bricks=bricks_of(name)).sample)
    assert torch.equal(model(**call, subnet=FULL).sample, model(**call).sample)
    for wrong in ("7", "1+0", "nought"):
        with pytest.raises(ValueError, match="bricks|subnet"):
            model(**call, subnet=wrong)
    with pytest.raises(ValueError, match="one of them"):
        model(**call, subnet="0", bricks=(0,))


def test_taps_are_the_outputs_of_the_parts_they_name():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    sample = torch.randn(2, 3)
    with tapped(network, ["0"]) as taps:
        network(sample)
    assert torch.equal(taps["0"], network[0](sample)) and taps["0"].requires_grad
    network(sample + 1)
    assert torch.equal(taps["0"], network[0](sample))  # the hooks are gone
    with pytest.raises(ValueError, match="choose one of"), tapped(network, ["layer.7"]):
        pass
