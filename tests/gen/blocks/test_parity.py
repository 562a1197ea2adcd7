"""Our blocks against the original code, with the original's weights (see tests/data/blocks/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from brickwork.gen.blocks.registry import build_block

DATA = Path(__file__).parents[2] / "data" / "blocks"

I2RMB_NAMES = {
    "norm": "norm.norm",
    "attn.qk": "eops.0.qk.conv",
    "attn.v": "eops.0.v.conv",
    "conv": "conv_local.conv",
    "conv_norm": "conv_local.norm",
    "proj": "proj.conv",
}
MAXVIT_NAMES = {
    "conv.pre_norm": "conv.pre_norm",
    "conv.expand": "conv.conv1_1x1",
    "conv.norm1": "conv.norm1",
    "conv.depthwise": "conv.conv2_kxk",
    "conv.norm2": "conv.norm2",
    "conv.squeeze.fc1": "conv.se.fc1",
    "conv.squeeze.fc2": "conv.se.fc2",
    "conv.project": "conv.conv3_1x1",
} | {
    f"{ours}.{layer}": f"{theirs}.{their_layer}"
    for ours, theirs in (("block_attn", "attn_block"), ("grid_attn", "attn_grid"))
    for layer, their_layer in (
        ("norm1", "norm1"),
        ("attn.qkv", "attn.qkv"),
        ("attn.proj", "attn.proj"),
        ("position_bias.table", "attn.rel_pos.relative_position_bias_table"),
        ("norm2", "norm2"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    )
}


def load_original(block, name, names):
    """Copy the original's tensors into `block`; each must be used, and each of ours filled."""
    arrays = {key: torch.from_numpy(array) for key, array in np.load(DATA / f"{name}.npz").items()}
    ignored = ("num_batches_tracked", "relative_position_index")
    theirs = {
        key.removeprefix("state."): tensor
        for key, tensor in arrays.items()
        if key.startswith("state.") and not key.endswith(ignored)
    }
    state = {}
    for key, tensor in block.state_dict().items():
        layer, _, kind = key.rpartition(".")
        source = names.get(key) or f"{names.get(layer)}.{kind}"
        if not key.endswith(ignored):
            state[key] = theirs.pop(source).reshape(tensor.shape)
    assert not theirs
    missing, unexpected = block.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith(ignored) for key in missing)
    return block.eval(), arrays["input"], arrays["output"]


@torch.no_grad()
def test_i2rmb_equals_the_authors():
    block = build_block("i2rmb", 16, 8, {"attention_head_dim": 8, "window_size": 8}, {"modulation": "none"})
    block, sample, expected = load_original(block, "i2rmb", I2RMB_NAMES)
    torch.testing.assert_close(block(sample, torch.zeros(2, 8)), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_maxvit_equals_timm():
    block = build_block("maxvit", 16, 8, {"attention_head_dim": 8, "window_size": 4}, {"modulation": "none"})
    block, sample, expected = load_original(block, "maxvit", MAXVIT_NAMES)
    torch.testing.assert_close(block(sample, torch.zeros(2, 8)), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["i2rmb", "maxvit"])
def test_modulation_that_says_nothing_adds_nothing(name):
    """FiLM starts as the original block, adaLN-zero as the identity."""
    settings = {"attention_head_dim": 8, "window_size": 4}
    plain, film, zero = (
        build_block(name, 16, 8, settings, {"modulation": kind}).eval() for kind in ("none", "film", "adaln_zero")
    )
    for other in (film, zero):
        other.load_state_dict(plain.state_dict(), strict=False)
    sample, temb = torch.randn(2, 16, 8, 8), torch.randn(2, 8)
    torch.testing.assert_close(film(sample, temb), plain(sample, temb))
    assert torch.equal(zero(sample, temb), sample)
    assert not torch.allclose(plain(sample, temb), sample)
