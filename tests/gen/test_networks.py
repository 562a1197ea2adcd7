"""What every registered network promises. A new one is tested by its line in `gen/networks/__init__.py`."""

import inspect

import pytest
import torch
from diffusers import AutoModel

import brickwork
from brickwork.gen.networks import NETWORKS, load_network_class


def fill(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random numbers everywhere: fresh networks end in zeros and would hide mistakes."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


@pytest.fixture(params=list(NETWORKS))
def model(request):
    network = load_network_class(request.param)
    return fill(network(**network.smallest))


def inputs_of(model, batch=2, height=17, width=22):
    """Arguments of `forward` full of noise, with labels; of the only size there is, where a network draws but one."""
    try:
        call = model.example_inputs(batch, height, width)
    except ValueError:
        call = model.example_inputs(batch, model.config.sample_size, model.config.sample_size)
    call = {name: torch.randn_like(value) if value.ndim > 1 else value for name, value in call.items()}
    if "class_labels" in inspect.signature(model.forward).parameters:
        call["class_labels"] = torch.arange(batch) % (model.config.num_classes + 1)
    return call


@torch.no_grad()
def test_any_size_and_the_tuple_is_the_output(model):
    call = inputs_of(model)
    output = model(**call).sample
    assert output.isfinite().all() and output.std() > 0
    expected = call["sample"].shape[-2:] if "sample" in call else (model.config.sample_size,) * 2
    assert output.shape[-2:] == expected
    assert torch.equal(model(**call, return_dict=False)[0], output)


@torch.no_grad()
def test_saved_and_loaded_by_its_class_and_by_diffusers(model, tmp_path):
    call = inputs_of(model)
    expected = model(**call).sample
    model.save_pretrained(tmp_path)
    for loaded in (type(model).from_pretrained(tmp_path), AutoModel.from_pretrained(str(tmp_path))):
        assert type(loaded) is type(model) is getattr(brickwork, type(model).__name__)
        assert torch.equal(loaded(**call).sample, expected)
        assert {k: v.shape for k, v in loaded.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }


@torch.no_grad()
def test_every_subnet_runs_and_the_last_is_the_network(model):
    call, side = inputs_of(model), model.config.sample_size
    costs = model.subnets(side, side)
    assert list(costs) == model.subnet_names() and all(operations > 0 for operations in costs.values())
    outputs = {name: model(**call, subnet=name).sample for name in costs}
    assert torch.equal(outputs[list(costs)[-1]], model(**call).sample)
    assert torch.equal(model(**call, subnet="full").sample, model(**call, subnet="whole").sample)
    assert len({output.sum().item() for output in outputs.values()}) == len(costs)
    with pytest.raises(ValueError, match="subnet"):
        model(**call, subnet="fulll")


def test_gradient_checkpointing_changes_nothing(model):
    call, gradients = inputs_of(model), []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model.train()(**call).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


def test_bad_input_says_what_to_do(model):
    call = inputs_of(model)
    if "sample" not in call:
        with pytest.raises(ValueError, match="this network reads"):
            model(**call | {"latents": call["latents"][:, 1:]})
        return
    sample = call["sample"]
    for wrong in (sample[:0], sample[:, :2], sample.long(), sample[0], [0.0]):
        with pytest.raises(ValueError, match="`sample`"):
            model(**call | {"sample": wrong})
    with pytest.raises(ValueError, match="`timestep` has shape"):
        model(**call | {"timestep": torch.ones(3)})
    for wrong in ([0, 1], torch.tensor([0, 6]), torch.zeros(2), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ValueError, match="`class_labels`"):
            model(**call | {"class_labels": wrong})
