"""Stages with settings of their own, stems that reduce, necks of another kind, blocks that change the shape."""

import pytest
import torch
from torch import nn

from brickwork.gen.blocks.registry import BLOCKS, Block, register_block
from brickwork.gen.blocks.stages import StageSpec, set_drop_path
from brickwork.gen.necks.registry import NECKS, Neck, register_neck
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.stems.registry import STEMS, Stem, register_stem


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch):
    for registry in (BLOCKS, STEMS, NECKS):
        monkeypatch.setattr(registry, "classes", dict(registry.classes))


def make_unet(**config):
    settings = {"block_out_channels": (16, 24), "layers_per_block": 1, "attention_head_dim": 8, "sample_size": 32}
    torch.manual_seed(0)
    return BlockUNet2DModel(**settings | config)


def call(model, height=37, width=30, **further):
    torch.manual_seed(1)
    return model(torch.randn(2, 3, height, width), torch.tensor([3.0, 500.0]), **further).sample


def test_lists_are_the_stages_own():
    model = make_unet(
        block_types="dit",
        attention_head_dim=None,
        num_attention_heads=[1, 3],
        mlp_ratio=[2.0, 4.0],
        window_size=[8, None],
        stage_options=[{"window_size": 4}, {}],
    )
    first, second = (stage.blocks[0] for stage in model.down_blocks)
    assert (first.window_size, second.window_size) == (4, None)
    assert first.core.attn.num_attention_heads == 1 and second.core.attn.num_attention_heads == 3
    assert first.core.mlp.fc1.out_features == 32 and second.core.mlp.fc1.out_features == 96
    # The decoder mirrors the encoder, from the lowest stage up.
    assert [stage.blocks[0].window_size for stage in model.up_blocks] == [None, 4]
    again = BlockUNet2DModel.from_config(model.config)
    assert [stage.blocks[0].window_size for stage in again.down_blocks] == [4, None]


def test_stages_and_flat_arguments_say_the_same():
    stages = [StageSpec("resnet", 16, 2, {"conv_norm": "batch"}), StageSpec("dit", 24, 1, {"attention_head_dim": 8})]
    model = BlockUNet2DModel.from_stages(stages, sample_size=16, num_classes=3)
    assert [len(stage.blocks) for stage in model.down_blocks] == [2, 1]
    assert isinstance(model.down_blocks[0].blocks[1].norm1, nn.BatchNorm2d)
    assert BlockUNet2DModel.from_config(model.config).state_dict().keys() == model.state_dict().keys()


def test_layers_of_a_transformer_have_lists_too():
    model = BlockTransformer2DModel(
        sample_size=16, hidden_size=16, num_layers=2, attention_head_dim=8, window_size=[4, None], in_channels=3,
        layer_options=[None, {"mlp_ratio": 1.0}],
    )  # fmt: skip
    assert [block.window_size for block in model.blocks] == [4, None]
    assert model.blocks[1].core.mlp.fc1.out_features == 16


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"window_size": [4, 4, 4]}, "`window_size` has 3 entries for 2 stages"),
        ({"stage_options": [{}]}, "`stage_options` has 1 entries for 2 stages"),
        ({"stage_options": [{}, {"conv_nrom": "batch"}]}, r"`stage_options\[1\]` has 'conv_nrom'.*conv_norm"),
        ({"block_types": "dit", "num_attention_heads": 5, "attention_head_dim": None}, "does not divide the width"),
        ({"block_types": "dit", "num_attention_heads": 4}, "give one of them"),
        ({"drop_path": 1.0}, "`drop_path` is 1.0"),
        ({"stem": "convv"}, "`stem` is 'convv'; did you mean 'conv'"),
        ({"neck": "skipp"}, "`neck` is 'skipp'; did you mean 'skip'"),
        ({"neck_options": {"depth": 3}}, "`neck_options` has 'depth', which the neck 'skip' does not take"),
        ({"stem_options": {"depth": 3}}, "`stem_options` has 'depth', which the stem 'conv' does not take"),
        ({"downsample": "block"}, "makes 16 channels of 16 .* where 24 and 2 are needed; choose a block"),
        ({"downsample": "pool"}, "`downsample` is 'pool'"),
    ],
)
def test_bad_settings_say_what_to_do(config, match):
    with pytest.raises(ValueError, match=match):
        make_unet(**config)


def test_stochastic_depth_leaves_blocks_out_in_training_alone():
    plain, dropping = make_unet(), make_unet(drop_path=0.5)
    dropping.load_state_dict(plain.state_dict())
    blocks = [module for module in dropping.modules() if isinstance(module, Block)]
    rates = [block.drop_path for block in blocks]
    assert rates[0] == 0 and rates[-1] == 0.5 and rates == sorted(rates)
    for model in (plain, dropping):
        nn.init.normal_(model.conv_out.weight, std=0.1)
        for module in model.modules():
            if isinstance(module, Block):
                nn.init.normal_(module.conv2.weight, std=0.1)
        model.load_state_dict(plain.state_dict())
    assert torch.equal(call(dropping.eval()), call(plain.eval()))
    state = torch.random.get_rng_state()
    assert torch.equal(call(plain.train()), call(plain.eval()))
    torch.random.set_rng_state(state)
    assert not torch.equal(call(dropping.train()), call(plain))


