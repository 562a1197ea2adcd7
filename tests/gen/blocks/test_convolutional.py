"""Blocks, stems and necks of convolutional and pyramid networks, beyond what every block promises."""

import pytest
import torch
from torch import nn

from brickwork.gen.blocks.attention import WindowAttention
from brickwork.gen.blocks.registry import BLOCKS, Block, build_block, register_block
from brickwork.gen.blocks.sra import SRAttention
from brickwork.gen.convbn import set_convbn_mode
from brickwork.gen.necks import list_necks
from brickwork.gen.necks.gfpn import leading_to, queen_fusion
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.presets import UNET_PRESETS
from brickwork.gen.stems import list_stems

NEW = "sra,osa,resnet_rs,basic"
MIXED = {
    "sample_size": 20, "num_classes": 5, "block_types": NEW, "block_out_channels": (16, 16, 24, 24),
    "layers_per_block": 1, "attention_head_dim": 8,
}  # fmt: skip
BATCH = {"osa": {"conv_norm": "batch"}, "resnet_rs": {"conv_norm": "batch"}, "basic": {"conv_norm": "batch"}}


def make_unet(std: float = 0.15, **config):
    torch.manual_seed(0)
    model = BlockUNet2DModel(**MIXED | config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def test_the_registries():
    assert list_stems() == ["conv", "resnet_d", "s2d"]
    assert list_necks() == ["ffnet_up", "gfpn", "skip"]


@torch.no_grad()
def test_ratio_one_is_plain_attention():
    torch.manual_seed(0)
    plain, ours = WindowAttention(16, 2), SRAttention(16, 2, 1)
    ours.q.load_state_dict({key: tensor[:16] for key, tensor in plain.qkv.state_dict().items()})
    ours.kv.load_state_dict({key: tensor[16:] for key, tensor in plain.qkv.state_dict().items()})
    ours.proj.load_state_dict(plain.proj.state_dict())
    tokens = torch.randn(2, 5, 7, 16)
    torch.testing.assert_close(ours(tokens).flatten(1, 2), plain(tokens.flatten(1, 2)[:, None])[:, 0])


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(9, 10), (3, 5), (2, 1)])
def test_what_lies_behind_the_borders_is_left_out_of_keys(height, width):
    """Each key is the sum over the pixels of its patch that are there, straight from the definition."""
    torch.manual_seed(0)
    attn = SRAttention(8, 2, 4)
    nn.init.normal_(attn.norm.weight)
    tokens = torch.randn(1, height, width, 8)
    expected = []
    for top in range(0, height, 4):
        for left in range(0, width, 4):
            patch = tokens[0, top : top + 4, left : left + 4]
            kernel = attn.reduction.weight[..., : patch.shape[0], : patch.shape[1]]
            expected.append(torch.einsum("oihw,hwi->o", kernel, patch) + attn.reduction.bias)
    torch.testing.assert_close(attn.reduce(tokens)[0], attn.norm(torch.stack(expected)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet_rs", "basic"])
def test_blocks_that_halve_the_map_lead_down(name):
    model = make_unet(block_types=name, block_out_channels=(16, 24), downsample="block")
    assert type(model.down_blocks[0].downsample) is BLOCKS.find(name)
    sample = torch.randn(2, 3, 19, 13)
    assert model(sample, 3.0).sample.shape == sample.shape
    model(sample, 3.0).sample.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        {"block_options": BATCH},
        {"stem": "resnet_d", "stem_options": {"conv_norm": "batch"}},
        {"stem": "s2d", "stem_options": {"conv_norm": "batch"}},
        {"neck": "ffnet_up", "neck_options": {"conv_norm": "batch"}},
    ],
    ids=["blocks", "resnet_d", "s2d", "ffnet_up"],
)
def test_batch_norms_are_folded(config, tmp_path):
    model = make_unet(**config)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    sample = torch.randn(2, 3, 19, 22)
    with torch.no_grad():
        expected = model(sample, 3.0).sample
    assert len(set_convbn_mode(model, "tune")) == len(norms) > 0
    torch.testing.assert_close(model(sample, 3.0).sample, expected, rtol=1e-4, atol=1e-4)
    set_convbn_mode(model, "deploy")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.no_grad():
        folded = model(sample, 3.0).sample
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(BlockUNet2DModel.from_pretrained(tmp_path)(sample, 3.0).sample, folded)


