"""Our blocks against the original code, with the original's weights (see tests/data/blocks/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from brickwork.gen.blocks.registry import build_block
from brickwork.gen.blocks.stages import StageSpec
from brickwork.gen.necks.ffnet_up import FFNetUpNeck
from brickwork.gen.necks.gfpn import leading_to, queen_fusion
from brickwork.gen.stems.resnet_d import ResNetDStem

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
SRA_NAMES = {layer: layer for layer in ("norm1", "attn.q", "attn.kv", "attn.norm", "attn.proj", "norm2")}
SRA_NAMES |= {"attn.reduction": "attn.sr", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}

CONV_BN = (("conv", "conv"), ("norm", "bn"))
CN = ("conv", "norm")
OSA_NAMES = {f"convs.{i}.{part}": f"conv_mid.{i}.{layer}" for i in range(5) for part, layer in CONV_BN}
OSA_NAMES |= {f"concat.{part}": f"conv_concat.{layer}" for part, layer in CONV_BN} | {"squeeze.fc": "attn.fc"}
SEPARABLE_NAMES = {
    f"convs.{i}.{ours}": f"conv_mid.{i}.{theirs}"
    for i in range(5)
    for ours, theirs in (("depthwise", "conv_dw"), ("pointwise.conv", "conv_pw"), ("pointwise.norm", "bn"))
}
SEPARABLE_NAMES |= {f"squeeze_conv.{part}": f"conv_reduction.{layer}" for part, layer in CONV_BN}


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
    return block.eval(), *(array for key, array in sorted(arrays.items()) if not key.startswith("state."))


@torch.no_grad()
def test_i2rmb_equals_the_authors():
    block = build_block("i2rmb", 16, 8, {"attention_head_dim": 8, "window_size": 8}, {"modulation": "none"})
    block, sample, expected = load_original(block, "i2rmb", I2RMB_NAMES)
    torch.testing.assert_close(block(sample, torch.zeros(2, 8)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_maxvit_equals_timm():
    block = build_block("maxvit", 16, 8, {"attention_head_dim": 8, "window_size": 4}, {"modulation": "none"})
    block, sample, expected = load_original(block, "maxvit", MAXVIT_NAMES)
    torch.testing.assert_close(block(sample, torch.zeros(2, 8)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [8, 4, 2, 1])
def test_sra_equals_the_authors(ratio):
    own = {"sr_ratio": ratio, "modulation": "none"}
    block = build_block("sra", 8, 8, {"attention_head_dim": 4, "mlp_ratio": 2.0}, own)
    block, sample, expected = load_original(block, f"sra_{ratio}", SRA_NAMES)
    torch.testing.assert_close(block(sample, torch.zeros(1, 8)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("depthwise", [False, True])
def test_osa_equals_timm(depthwise):
    own = {"modulation": "none", "conv_norm": "batch", "depthwise": depthwise}
    names = OSA_NAMES | (SEPARABLE_NAMES if depthwise else {})
    block, sample, expected = load_original(
        build_block("osa", 16, 8, own=own), "osa_depthwise" if depthwise else "osa", names
    )
    expected = expected + sample if depthwise else expected  # timm's has no residual beside a 1×1
    torch.testing.assert_close(block(sample, torch.zeros(2, 8)), expected, rtol=1e-5, atol=1e-5)


class TwoBlocks(torch.nn.Module):
    """A stage: one block that changes the shape, one that keeps it."""

    def __init__(self, name, dim, out_dim):
        super().__init__()
        own = {"modulation": "none", "conv_norm": "batch"}
        first = build_block(name, dim, 8, own=own | {"out_dim": out_dim, "stride": 2})
        self.blocks = torch.nn.ModuleList([first, build_block(name, out_dim, 8, own=own)])

    def forward(self, hidden_states):
        for block in self.blocks:
            hidden_states = block(hidden_states, torch.zeros(2, 8))
        return hidden_states


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "convs", "shortcut", "dims"),
    [
        ("resnet_rs", 3, (("conv", "1"), ("norm", "2")), (16, 32)),
        ("basic", 2, (("conv", "0"), ("norm", "1")), (8, 12)),
    ],
)
def test_stages_of_residual_blocks_equal_the_originals(name, convs, shortcut, dims):
    names = {}
    for number in range(2):
        for conv in range(1, convs + 1):
            names[f"blocks.{number}.conv{conv}"] = f"{number}.conv{conv}"
            names[f"blocks.{number}.norm{conv}"] = f"{number}.bn{conv}"
        for layer in ("fc1", "fc2"):
            names[f"blocks.{number}.squeeze.{layer}"] = f"{number}.se.{layer}"
    names |= {f"blocks.0.shortcut.{ours}": f"0.downsample.{theirs}" for ours, theirs in shortcut}
    stage, sample, expected = load_original(TwoBlocks(name, *dims), name, names)
    torch.testing.assert_close(stage(sample), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_stem_of_resnet_rs_equals_timm():
    places = (("0.0", "0.1"), ("0.3", "0.4"), ("0.6", "1"), ("3.0", "3.1"))
    names = {
        f"convs.{n}.{part}": theirs for n, pair in enumerate(places) for part, theirs in zip(("conv", "norm"), pair)
    }
    stem, sample, expected = load_original(ResNetDStem(3, [16], reduction=4, conv_norm="batch"), "resnet_d", names)
    torch.testing.assert_close(stem(sample), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_the_up_head_equals_the_authors(variant):
    """Theirs of A is the "mobile" one, with nearest neighbours."""
    stages = [StageSpec("basic", channels) for channels in (6, 8, 10, 12)]
    upsample = "nearest" if variant == "A" else "bilinear"
    neck = FFNetUpNeck(stages, 8, variant=variant, width=4, upsample=upsample, conv_norm="batch")
    del neck.fuse  # theirs ends in the concatenation
    names = {f"lateral.{i}.{p}": f"0.adapter_conv.{i}.layers.{n}" for i in range(4) for n, p in enumerate(CN)}
    for i, level in enumerate(("fam_4", "fam_8_sm", "fam_16_sm", "fam_32_sm")):
        names |= {f"smooth.{i}.{p}": f"1.{level}.layers.{n}" for n, p in enumerate(CN)}
    for i, level in enumerate(("fam_8_up", "fam_16_up", "fam_32_up")):
        names |= {f"up.{i}.{p}": f"1.{level}.layers.{n}" for n, p in enumerate(CN)}
    neck, *features, expected = load_original(neck, f"ffnet_up_{variant.lower()}", names)
    torch.testing.assert_close(neck.gather(features), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", range(3, 12))
@pytest.mark.parametrize("skips", ["log2n", "dense"])
def test_queen_fusion_is_the_authors_graph(skips, depth):
    """Edge by edge; theirs numbers the nodes in the order in which they are computed, the encoder's maps first."""
    theirs = json.loads((DATA / "gfpn.json").read_text())[f"{skips} {depth}"]
    nodes = queen_fusion(5, depth, skips)
    numbers = {(0, level): level for level in range(5)}
    numbers |= {(node.layer, node.level): 5 + number for number, node in enumerate(nodes)}
    ours = {str(numbers[n.layer, n.level]): [sorted(numbers[i] for i in n.inputs), 8 << n.level, 0] for n in nodes}
    for level in range(5):  # theirs ends in a node for each level that reads the last layer's
        ours[str(5 * (depth + 1) + level)] = [[numbers[depth, level]], 8 << level, 1]
    assert ours == theirs
    assert len(leading_to(nodes, depth, 0)) == len(nodes) - (0 if depth % 2 else 4)


