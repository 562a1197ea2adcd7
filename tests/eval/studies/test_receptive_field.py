"""How far a network sees, where one knows."""

import numpy as np
import pytest
import torch
from torch import nn

from brickwork.eval.studies.receptive_field import effective_receptive_field, receptive_field_report
from brickwork.gen.networks.unet import BlockUNet2DModel


def make_unet(**config):
    torch.manual_seed(0)
    settings = {"block_types": "basic", "block_out_channels": (8,), "layers_per_block": 1, "sample_size": 32}
    settings |= {"block_options": {"basic": {"conv_norm": "none"}}}
    model = BlockUNet2DModel(**settings | config)
    model.norm_out = nn.Identity()  # a GroupNorm sees the whole map
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_convolutions_see_as_far_as_their_kernels_reach():
    """Two 3×3 convolutions a block, three blocks, the first and the last: 8 pixels in each direction."""
    model = make_unet().train()
    field = effective_receptive_field(model, 100.0, count=4)
    assert model.training and field.influence.shape == (32, 32)
    np.testing.assert_allclose(field.influence.sum(), 1)
    reached = np.argwhere(field.influence > 0) - 16
    assert abs(reached).max() == 8
    assert field.side(1) == 17 and 1 < field.side(0.5) < field.side(0.95) <= 17
    assert np.array_equal(field.influence, effective_receptive_field(model, 100.0, count=4).influence)


def test_attention_sees_everything_and_depth_sees_farther():
    config = {"block_options": None, "attention_head_dim": 4}
    assert (effective_receptive_field(make_unet(block_types="sra", **config), 1.0, count=1).influence > 0).all()
    deep = effective_receptive_field(make_unet(layers_per_block=4), 1.0, count=2)
    assert deep.side(0.95) > effective_receptive_field(make_unet(), 1.0, count=2).side(0.95)


def test_samples_of_ones_own_and_other_sizes():
    field = effective_receptive_field(make_unet(), 1.0, torch.randn(2, 3, 20, 27))
    assert field.influence.shape == (20, 27) and field.picture().shape == (20, 27, 3)
    assert field.picture().min() == 0 and field.picture().max() == 255


def test_a_fresh_network_sees_nothing():
    with pytest.raises(ValueError, match=r"\(BlockUNet2DModel\) at t=1.0 has a gradient of zero.*trained"):
        effective_receptive_field(BlockUNet2DModel(block_out_channels=(8,), sample_size=16), 1.0, count=1)
    with pytest.raises(ValueError, match="`share` is 0"):
        effective_receptive_field(make_unet(), 1.0, count=1).side(0)


def test_the_report_has_a_row_and_a_picture_for_each(tmp_path):
    report = receptive_field_report(
        {"narrow": make_unet(), "deep": make_unet(layers_per_block=3)}, [1.0, 500.0], count=1
    )
    report.write(tmp_path)
    text = report.markdown()
    assert text.count("narrow") >= 3 and "deep" in text and "95%" in text
    assert len(list(tmp_path.rglob("*.png"))) >= 4
