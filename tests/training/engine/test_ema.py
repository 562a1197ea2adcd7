"""Averaged weights against the closed form, with buffers, and put in place without a trace."""

import pytest
import torch

from brickwork.training.engine.ema import EMA


def constant_after_jump(half_life, rampup, steps=6, batch=10):
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    ema = EMA(layer, half_life, rampup)
    layer.weight.data.fill_(1.0)
    for step in range(1, steps + 1):
        ema.update(step * batch, batch)
    return ema.average["weight"].item()


def test_half_of_a_weight_is_gone_after_the_half_life():
    # From 0 to a constant 1: the average is 1 - 0.5^(images / half-life), however long a step is.
    assert constant_after_jump(60, 0) == pytest.approx(0.5)
    assert constant_after_jump(30, 0) == pytest.approx(0.75)
    assert constant_after_jump(60, 0, steps=60, batch=1) == pytest.approx(0.5)


def test_ramp_up_is_a_share_of_the_images_seen():
    expected = 1.0
    for step in range(1, 7):
        expected *= 0.5 ** (10 / min(1000, 0.1 * step * 10))
    assert constant_after_jump(1000, 0.1) == pytest.approx(1 - expected)


def test_a_half_life_of_zero_follows_at_once():
    assert constant_after_jump(0, 0) == 1.0


def test_statistics_are_averaged_and_counters_taken_over():
    norm = torch.nn.BatchNorm2d(2)
    ema = EMA(norm, 10, 0)
    norm.running_mean.fill_(4.0)
    norm.num_batches_tracked.fill_(7)
    ema.update(10, 10)
    assert ema.average["running_mean"].tolist() == [2.0, 2.0]
    assert ema.average["num_batches_tracked"].item() == 7


def test_frozen_parameters_are_not_followed():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    network[0].requires_grad_(False)
    assert set(EMA(network, 10).average) == {"1.weight", "1.bias"}


def test_applied_puts_back_the_same_bits():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ema = EMA(network, 10, 0)
    for average in ema.average.values():
        average.fill_(0.25)
    with pytest.raises(RuntimeError, match="stop"), ema.applied() as averaged:
        assert not averaged.training
        assert not torch.is_grad_enabled()
        assert averaged(torch.ones(1, 3)).tolist() == [[1.0] * 4]
        raise RuntimeError("stop")
    assert network.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_averages_of_another_network_are_refused():
    with pytest.raises(ValueError, match="another network.*bias"):
        EMA(torch.nn.Linear(1, 1), 10).load_state_dict({"weight": torch.zeros(1, 1)})
