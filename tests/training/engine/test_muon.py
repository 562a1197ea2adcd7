"""Muon: directions of equal length, AdamW for what is no matrix, checkpoints that go on."""

import pytest
import torch

from brickwork.training.config.config import load_config
from brickwork.training.engine.loop import train
from brickwork.training.engine.muon import Muon, is_matrix, orthogonal
from brickwork.training.engine.schedule import build_optimizer

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}


def a_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(16, 24, 3, padding=1), torch.nn.GroupNorm(4, 24), torch.nn.Conv2d(24, 24, 3, groups=24),
        torch.nn.Flatten(), torch.nn.Linear(24 * 4, 20), torch.nn.Linear(20, 3),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(32, 80), (80, 32), (48, 120)])
def test_all_singular_values_come_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator) * torch.logspace(-0.5, 0.5, shape[1])
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert 0.6 < values.min() and values.max() < 1.25
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonal(matrix).flatten(), (left @ right).flatten(), dim=0) > 0.97


def test_a_matrix_step_is_torchs():
    """`torch.optim.Muon` with the same length of steps; it iterates in bf16."""
    torch.manual_seed(0)
    ours = torch.nn.Linear(64, 32, bias=False)
    theirs = torch.nn.Linear(64, 32, bias=False)
    theirs.load_state_dict(ours.state_dict())
    first = ours.weight.detach().clone()
    optimizers = (
        Muon([{"params": [ours.weight]}], **OPTIONS),
        torch.optim.Muon([theirs.weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            network.weight.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    moved, difference = (ours.weight - first).norm(), (ours.weight - theirs.weight).norm()
    assert difference < 0.02 * moved


def test_what_is_no_matrix_takes_adamws_step():
    ours, theirs = a_network(), a_network()
    optimizers = (
        Muon([{"params": list(ours.parameters()), "rate": 1.0}], **OPTIONS),
        torch.optim.AdamW(theirs.parameters(), **OPTIONS),
    )
    for step in range(2):
        for network in (ours, theirs):
            generator = torch.Generator().manual_seed(step)
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    same = {name: torch.allclose(one, theirs.get_parameter(name)) for name, one in ours.named_parameters()}
    assert [name for name, equal in same.items() if not equal] == ["0.weight", "4.weight"]
    assert all(is_matrix(ours.get_parameter(name)) != equal for name, equal in same.items())


def test_the_rate_of_a_group_reaches_both_kinds_of_parameters():
    network = a_network()
    optimizer = Muon([{"params": list(network.parameters()), "rate": 0.5}], **OPTIONS)
    optimizer.load_state_dict(optimizer.state_dict())  # other groups from here on
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        assert group["rate"] == 0.5
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def test_a_configuration_takes_it():
    settings = load_config(None, ["optimizer.type=muon"]).optimizer
    assert isinstance(build_optimizer(settings, a_network(), torch.device("cpu")), Muon)


def test_a_run_goes_on_bit_for_bit(tiny_run, tmp_path, final_tensors, equal_bits):
    muon = ("optimizer.type=muon", "model.config.hidden_sizes=[32, 32]")
    train(tiny_run("whole", *muon))
    train(tiny_run("parts", *muon, "run.total_images=16"))
    train(tiny_run("parts", *muon))
    whole = final_tensors(tmp_path / "whole")
    assert sum(name.endswith("|momentum") for name in whole) > 10
    assert equal_bits(whole, final_tensors(tmp_path / "parts"))
