"""Residuals in at every site, and tokens beside the text."""

import pytest
import torch

from brickwork.gen.blocks.windows import window_partition
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.taps import tapped

SIZE = (13, 18)


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


@pytest.fixture(params=["unet", "transformer", "lego"])
def model(request, lego):
    if request.param == "lego":
        return lego()
    settings = {"block_types": "dit", "attention_head_dim": 8, "cross_attention_dim": 6, "window_size": 3}
    if request.param == "transformer":
        return randomised(
            BlockTransformer2DModel(sample_size=16, in_channels=3, hidden_size=16, num_layers=3, **settings)
        )
    return randomised(
        BlockUNet2DModel(sample_size=16, block_out_channels=(16, 24), layers_per_block=(2, 1), **settings)
    )


def inputs(model, batch=2):
    torch.manual_seed(1)
    call = model.example_inputs(batch, *SIZE)
    return {name: torch.randn_like(tensor) for name, tensor in call.items()}


def zeros(model, batch=2):
    return {site: torch.zeros(batch, *shape) for site, shape in model.residual_sites(*SIZE).items()}


@torch.no_grad()
def test_zeros_add_nothing(model):
    call = inputs(model)
    expected = model(**call).sample
    assert torch.equal(model(**call, **model.residual_arguments(zeros(model))).sample, expected)


@torch.no_grad()
def test_every_site_matters_as_map_and_as_tokens(model):
    call, sites = inputs(model), model.residual_sites(*SIZE)
    expected = model(**call).sample
    assert sites and len(sites) == sum(map(len, model.ports.values()))
    for site, shape in sites.items():
        residual = torch.randn(2, *shape)
        changed = model(**call, **model.residual_arguments({site: residual})).sample
        assert not torch.allclose(changed, expected, atol=1e-4), site
        tokens = residual.flatten(2).transpose(1, 2)
        assert torch.equal(model(**call, **model.residual_arguments({site: tokens})).sample, changed), site


@torch.no_grad()
def test_a_residual_is_what_is_added_to_the_site():
    """Behind block 1 of a network of two, what the next block gets is the output and the residual."""
    settings = {"block_types": "resnet", "sample_size": 16, "in_channels": 3, "hidden_size": 16}
    model = randomised(BlockTransformer2DModel(num_layers=2, **settings))
    call, residual, seen = inputs(model), torch.randn(2, 16, 7, 9), []
    with tapped(model, ["blocks.0"]) as taps:
        model(**call)
    model.blocks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**call, block_additional_residuals=(residual, None))
    assert torch.equal(seen[0], taps["blocks.0"] + residual)


@torch.no_grad()
@pytest.mark.parametrize("cyclic", [(False, False), (True, True)])
def test_a_stack_cuts_residuals_as_it_cuts_the_image(lego, cyclic):
    """What a residual adds to a block is there where its tokens are."""
    model, name = lego("shrinking"), "bricks.2.blocks.0"
    call, shape = inputs(model), model.residual_sites(*SIZE)[name]
    assert shape == (16, *SIZE)  # a patch of one pixel, windows of four
    with tapped(model, [name]) as taps:
        model(**call, cyclic=cyclic)
    before, residual, seen = taps[name], torch.randn(2, *shape), []
    model.bricks[2].proj_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**call, cyclic=cyclic, **model.residual_arguments({name: residual}))
    filled = torch.nn.functional.pad(residual, (0, 2, 0, 3), mode="circular" if any(cyclic) else "constant")
    expected = before + window_partition(filled, 4)
    model.bricks[2].blocks[0].register_forward_hook(lambda *_: expected)
    model(**call, cyclic=cyclic)
    assert torch.equal(seen[0], seen[1])


@torch.no_grad()
def test_diffusers_semantics_of_skips_and_stages():
    """ControlNet's residuals reach the decoder alone, T2I-Adapter's the next stage of the encoder too."""
    model = randomised(BlockUNet2DModel(sample_size=16, block_out_channels=(16, 24), layers_per_block=(2, 1)))
    call, shape = inputs(model), model.residual_sites(*SIZE)["down_blocks.0"]
    residual = torch.randn(2, *shape)
    assert list(model.ports["down_block_additional_residuals"]) == [
        "down_blocks.0.blocks.0",
        "down_blocks.0.blocks.1",
        "down_blocks.1.blocks.0",
    ]
    names = ["down_blocks.1.blocks.0", "mid_block.0"]
    with tapped(model, names) as plain:
        model(**call)
    with tapped(model, names) as skipped:
        model(**call, down_block_additional_residuals=(None, residual, None))
    assert all(torch.equal(plain[name], skipped[name]) for name in names)
    with tapped(model, names) as inner:
        model(**call, down_intrablock_additional_residuals=[residual, None])
    assert not any(torch.allclose(plain[name], inner[name]) for name in names)


@torch.no_grad()
def test_other_shapes_and_sites_are_refused_by_name(model):
    call, (site, shape) = inputs(model), next(iter(model.residual_sites(*SIZE).items()))
    argument = next(name for name, sites in model.ports.items() if site in sites)
    for wrong in (torch.zeros(2, shape[0], shape[1] + 1, shape[2]), torch.zeros(3, *shape), torch.zeros(shape)):
        with pytest.raises(ValueError, match=rf"`{argument}` has shape .* at '{site}'; give \(2, "):
            model(**call, **model.residual_arguments({site: wrong}))
    with pytest.raises(ValueError, match=f"did you mean '{site}'"):
        model.residual_arguments({site + "x": torch.zeros(1)})
    for wrong in ((), torch.zeros(2, *shape)):
        with pytest.raises(ValueError, match=f"`{argument}` is .*{site}"):
            model(**call, **{argument: wrong})


@torch.no_grad()
def test_further_tokens_stand_beside_the_text():
    settings = {"block_types": "resnet", "cross_attention_dim": 6, "attention_head_dim": 8}
    for made in (
        BlockTransformer2DModel(sample_size=16, in_channels=3, hidden_size=16, num_layers=1, **settings),
        BlockUNet2DModel(sample_size=16, block_out_channels=(16,), **settings),
    ):
        model = randomised(made)
        call, tokens = inputs(model), torch.randn(2, 3, 6)
        joined = call | {"encoder_hidden_states": torch.cat([call["encoder_hidden_states"], tokens], dim=1)}
        assert torch.equal(model(**call, additional_context_tokens=tokens).sample, model(**joined).sample)
        with pytest.raises(ValueError, match="`additional_context_tokens` has shape"):
            model(**call, additional_context_tokens=tokens[..., :4])
    with pytest.raises(ValueError, match="cross_attention_dim"):
        BlockUNet2DModel(block_out_channels=(16,))(torch.zeros(1, 3, 8, 8), 1.0, additional_context_tokens=tokens[:1])


def test_a_list_of_modules_gives_nothing_to_tap():
    model = BlockUNet2DModel(block_out_channels=[8, 16], sample_size=16)
    with (
        pytest.raises(ValueError, match="'mid_block', a list of modules.*name 'mid_block.0'"),
        tapped(model, ["mid_block"]),
    ):
        pass
