"""The registry, and the arithmetic of the blocks' parts on sizes that windows do not divide."""

import pytest
import torch

from brickwork.gen.blocks import list_blocks
from brickwork.gen.blocks.attention import RelativePositionBias
from brickwork.gen.blocks.i2rmb import SpanningAttention
from brickwork.gen.blocks.maxvit import PartitionAttention
from brickwork.gen.blocks.modulation import MODULATIONS, BlockModulation
from brickwork.gen.blocks.norms import make_norm
from brickwork.gen.blocks.registry import Block, build_block, find_block, parse_block_types, register_block


def test_the_registry_by_name():
    assert {"dit", "i2rmb", "maxvit", "resnet"} <= set(list_blocks())
    assert parse_block_types("dit, i2rmb") == ["dit", "i2rmb"]
    assert parse_block_types("dit", 3) == ["dit"] * 3
    with pytest.raises(ValueError, match="did you mean 'resnet'"):
        find_block("resnets")
    with pytest.raises(ValueError, match="has already"):
        register_block("dit")(Block)


def test_a_new_block_is_one_class(monkeypatch):
    from brickwork.gen.blocks.registry import BLOCKS
    from brickwork.gen.networks.unet import BlockUNet2DModel

    monkeypatch.setattr(BLOCKS, "classes", dict(BLOCKS.classes))

    @register_block("half")
    class Half(Block):
        def __init__(self, dim, cond_dim, *, factor=0.5, **settings):
            super().__init__(dim, cond_dim, **settings)
            self.factor = factor

        def mix(self, hidden_states, temb):
            return hidden_states * self.factor

    model = BlockUNet2DModel(
        block_types="half,resnet", block_out_channels=(8, 8), block_options={"half": {"factor": 2.0}}
    )
    assert model.down_blocks[0].blocks[0].factor == 2.0
    assert model(torch.zeros(1, 3, 5, 6), 1.0).sample.shape == (1, 3, 5, 6)


def attended_pixels(row, column, height, width, size, mode):
    """The real pixels that a pixel attends to, straight from the definition."""
    down, across = -(-height // size), -(-width // size)
    if mode == "block":
        same = lambda a, b, side, count: a // side == b // side  # noqa: E731
    else:
        same = lambda a, b, side, count: a % count == b % count  # noqa: E731
    return [
        (r, c)
        for r in range(height)
        for c in range(width)
        if same(r, row, size, down) and same(c, column, size, across)
    ]


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (4, 5)])
def test_spanning_attention_is_its_definition(height, width):
    torch.manual_seed(0)
    attn = SpanningAttention(8, 2.0, 2, 4)
    sample = torch.randn(1, 8, height, width)
    tokens = sample[0].permute(1, 2, 0)
    query, key = attn.qk(tokens).view(height, width, 2, 2, 4).unbind(2)
    value = torch.nn.functional.gelu(attn.v(tokens)).view(height, width, 2, 8)
    output = attn(sample)[0].permute(1, 2, 0).view(height, width, 2, 8)
    for row, column in ((0, 0), (height - 1, width - 1), (2, 3)):
        expected = 0
        for mode in ("block", "grid"):
            rows, columns = zip(*attended_pixels(row, column, height, width, 4, mode))
            scores = torch.einsum("hd,nhd->nh", query[row, column], key[rows, columns]) / 2
            expected = expected + torch.einsum("nh,nhd->hd", scores.softmax(0), value[rows, columns])
        torch.testing.assert_close(output[row, column], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["block", "grid"])
def test_pixels_of_other_windows_do_not_matter(mode):
    torch.manual_seed(0)
    layer = PartitionAttention(8, 4, 2, 4, 2.0, mode, "none")
    torch.nn.init.normal_(layer.position_bias.table)
    sample, temb = torch.randn(1, 8, 7, 10), torch.zeros(1, 4)
    within = torch.zeros(7, 10, dtype=torch.bool)
    for row, column in attended_pixels(2, 3, 7, 10, 4, mode):
        within[row, column] = True
    other = torch.where(within, sample, torch.randn_like(sample))
    torch.testing.assert_close(layer(other, temb)[..., 2, 3], layer(sample, temb)[..., 2, 3])
    neighbour = attended_pixels(2, 3, 7, 10, 4, mode)[0]
    sample[..., neighbour[0], neighbour[1]] += torch.randn(8)
    assert not torch.allclose(layer(other, temb)[..., 2, 3], layer(sample, temb)[..., 2, 3])


def test_relative_positions():
    bias = RelativePositionBias(4, 1)
    with torch.no_grad():
        bias.table.copy_(torch.arange(49.0)[:, None])
    table = bias(3, 4)[0].view(3, 4, 3, 4)
    for query, key in (((0, 0), (2, 3)), ((2, 1), (0, 3)), ((1, 1), (1, 1))):
        assert table[(*query, *key)] == (query[0] - key[0] + 3) * 7 + query[1] - key[1] + 3


@pytest.mark.parametrize("kind", MODULATIONS)
def test_modulation_is_zero_at_the_start(kind):
    vectors = BlockModulation(6, 4, 2, kind)(torch.randn(3, 6))
    assert [[vector is None for vector in layer] for layer in vectors] == [
        [index >= MODULATIONS[kind] for index in range(3)]
    ] * 2
    assert all((vector == 0).all() for layer in vectors for vector in layer if vector is not None)
    with pytest.raises(ValueError, match="film"):
        BlockModulation(6, 4, 2, "filmm")


@pytest.mark.parametrize(("kind", "over"), [("layer", (1,)), ("batch", (0, 2, 3)), ("group", (1, 2, 3))])
def test_norms(kind, over):
    dims = 7 if kind == "group" else 8  # of 7 channels, all are one group
    sample = torch.randn(4, dims, 5, 6) * 3 + 2
    normed = make_norm(kind, dims)(sample)
    torch.testing.assert_close(normed.mean(dim=over), torch.zeros_like(normed.mean(dim=over)), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        normed.var(dim=over, unbiased=False), torch.ones_like(normed.mean(dim=over)), rtol=0, atol=1e-3
    )
    with pytest.raises(ValueError, match="batch"):
        make_norm("bacth", 8)


def test_settings_that_a_block_does_not_know():
    assert build_block(
        "resnet", 8, 4, {"window_size": 4, "attention_head_dim": None}
    )  # shared ones may not concern it
    with pytest.raises(ValueError, match="squeeze_ratio"):
        build_block("maxvit", 32, 4, own={"squeez_ratio": 0.5})
