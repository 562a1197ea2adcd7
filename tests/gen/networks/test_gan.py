import pytest
import torch

from brickwork.gen.networks.gan import MaxViTGAN2DModel, MaxViTGenerator2DModel

TINY = {"latent_dim": 8, "block_out_channels": [16, 16, 8], "layers_per_stage": 1, "attention_head_dim": 8}
TINY |= {"window_size": 4}


def generator(**settings) -> MaxViTGenerator2DModel:
    torch.manual_seed(0)
    return MaxViTGenerator2DModel(sample_size=16, **(TINY | settings))


def test_the_papers_generator_has_about_its_parameters():
    with torch.device("meta"):
        model = MaxViTGenerator2DModel()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(18.6e6, rel=0.02)


@pytest.mark.parametrize("batch", [1, 3])
def test_shape_range_and_gradients(batch):
    model = generator().eval()
    for block in model.modules():  # attention to the latent starts at zero
        if hasattr(block, "text_attn"):
            torch.nn.init.normal_(block.text_attn.proj.weight)
    sample = model(torch.randn(batch, 8)).sample
    assert sample.shape == (batch, 3, 16, 16)
    assert sample.abs().max() <= 1
    sample.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or (batch > 1 and not p.grad.any())]
    assert without == []


def test_checkpointing_and_saving_change_nothing(tmp_path):
    model = generator(layers_per_stage=2).eval()
    latents = torch.randn(2, 8)
    expected = model(latents).sample
    model.save_pretrained(tmp_path)
    loaded = MaxViTGenerator2DModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(latents).sample, expected, rtol=0, atol=0)
    model.enable_gradient_checkpointing()
    torch.testing.assert_close(model(latents).sample, expected, rtol=0, atol=0)


def gan() -> MaxViTGAN2DModel:
    torch.manual_seed(0)
    return MaxViTGAN2DModel(16, 3, discriminator_channels=[8, 8, 16], generator_config=TINY)


def grads(model: torch.nn.Module) -> list[bool]:
    return [bool(p.grad is not None and p.grad.any()) for p in model.parameters()]


def test_each_part_of_the_loss_reaches_one_network_alone():
    images, latents = torch.rand(4, 3, 16, 16) * 2 - 1, torch.randn(4, 8)
    for part, reached, spared in ((0, "generator", "discriminator"), (1, "discriminator", "generator")):
        model = gan()
        model(images, latents, lambda x: x, 2)[part].sum().backward()
        assert any(grads(getattr(model, reached)))
        assert not any(grads(getattr(model, spared)))
    assert all(p.requires_grad for p in model.parameters())


def test_the_penalty_is_the_squared_gradient_at_real_images():
    model, images = gan(), torch.rand(3, 3, 16, 16) * 2 - 1
    squared = model(images, torch.randn(3, 8), lambda x: x, 2)[3]
    assert squared.shape == (2,)
    step = 1e-3
    direction = torch.randn(1, 3, 16, 16)
    both = [model.discriminator(images[:2] + sign * step * direction).sum() for sign in (1, -1)]
    at = images[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.discriminator(at).sum(), at)
    torch.testing.assert_close((both[0] - both[1]) / (2 * step), (gradient * direction).sum(), rtol=0.02, atol=1e-4)
    torch.testing.assert_close(squared, gradient.square().flatten(1).sum(1), rtol=1e-4, atol=0)
    squared.sum().backward()
    assert any(grads(model.discriminator)) and not any(grads(model.generator))


def test_the_discriminator_sees_a_generator_that_always_draws_the_same():
    discriminator = gan().discriminator
    images = torch.rand(1, 3, 16, 16).expand(4, -1, -1, -1)
    alone, crowd = discriminator(images), discriminator(torch.cat([images[:1], torch.rand(3, 3, 16, 16)]))
    assert not torch.allclose(alone[0], crowd[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_size": 18}, "`sample_size` is 18; with 3 stages give a multiple of 4"),
        ({"sample_size": 8}, "`window_size` is 4, more than the first stage's side of 2"),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        MaxViTGenerator2DModel(**(TINY | settings))


def test_latents_and_discriminators_that_do_not_fit():
    with pytest.raises(ValueError, match=r"this network reads \(batch, 8\)"):
        generator()(torch.randn(2, 7))
    with pytest.raises(ValueError, match="`discriminator_channels` has 6 entries"):
        MaxViTGAN2DModel(16, 3, discriminator_channels=[8] * 6, generator_config=TINY)