def test_checkpoints_leave_the_statistics_of_batch_norms_alone():
    model = make_unet(block_options=BATCH).train()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sample, found = torch.randn(2, 3, 16, 16), []
    for checkpointing in (False, True):
        model.load_state_dict(start)
        model.zero_grad()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(sample, 3.0).sample.square().mean().backward()
        found.append({**dict(model.named_buffers()), **{name: p.grad for name, p in model.named_parameters()}})
        found[-1] = {name: tensor.clone() for name, tensor in found[-1].items()}
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "config",
    [
        {"stem": "s2d", "neck": "gfpn", "neck_options": {"depth": 1}},
        {"stem": "resnet_d", "neck": "ffnet_up", "block_types": "basic", "block_out_channels": (16, 24)},
    ],
    ids=["gfpn", "ffnet_up"],
)
def test_they_compile_to_one_graph_for_all_batches(config):
    torch._dynamo.reset()
    model, graphs = make_unet(**config, sample_size=24), []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for batch in (2, 3):
            call = {"sample": torch.randn(batch, 3, 17, 22), "timestep": torch.rand(batch)}
            torch.testing.assert_close(compiled(**call).sample, model(**call).sample)
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_lora_on_every_layer_of_theirs():
    from peft import LoraConfig

    model, sample = make_unet(), torch.randn(2, 3, 16, 16)
    expected = model(sample, 3.0).sample.detach()
    targets = r"down_blocks.*\.(conv|conv\d|q|kv|proj|reduction|fc|fc1|fc2)"
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert not torch.allclose(model(sample, 3.0).sample, expected)
    model.disable_adapters()
    torch.testing.assert_close(model(sample, 3.0).sample, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"stem": "s2d", "neck": "gfpn"}, {"stem": "resnet_d", "neck": "ffnet_up"}])
def test_fresh_networks_learn_in_every_parameter(config):
    """Zeros at the start hold each other up for a few steps, not for good."""
    torch.manual_seed(0)
    model = BlockUNet2DModel(**MIXED | config).train()
    optimizer, moved = torch.optim.SGD(model.parameters(), lr=0.1), set()
    for _ in range(4):
        optimizer.zero_grad()
        call = {"class_labels": torch.tensor([0, 4])}
        (model(torch.randn(2, 3, 24, 24), torch.tensor([3.0, 900.0]), **call).sample - 1).square().mean().backward()
        moved |= {name for name, parameter in model.named_parameters() if parameter.grad.abs().sum() > 0}
        optimizer.step()
    assert moved == {name for name, _ in model.named_parameters()}


PRESETS = ("pvt-u", "osa-u", "resnet-rs-u", "ffnet", "giraffe")


def parameters_of(preset):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in BlockUNet2DModel.from_preset(preset).parameters())


@pytest.mark.parametrize("size", ["s", "b"])
def test_presets_have_the_parameters_of_the_plain_network(size):
    plain = parameters_of(f"resnet-{size}")
    for name in PRESETS:
        assert abs(parameters_of(f"{name}-{size}") / plain - 1) < 0.05, name
    assert parameters_of("osa-lite") < 0.15 * parameters_of("resnet-s")


