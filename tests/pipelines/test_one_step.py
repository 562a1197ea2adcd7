import pytest
import torch

from brickwork.gen.networks.gan import MaxViTGenerator2DModel
from brickwork.pipelines.one_step import OneStepPipeline


@pytest.fixture(scope="module")
def pipe() -> OneStepPipeline:
    torch.manual_seed(0)
    network = MaxViTGenerator2DModel(
        sample_size=16, latent_dim=8, block_out_channels=[16, 8], layers_per_stage=1, attention_head_dim=8
    )
    return OneStepPipeline(network.eval())


def test_an_image_does_not_depend_on_the_others(pipe):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    three = pipe(3, generators(1, 2, 3), output_type="pt").images
    assert three.shape == (3, 3, 16, 16) and 0 <= three.min() and three.max() <= 1
    torch.testing.assert_close(pipe(1, generators(2), output_type="pt").images, three[1:2])
    assert not torch.allclose(three[0], three[1])


def test_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    latents = torch.randn(2, 8)
    loaded = OneStepPipeline.from_pretrained(tmp_path)
    arguments = {"batch_size": 2, "latents": latents, "output_type": "latent"}
    torch.testing.assert_close(loaded(**arguments).images, pipe(**arguments).images, rtol=0, atol=0)
    assert loaded(return_dict=False)[0][0].size == (16, 16)


def test_truncation_moves_towards_the_mean(pipe):
    latents = torch.randn(4, 8)
    arguments = {"batch_size": 4, "latents": latents, "output_type": "latent"}
    spread = [pipe(truncation=truncation, **arguments).images.std(0).mean() for truncation in (0.1, 1.0)]
    assert spread[0] < spread[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"output_type": "png"}, "`output_type` is 'png'; choose one of pil"),
        ({"truncation": 0}, "`truncation` is 0"),
        ({"latents": torch.zeros(1, 9)}, r"`latents` has shape \(1, 9\); this call needs \(1, 8\)"),
    ],
)
def test_bad_input(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)
