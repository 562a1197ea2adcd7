"""The control adapter: nothing before training, off and without a condition; a condition image where there is one."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from brickwork import BlockUNet2DModel, ControlAdapter, load_adapter

OURS = {"block_out_channels": [8, 16], "block_types": "resnet", "layers_per_block": 1, "num_classes": 3}
CASES = [("sd", "composite"), ("sd", "controlnet"), ("ours", "composite")]


@pytest.fixture
def make(pipelines):
    """`make("sd")` => a network with a decoder that says something, and what it is called with."""

    def build(kind):
        torch.manual_seed(0)
        if kind == "ours":
            network = BlockUNet2DModel(**OURS)
            nn.init.normal_(network.conv_out.weight)
            return network.eval(), {"sample": torch.randn(2, 3, 16, 24), "timestep": torch.tensor([0.1, 0.3])}
        network = copy.deepcopy(pipelines["sd"].unet)
        text = torch.randn(2, 5, network.config.cross_attention_dim)
        return network, {"sample": torch.randn(2, 4, 8, 12), "timestep": 3, "encoder_hidden_states": text}

    return build


def trained(network, **config):
    """An adapter whose zeros have become something."""
    adapter = ControlAdapter.create(network, **config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return adapter


@pytest.mark.parametrize("kind, variant", CASES)
def test_nothing_until_it_is_trained_on_and_asked_for(make, kind, variant, tmp_path):
    network, inputs = make(kind)
    keys, plain, edges = list(network.state_dict()), network(**inputs).sample, torch.rand(1, 3, 32, 48)
    pixels = {"pixels": 1} if kind == "ours" else {"pixels": 4}
    fresh = ControlAdapter.create(network, variant=variant, **pixels)
    with fresh.condition(image=edges):
        assert torch.equal(network(**inputs).sample, plain)
    fresh.unload()
    adapter = trained(network, variant=variant, **pixels)
    assert torch.equal(network(**inputs).sample, plain)
    with adapter.condition(image=edges):
        full = network(**inputs).sample
        adapter.enabled = False
        assert torch.equal(network(**inputs).sample, plain)
        adapter.enabled = True
    with adapter.condition(image=edges, scale=0.5):
        half = network(**inputs).sample
    with adapter.condition(image=edges.flip(-1)):
        other = network(**inputs).sample
    assert not torch.allclose(full, plain) and not torch.allclose(full, half) and not torch.allclose(full, other)
    with adapter.condition(image=edges, scale=0):
        assert torch.equal(network(**inputs).sample, plain)
    adapter.save(tmp_path / "control.safetensors")
    adapter.unload()
    assert list(network.state_dict()) == keys and torch.equal(network(**inputs).sample, plain)
    again = load_adapter(network, tmp_path / "control.safetensors")
    assert isinstance(again, ControlAdapter) and again.config["variant"] == variant
    with again.condition(image=edges):
        assert torch.equal(network(**inputs).sample, full)


@pytest.mark.parametrize("kind, variant", CASES)
def test_the_network_stays_and_the_adapter_learns(make, kind, variant):
    network, inputs = make(kind)
    network.requires_grad_(False)
    adapter = trained(network, variant=variant, pixels=1 if kind == "ours" else 4)
    with adapter.condition(image=torch.rand(2, 3, 32, 48)):
        network(**inputs).sample.square().mean().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    silent = [name for name, parameter in adapter.parts.named_parameters() if parameter.grad is None]
    # What follows the last features is not read.
    assert all("downsample" in name or "resnets" in name or "label" in name for name in silent), silent
    assert len(adapter.trainable_parameters()) == len(list(adapter.parts.parameters()))


def test_links_come_from_every_higher_stage(make):
    network, _ = make("ours")
    dense = ControlAdapter.create(network).parts.links
    assert [list(links) for links in dense] == [["0", "1"], ["1"]]
    level = ControlAdapter.create(network, composition="same_level").parts.links
    assert [list(links) for links in level] == [["0"], ["1"]]
    names = [name for name, _ in ControlAdapter.create(network).parts.encoder.named_parameters()]
    assert not any(name.startswith(("up_blocks", "mid_block", "conv_out", "norm_out")) for name in names)


def test_the_middle_is_a_further_stage(make, tmp_path):
    network, inputs = make("sd")
    adapter, edges = trained(network, pixels=4, middle=True), torch.rand(1, 3, 32, 48)
    links, count = adapter.parts.links, len(network.config.block_out_channels)
    assert [list(one)[-1] for one in links] == [str(count)] * count
    with adapter.condition(image=edges):
        seen = network(**inputs).sample
        with torch.no_grad():
            links[0][str(count)].conv.bias.add_(1.0)
        assert not torch.allclose(network(**inputs).sample, seen)
        seen = network(**inputs).sample
    adapter.save(tmp_path / "control.safetensors")
    adapter.unload()
    with load_adapter(network, tmp_path / "control.safetensors").condition(image=edges):
        assert torch.equal(network(**inputs).sample, seen)
    level = ControlAdapter.create(make("sd")[0], middle=True, composition="same_level").parts.links
    assert [list(one) for one in level][-1] == [str(count - 1), str(count)] and list(level[0]) == ["0"]


def test_it_adds_to_residuals_that_are_given(make):
    network, inputs = make("ours")
    adapter, edges = trained(network), torch.rand(1, 3, 16, 24)
    given = {"down_intrablock_additional_residuals": [torch.ones(2, 8, 16, 24), None]}
    alone = network(**inputs, **given).sample
    with adapter.condition(image=edges):
        assert not torch.allclose(network(**inputs, **given).sample, alone)


def test_a_pipeline_with_guidance(pipelines):
    pipe = copy.deepcopy(pipelines["sd"])
    adapter = trained(pipe)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    assert adapter.config["pixels"] == factor

    def draw():
        generator = torch.Generator().manual_seed(0)
        options = {"height": 16, "width": 24, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
        return pipe("a b", generator=generator, **options).images

    plain, grey = draw(), np.zeros((16, 24), np.uint8)
    grey[4:12, 6:18] = 255
    with adapter.condition(image=Image.fromarray(grey)):
        seen = draw()
    with adapter.condition(image=[torch.from_numpy(np.stack([grey] * 3) / 255.0)]):
        assert np.abs(draw() - seen).max() < 1e-5
    assert np.abs(seen - plain).max() > 1e-3 and np.array_equal(draw(), plain)


def test_bad_input(make):
    network, inputs = make("ours")
    for config, message in (
        ({"variant": "other"}, "`variant` is 'other'"),
        ({"composition": "all"}, "`composition` is 'all'"),
        ({"pixels": 0}, "`pixels` is 0"),
        ({"image_channels": 2}, "`image_channels` is 2"),
        ({"middle": True}, "`middle` is True, which is for a UNet2DConditionModel"),
        ({"variant": "controlnet"}, "which is for a UNet2DConditionModel; a BlockUNet2DModel takes 'composite'"),
    ):
        with pytest.raises(ValueError, match=message):
            ControlAdapter.create(network, **config)
    with pytest.raises(ValueError, match="a Linear has no stages that take residuals"):
        ControlAdapter.create(nn.Linear(1, 1))
    adapter = ControlAdapter.create(network)
    for image, message in (
        (None, "`image` has a NoneType"),
        ([], "`image` is empty"),
        (torch.zeros(1, 1, 8, 8), r"has a Tensor of shape \(1, 1, 8, 8\); give .* tensors \(3, H, W\)"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], "images of several sizes"),
    ):
        with pytest.raises(ValueError, match=message), adapter.condition(image=image):
            pass
    with pytest.raises(ValueError, match="for 3 pictures, but the network draws 2"):
        with adapter.condition(image=torch.zeros(3, 3, 16, 24)):
            network(**inputs)
