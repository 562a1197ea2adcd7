"""The paired held-out denoising loss, and counted operations."""

import pytest
import torch
from diffusers import UNet2DModel

from brickwork import LegoTransformer2DModel
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.gen.operations import count_operations
from brickwork.gen.parameterization import EDMObjective


class Perfect(torch.nn.Module):
    """Knows the images, and so the exact answer to every question."""

    def __init__(self, images, objective):
        super().__init__()
        self.images, self.objective, self.scale = images, objective, torch.nn.Parameter(torch.ones(()))
        self.start = 0

    def forward(self, sample, timestep, class_labels=None):
        images = self.images[: len(sample)]
        sigma = (timestep * 4).exp()
        level = sigma.view(-1, 1, 1, 1)
        noise = (sample * (level**2 + 0.25).sqrt() - images) / level
        output = self.objective.target(images, noise, sigma) * self.scale
        return type("Output", (), {"sample": output})()


@pytest.fixture
def images():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make_lego():
    torch.manual_seed(0)
    model = LegoTransformer2DModel(
        num_classes=3, window_sizes=[8, 4], patch_sizes=[4, 2], num_layers=[1, 1], hidden_sizes=16,
        num_attention_heads=2,
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_a_perfect_network_scores_zero_and_silence_scores_the_power_of_the_target(images):
    objective, pairs = EDMObjective(), PairedSet.from_images(images, None)
    perfect = Perfect(images, objective)
    assert paired_loss(perfect, pairs, objective, batch_size=5)["loss"] < 1e-6
    perfect.scale.data.zero_()
    result = paired_loss(perfect, pairs, objective, batch_size=5)
    expected = []
    for level, quantile in enumerate(pairs.levels):
        sigma = objective.noise_levels(torch.full((5,), quantile))
        expected.append(objective.target(images, pairs.noise(level, 0, 5), sigma).square().mean().item())
    assert result["loss"] == pytest.approx(sum(expected) / 8, rel=1e-5)
    assert list(result["per_level"].values()) == pytest.approx(expected, rel=1e-5)


def test_the_objective_is_edms_weighted_denoising_loss(images):
    """λ(σ)·‖D − y‖² with EDM's c_skip, c_out and λ, written out."""
    objective = EDMObjective(sigma_data=0.5)
    generator = torch.Generator().manual_seed(1)
    noise, output = (torch.randn(images.shape, generator=generator) for _ in range(2))
    sigma = objective.noise_levels(torch.randn(5, generator=generator))
    s = sigma.view(-1, 1, 1, 1)
    noisy = images + s * noise
    denoised = 0.25 / (s**2 + 0.25) * noisy + s * 0.5 / (s**2 + 0.25).sqrt() * output
    weight = (s**2 + 0.25) / (s * 0.5) ** 2
    expected = (weight * (denoised - images) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(objective.losses(output, images, noise, sigma), expected, rtol=1e-4, atol=1e-5)
    sample, timestep = objective.network_inputs(images, noise, sigma)
    torch.testing.assert_close(sample, noisy / (0.25 + s**2).sqrt())
    torch.testing.assert_close(timestep, sigma.log() / 4)


def test_every_network_meets_the_same_noise_whatever_the_batch(images):
    pairs = PairedSet.from_images(images, torch.tensor([0, 1, 2, 0, 1]))
    model, objective = make_lego(), EDMObjective()
    one, whole = (paired_loss(model, pairs, objective, batch_size=size) for size in (1, 5))
    assert one["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert torch.equal(pairs.noise(2, 1, 4), pairs.noise(2, 0, 5)[1:4])
    assert not torch.equal(pairs.noise(2, 1, 2), pairs.noise(3, 1, 2))
    other = PairedSet.from_images(images, pairs.labels, seed=1)
    assert paired_loss(model, other, objective)["loss"] != whole["loss"]


def test_bricks_are_scored_one_by_one_and_in_subsets(images):
    pairs = PairedSet.from_images(images, torch.tensor([0, 1, 2, 0, 1]))
    model, objective = make_lego(), EDMObjective()
    whole = paired_loss(model, pairs, objective)
    assert len(whole["per_estimate"]) == 2 and whole["per_estimate"][-1] == pytest.approx(whole["loss"])
    exit_early = paired_loss(model, pairs, objective, subnet="0")
    assert exit_early["loss"] == pytest.approx(whole["per_estimate"][0], rel=1e-6)


def test_networks_of_diffusers_are_scored_too(images):
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip
    result = paired_loss(unet, PairedSet.from_images(images, None), EDMObjective())
    assert result["loss"] > 0 and len(result["per_estimate"]) == 1


def test_the_cpus_fused_attention_is_counted():
    query = torch.randn(2, 3, 32, 8, requires_grad=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        forward, output = count_operations(
            lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query)
        )
        assert forward == 2 * (2 * 3 * 32 * 32 * 8 * 2)  # two matrix products, a multiply-add as two
        backward, _ = count_operations(lambda: output.sum().backward())
    assert backward > 2 * forward - 1