def test_modulation_without_a_gate_or_the_norm_of_a_branch_is_what_starts_at_zero():
    """Were both zero, neither would ever learn."""
    for name in ("resnet_rs", "basic"):
        for kind in ("none", "film", "adaln_zero"):
            block = build_block(name, 16, 8, own={"modulation": kind})
            sample = torch.randn(2, 16, 5, 6)
            output = block(sample, torch.randn(2, 8))
            assert torch.equal(output, sample.relu())
            output.square().sum().backward()
            last = getattr(block, "norm3", block.norm2).weight if kind != "adaln_zero" else block.modulation
            last = getattr(getattr(last, "vectors", last), "linear", last)
            assert getattr(last, "weight", last).grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["i2rmb", "maxvit", "osa", "sra"])
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


def test_timesblock_equals_the_authors():
    stored = {name: torch.from_numpy(value) for name, value in np.load(DATA / "timesblock.npz").items()}
    series = stored["x"].transpose(1, 2)
    block = build_block("timesblock", 4, 8, own={"top_k": 3, "num_kernels": 3, "mlp_ratio": 1.5}).eval()
    weights = {f"conv.{name[2:]}": value for name, value in stored.items() if name.startswith("w.")}
    block.load_state_dict({**block.state_dict(), **weights})
    with torch.no_grad():
        maps = series.unflatten(-1, (5, 6))
        assert torch.equal(block(maps, torch.zeros(2, 8)), maps)  # gated at zero
        block.modulation.vectors.linear.bias[-4:] = 1.0  # the gate
        updated = block(maps, torch.zeros(2, 8)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(updated, stored["out"], rtol=1e-5, atol=1e-5)