@pytest.mark.parametrize("name", [*(f"{name}-s" for name in PRESETS), "osa-lite"])
def test_every_parameter_of_a_preset_reaches_the_output(name):
    preset = UNET_PRESETS[name]
    narrow = {"block_out_channels": [width // 8 for width in preset["block_out_channels"]], "sample_size": 16}
    torch.manual_seed(0)
    model = BlockUNet2DModel.from_preset(name, **narrow, time_embed_dim=16, attention_head_dim=4).train()
    assert all(block.drop_path == 0 for block in model.modules() if isinstance(block, Block))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model(torch.randn(2, 3, 16, 16), torch.tensor([3.0, 900.0])).sample.square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad.abs().sum() == 0] == []


@torch.no_grad()
def test_a_queens_node_reads_what_the_graph_says():
    """A pyramid of blocks that do nothing, each 1×1 a sum, is the sum over the ways through the graph."""
    config = {"neck": "gfpn", "neck_options": {"depth": 3}, "block_out_channels": (4, 4, 4), "block_types": "dit"}
    neck = BlockUNet2DModel(**MIXED | config | {"attention_head_dim": 4}).up_blocks  # fresh DiT blocks do nothing
    for node in neck.nodes:
        node.fuse.weight.copy_(torch.eye(4).repeat(1, node.fuse.in_channels // 4)[..., None, None])
        node.fuse.bias.zero_()
    ways = {(0, level): torch.eye(3)[level] for level in range(3)}
    for node in leading_to(queen_fusion(3, 3), 3, 0):
        ways[node.layer, node.level] = sum(ways[key] for key in node.inputs)
    maps = [torch.full((1, 4, *size), 10.0**level) for level, size in enumerate([(9, 7), (5, 4), (3, 2)])]
    output = neck(maps, lambda block, hidden_states: block(hidden_states, torch.zeros(1, 16)))
    assert output.shape == (1, 4, 9, 7)
    torch.testing.assert_close(output, torch.full_like(output, float(ways[3, 0] @ torch.tensor([1.0, 10, 100]))))


@register_block("narrowing for a test")
class Narrowing(Block):
    def __init__(self, dim, cond_dim, **settings):
        super().__init__(dim, cond_dim, dim // 2, **settings)

    def mix(self, hidden_states, temb):
        return hidden_states[:, : self.out_dim]


NARROWING = BLOCKS.classes.pop("narrowing for a test")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"stage_options": [{"sr_ratio": 0}, {}, {}, {}]}, "stage 1 of 4.*`sr_ratio` is 0.*from 1"),
        ({"stage_options": [{"sr_ratio": 2.0}, {}, {}, {}]}, "stage 1 of 4.*`sr_ratio` is 2.0.*whole number"),
        ({"stage_options": [{"sr_ratio": 8}]}, "`stage_options` has 1 entries for 4 stages"),
        ({"stage_options": [{}, {"mid_ratio": 0.01}, {}, {}]}, "stage 2 of 4.*`mid_ratio` is 0.01.*0 channels"),
        ({"stage_options": [{}, {}, {"stride": 3}, {}]}, "stage 3 of 4.*`stride` is 3; give 1, or 2"),
        ({"stem": "resnet_d", "stem_options": {"reduction": 3}}, "`stem_options.reduction` is 3; give 1, 2 or 4"),
        ({"stem": "s2d", "stem_options": {"reduction": True}}, "`stem_options.reduction` is True; give 1, 2, 4 or 8"),
        ({"neck": "ffnet_up", "neck_options": {"variant": "D"}}, "`neck_options.variant` is 'D'; choose one of A, B"),
        ({"neck": "ffnet_up", "neck_options": {"width": 0}}, "`neck_options.width` is 0; give a whole number"),
        ({"neck": "ffnet_up", "neck_options": {"upsample": "cubic"}}, "`neck_options.upsample` is 'cubic'"),
        ({"neck": "gfpn", "neck_options": {"depth": 0}}, "`neck_options.depth` is 0; give a whole number of layers"),
        ({"neck": "gfpn", "neck_options": {"skips": "log2"}}, "`neck_options.skips` is 'log2'; did you mean 'log2n'"),
        ({"neck": "gfpn", "neck_options": {"node": "bsic"}}, "`block` is 'bsic'; did you mean 'basic'"),
        (
            {"neck": "gfpn", "neck_options": {"node": "narrowing"}},
            "stage 4 of 4: The block .* makes 12",
        ),
    ],
)
def test_bad_settings_say_what_to_do(config, match, monkeypatch):
    monkeypatch.setattr(BLOCKS, "classes", BLOCKS.classes | {"narrowing": NARROWING})
    with pytest.raises(ValueError, match=match):
        BlockUNet2DModel(**MIXED | config)


def test_heads_of_a_block_of_its_own():
    with pytest.raises(ValueError, match="`attention_head_dim` is 7, which does not divide the width 16"):
        build_block("sra", 16, 8, {"attention_head_dim": 7})