def test_a_dropped_block_is_the_identity_and_the_mean_is_kept():
    block = make_unet().mid_block[0].train()
    nn.init.normal_(block.conv2.weight, std=0.1)
    set_drop_path([nn.Identity(), block], 0.25)
    maps, temb = torch.randn(1, 24, 5, 6).expand(400, -1, -1, -1), torch.randn(1, 64).expand(400, -1)
    with torch.no_grad():
        output = block(maps, temb)
        left_out = (output == maps).flatten(1).all(dim=1)
        torch.testing.assert_close(output[~left_out][0] - maps[0], (block.eval()(maps, temb)[0] - maps[0]) / 0.75)
    assert 60 < left_out.sum() < 140


@pytest.mark.parametrize("levels", [1, 2])
def test_a_stem_that_reduces_is_one_class(levels):
    @register_stem("patches")
    class Patches(Stem):
        def __init__(self, in_channels, widths, *, patch: int = 3):
            super().__init__()
            self.reduction, self.levels = patch, levels
            self.convs = nn.ModuleList(
                nn.Conv2d(in_channels, width, patch * 2**level, stride=patch * 2**level)
                for level, width in enumerate(widths[:levels])
            )

        def forward(self, sample):
            sides = [(-side % (self.reduction * 2 ** (levels - 1))) for side in sample.shape[-2:]]
            padded = nn.functional.pad(sample, (0, sides[1], 0, sides[0]))
            rows, columns = (-(-side // self.reduction) for side in sample.shape[-2:])
            maps = [conv(padded) for conv in self.convs]
            maps = [m[..., : -(-rows // 2**i), : -(-columns // 2**i)] for i, m in enumerate(maps)]
            return maps if levels > 1 else maps[0]

    model = make_unet(stem="patches", stem_options={"patch": 3}, out_channels=2)
    nn.init.normal_(model.conv_out.weight, std=0.1)
    assert model.down_blocks[0].downsample is None or levels == 1
    assert call(model).shape == (2, 2, 37, 30)
    assert model.residual_sites(37, 30)["mid_block"] == (24, 7, 5)
    call(model).square().mean().backward()
    assert all(conv.weight.grad is not None for conv in model.conv_in.convs)


def test_a_stem_of_all_levels_goes_with_as_many_stages():
    @register_stem("two")
    def two(in_channels, widths):
        stem = nn.Conv2d(in_channels, widths[0], 1)
        stem.levels = 2
        return stem

    with pytest.raises(ValueError, match="`stem` is 'two', which makes 2 maps for 1 stages"):
        make_unet(stem="two", block_out_channels=(16,))


def test_a_neck_is_one_class():
    @register_neck("mean")
    class Mean(Neck):
        def __init__(self, stages, cond_dim, *, node: str | None = None):
            super().__init__()
            width = stages[0].channels
            self.widen = nn.ModuleList(nn.Conv2d(stage.channels, width, 1) for stage in stages)
            self.node = stages[0].build(cond_dim, block=node)

        def forward(self, features, run):
            size = features[0].shape[-2:]
            maps = [nn.functional.interpolate(conv(m), size=size) for conv, m in zip(self.widen, features)]
            return run(self.node, torch.stack(maps).mean(dim=0))

    model = make_unet(neck="mean", neck_options={"node": "dit"}, block_out_channels=(16, 24, 8))
    assert len(model.mid_block) == 0 and type(model.up_blocks.node).__name__ == "DiTBlock"
    assert list(model.ports["down_block_additional_residuals"]) == ["down_blocks.0.blocks.0", "down_blocks.1.blocks.0"]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    expected = call(model)
    assert expected.shape == (2, 3, 37, 30)
    zeros = {site: torch.zeros(2, *shape) for site, shape in model.residual_sites(37, 30).items()}
    assert torch.equal(call(model, **model.residual_arguments(zeros)), expected)
    expected.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_blocks_that_say_so_change_the_shape_on_the_way_down():
    @register_block("halving")
    class Halving(Block):
        def __init__(self, dim, cond_dim, *, out_dim: int | None = None, stride: int = 1, **settings):
            super().__init__(dim, cond_dim, out_dim, stride, **settings)
            self.conv = nn.Conv2d(dim, self.out_dim, 3, stride=stride, padding=1)

        def mix(self, hidden_states, temb):
            return self.conv(hidden_states)

    model = make_unet(block_types="halving,resnet", downsample="block", cross_attention_dim=6)
    assert isinstance(model.down_blocks[0].downsample, Halving)
    assert call(model, encoder_hidden_states=torch.randn(2, 4, 6)).shape == (2, 3, 37, 30)
    for network in (make_unet, BlockTransformer2DModel):
        with pytest.raises(ValueError, match="makes .* and divides the sides by 2"):
            network(block_types="halving", block_options={"halving": {"stride": 2}})
