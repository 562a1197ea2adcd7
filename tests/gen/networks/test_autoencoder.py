"""An autoencoder whose decoder is wider than its encoder."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoModel

import brickwork

SHAPE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


def unequal(encoder=(4, 8), decoder=(8, 16)) -> torch.nn.Module:
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": encoder, "block_out_channels": decoder}
    return brickwork.UnequalAutoencoderKL(**SHAPE, **widths).eval()


def test_it_is_the_encoder_of_one_autoencoder_and_the_decoder_of_another():
    network = unequal()
    narrow = AutoencoderKL(**SHAPE, block_out_channels=(4, 8)).eval()
    wide = AutoencoderKL(**SHAPE, block_out_channels=(8, 16)).eval()
    for one, names in ((narrow, ("encoder", "quant_conv")), (wide, ("decoder", "post_quant_conv"))):
        for name in names:
            one.get_submodule(name).load_state_dict(network.get_submodule(name).state_dict())
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        mean = narrow.encode(pictures).latent_dist.mean
        assert torch.equal(network.encode(pictures).latent_dist.mean, mean)
        assert torch.equal(network.decode(mean).sample, wide.decode(mean).sample)
        assert network(pictures).sample.shape == pictures.shape


@pytest.mark.parametrize("kind", [AutoModel, brickwork.UnequalAutoencoderKL])
def test_it_is_saved_and_found_by_its_name(tmp_path, kind, caplog):
    network = unequal()
    network.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(str(tmp_path))
    assert type(loaded) is type(network) and loaded.config.encoder_block_out_channels == [4, 8]
    assert not caplog.records
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_as_many_widths_of_the_encoder_as_of_the_decoder():
    with pytest.raises(ValueError, match="`encoder_block_out_channels` has 1 widths and `block_out_channels` 2"):
        unequal(encoder=(4,))


def test_its_configuration_makes_another():
    network = unequal()
    other = type(network).from_config(network.config)
    assert [tensor.shape for tensor in other.parameters()] == [tensor.shape for tensor in network.parameters()]
