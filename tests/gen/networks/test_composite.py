"""Networks grown by copies of themselves: equal at first, linked stage by stage, saved in parts."""

import pytest
import torch
from diffusers import AutoModel, UNet2DConditionModel

from brickwork import BlockTransformer2DModel, BlockUNet2DModel, CompositeDenoiser, SubnetSchedule

OURS = {
    "sample_size": 8,
    "in_channels": 3,
    "num_classes": 5,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "attention_head_dim": 8,
}
THEIRS = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
KINDS = {
    "ours": lambda: BlockUNet2DModel(**OURS),
    "every block": lambda: BlockUNet2DModel(**OURS | {"layers_per_block": 2}, block_types="dit,resnet,resnet"),
    "theirs": lambda: UNet2DConditionModel(**THEIRS),
    "theirs, convolutions first": lambda: UNet2DConditionModel(
        **THEIRS
        | {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        }
    ),
}


def randomised(module):
    for parameter in module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return module.eval()


@pytest.fixture(params=list(KINDS))
def network(request):
    torch.manual_seed(0)
    return randomised(KINDS[request.param]())


def ours():
    torch.manual_seed(0)
    return randomised(KINDS["ours"]())


def inputs(network, batch=3, height=8, width=12):
    generator = torch.Generator().manual_seed(0)
    call = {"sample": torch.randn(batch, 3, height, width, generator=generator), "timestep": torch.tensor(7.0)}
    if isinstance(network, UNet2DConditionModel):
        return call | {"encoder_hidden_states": torch.randn(batch, 4, 8, generator=generator)}
    return call | {"class_labels": torch.randint(0, 6, (batch,), generator=generator)}


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("composition", ["dhlc", "same_level"])
def test_grown_it_is_the_single_network_until_trained(network, batch, composition):
    call = inputs(network, batch)
    grown = CompositeDenoiser.grow(network, composition=composition)
    expected = network(**call).sample
    for subnet in (None, "full", "whole", "assistant"):
        assert torch.equal(grown(**call, subnet=subnet).sample, expected)
    assert torch.equal(grown(**call, return_dict=False)[0], expected)
    output = grown(**call, return_intermediates=True)
    assert len(output.intermediates) == 2 and all(torch.equal(one, expected) for one in output.intermediates)
    randomised(grown.links)
    linked = grown(**call, return_intermediates=True)
    assert torch.equal(linked.sample, grown(**call).sample) and not torch.allclose(linked.sample, expected)
    assert torch.equal(linked.intermediates[0], expected)
    assert all(torch.equal(a, b) for a, b in zip(grown.networks[0].parameters(), network.parameters()))


@torch.no_grad()
def test_every_higher_stage_is_linked():
    model = ours()
    call = inputs(model, height=9, width=13)
    sizes = [outputs[-1].shape for outputs in model.encode(call["sample"], model.begin(**call))]
    for composition, count in (("dhlc", 6), ("same_level", 3)):
        grown = CompositeDenoiser.grow(model, composition=composition)
        links = grown.links.links[0]
        pairs = [(stage, int(source)) for stage, found in enumerate(links) for source in found]
        assert len(pairs) == count and all(source >= stage for stage, source in pairs)
        residuals = grown.links(0, [torch.randn(size) for size in sizes])
        assert [residual.shape for residual in residuals] == sizes
        for stage, source in pairs:
            grown = CompositeDenoiser.grow(model, composition=composition)
            randomised(grown.links.links[0][stage][str(source)])
            assert not torch.allclose(grown(**call).sample, model(**call).sample), (stage, source)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(9, 13), (17, 8)])
def test_odd_sizes(height, width):
    grown = randomised(CompositeDenoiser.grow(ours(), k=3))
    output = grown(**inputs(grown, 1, height, width), return_intermediates=True)
    assert output.sample.shape == (1, 3, height, width) and output.sample.isfinite().all()
    assert len(output.intermediates) == 3 == len(grown.output_weights)


