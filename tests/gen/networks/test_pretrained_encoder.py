"""Encoders from classifiers: what was loaded computes what it did there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PvtConfig, PvtModel

from brickwork.gen.networks.pretrained_encoder import from_pretrained_encoder

DATA = Path(__file__).parents[2] / "data" / "blocks"


def original(name, prefix):
    """State dict under `prefix`, input and output of a part of somebody's classifier."""
    arrays = {key: torch.from_numpy(array) for key, array in np.load(DATA / f"{name}.npz").items()}
    state = {key.replace("state.", prefix, 1): tensor for key, tensor in arrays.items() if key.startswith("state.")}
    return state, arrays["input"], arrays["output"]


def first_stage(dim, like):
    """A stage before it, of one block, as random as its second block."""
    block = {key.split(".1.", 1)[1]: tensor for key, tensor in like.items() if key.startswith("layer2.1.")}
    generator = torch.Generator().manual_seed(0)
    width = max(tensor.shape[0] for tensor in block.values() if tensor.ndim)
    shapes = {key: [dim * side // width for side in t.shape[:2]] + list(t.shape[2:]) for key, t in block.items()}
    return {f"layer1.0.{key}": torch.rand(shape, generator=generator) for key, shape in shapes.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", ["basic", "resnet_rs"])
def test_stages_of_residual_networks(name, tmp_path):
    state, sample, expected = original(name, "layer2.")
    first = first_stage(sample.shape[1], state)
    if name == "resnet_rs":  # the squeezed width has a least
        first |= {key: torch.rand(8, 16, 1, 1) for key in ("layer1.0.se.fc1.weight",)}
        first |= {"layer1.0.se.fc1.bias": torch.rand(8), "layer1.0.se.fc2.weight": torch.rand(16, 8, 1, 1)}
    save_file({"conv1.weight": torch.zeros(4, 3, 7, 7)} | first | state, tmp_path / "model.safetensors")
    model = from_pretrained_encoder(tmp_path, sample_size=16, num_classes=3).eval()
    assert model.config.block_types == name and len(model.down_blocks) == 2
    temb = torch.zeros(2, model.condition.time_embed.linear_2.out_features)
    output = model.down_blocks[0].downsample(sample, temb)
    torch.testing.assert_close(model.down_blocks[1].blocks[0](output, temb), expected, rtol=1e-5, atol=1e-5)
    model(torch.randn(2, 3, 17, 20), 3.0)
    assert type(model).from_config(model.config).state_dict().keys() == model.state_dict().keys()


@torch.no_grad()
def test_a_pyramid_of_transformers():
    torch.manual_seed(0)
    config = PvtConfig(
        image_size=32, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 1, 1], sequence_reduction_ratios=[8, 4, 2, 1],
    )  # fmt: skip
    theirs = PvtModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = from_pretrained_encoder(theirs, sample_size=64).eval()
    assert [stage.blocks[0].attn.sr_ratio for stage in model.down_blocks] == [8, 4, 2, 1]
    temb = torch.zeros(1, 32)
    for stage, blocks in enumerate(theirs.encoder.block):
        sample = torch.randn(1, config.hidden_sizes[stage], 16, 8)
        expected, ours = sample.flatten(2).transpose(1, 2), sample
        for number, block in enumerate(blocks):
            expected = block(expected, 16, 8)[0]
            ours = model.down_blocks[stage].blocks[number](ours, temb)
        torch.testing.assert_close(ours.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["osa", "osa_depthwise"])
def test_a_stage_of_vovnet(name):
    state, sample, expected = original(name, "stages.0.blocks.1.")
    if name == "osa_depthwise":
        expected = expected + sample
    model = from_pretrained_encoder(state, sample_size=16).eval()
    output = model.down_blocks[0].blocks[0](sample, torch.zeros(2, 64))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_named(tmp_path):
    state, _, _ = original("osa", "stages.0.blocks.0.")
    with pytest.raises(
        ValueError, match=r"stage 1 24 channels, where the encoder has 16; leave it out, or give \[16\]"
    ):
        from_pretrained_encoder(state, block_out_channels=[24])
    with pytest.raises(ValueError, match=r"stage 2 24 channels, where the encoder has no such stage"):
        from_pretrained_encoder(state, block_out_channels=[16, 24])
    with pytest.raises(ValueError, match="known are resnet_rs, basic, osa, sra"):
        from_pretrained_encoder({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="give a .safetensors file"):
        from_pretrained_encoder(tmp_path)
    del state["stages.0.blocks.0.attn.fc.weight"]
    with pytest.raises(ValueError, match=r"does not fit down_blocks.0.blocks.0 \(osa\): 'squeeze.fc.weight' needs"):
        from_pretrained_encoder(state)