def test_every_parameter_gets_a_gradient(network):
    grown = CompositeDenoiser.grow(network).train()
    randomised(grown.links)
    estimates = grown(**inputs(network), return_intermediates=True).intermediates
    losses = [one.square().mean() for one in estimates]
    sum(weight * loss for weight, loss in zip(grown.output_weights, losses)).backward()
    for name, parameter in grown.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_norms_learn_first():
    grown = CompositeDenoiser.grow(ours()).train()
    grown(**inputs(grown)).sample.square().mean().backward()
    links = dict(grown.links.named_parameters())
    assert all(links[name].grad.abs().sum() > 0 for name in links if "norm" in name)


@torch.no_grad()
@pytest.mark.parametrize("k", [2, 3])
def test_saved_and_loaded_as_one_and_in_parts(network, k, tmp_path):
    grown = CompositeDenoiser.grow(network, k=k)
    randomised(grown.links)
    call = inputs(network)
    grown.save_pretrained(tmp_path / "unet")
    assert (tmp_path / "unet" / "lead" / "config.json").is_file()
    again = CompositeDenoiser.from_pretrained(tmp_path, subfolder="unet")
    for subnet in ("assistant", "full"):
        assert torch.equal(again(**call, subnet=subnet).sample, grown(**call, subnet=subnet).sample)
    assert type(AutoModel.from_pretrained(str(tmp_path / "unet"))) is CompositeDenoiser
    part = type(network).from_pretrained(tmp_path / "unet" / "lead")
    assert torch.equal(part(**call).sample, network(**call).sample)
    from_folder = CompositeDenoiser.grow(tmp_path / "unet" / "lead")
    assert torch.equal(from_folder(**call).sample, network(**call).sample)


def test_subnets_are_counted_and_scheduled(network):
    grown = CompositeDenoiser.grow(network)
    costs = grown.subnets(8, 8)
    assert list(costs) == ["assistant", "full"]
    # The whole runs the assistant's encoder alone.
    assert costs["assistant"] < costs["full"] < 2 * costs["assistant"] + 100_000
    schedule = SubnetSchedule.from_rules(grown, {"assistant": (1, None), "full": (0, 1)})
    assert schedule.subnets == ("full", "assistant")


@torch.no_grad()
def test_residuals_go_to_the_lead():
    model = ours()
    grown, call = CompositeDenoiser.grow(model), inputs(model, height=8, width=8)
    sites = model.residual_sites(8, 8)
    residuals = {site: torch.randn(3, *shape) for site, shape in sites.items()}
    arguments = model.residual_arguments(residuals)
    torch.testing.assert_close(grown(**call, **arguments).sample, model(**call, **arguments).sample)


@torch.no_grad()
def test_the_assistant_may_read_something_else():
    grown, other = CompositeDenoiser.grow(ours()), torch.randn(3, 3, 8, 12)
    randomised(grown.links)
    call = inputs(grown)
    assert not torch.allclose(grown(**call, assistant_sample=other).sample, grown(**call).sample)


@torch.no_grad()
def test_compiled_whole():
    grown = CompositeDenoiser.grow(ours())
    randomised(grown.links)
    compiled = torch.compile(grown, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs(grown)).sample, grown(**inputs(grown)).sample)


def test_mistakes_are_refused(tmp_path):
    transformer = BlockTransformer2DModel(sample_size=8, hidden_size=8, num_layers=1, attention_head_dim=8)
    with pytest.raises(ValueError, match="BlockTransformer2DModel, which has no stages.*BlockUNet2DModel"):
        CompositeDenoiser.grow(transformer)
    transformer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no stages"):
        CompositeDenoiser.grow(tmp_path)
    with pytest.raises(ValueError, match="`k` is 1"):
        CompositeDenoiser.grow(ours(), k=1)
    with pytest.raises(ValueError, match="did you mean 'dhlc'"):
        CompositeDenoiser.grow(ours(), composition="dhcl")
    with pytest.raises(ValueError, match="assistant"):
        CompositeDenoiser.grow(ours())(**inputs(ours()), subnet="assistent")
