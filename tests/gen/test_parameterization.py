"""What networks are asked to predict."""

import math

import diffusers
import pytest
import torch

from brickwork.gen.parameterization import OBJECTIVES, EpsilonObjective, FlowObjective, VObjective


def batch(size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, 6, 5, generator=generator) * 2 - 1
    return images, torch.randn(size, 3, 6, 5, generator=generator), torch.randn(size, generator=generator)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_network_that_says_the_target_has_no_loss(name):
    objective, (images, noise, normal) = OBJECTIVES[name](), batch()
    level = objective.noise_levels(normal)
    target = objective.target(images, noise, level)
    assert torch.equal(objective.losses(target, images, noise, level), torch.zeros(4))
    off = objective.losses(target + 0.1, images, noise, level)
    torch.testing.assert_close(off, torch.full((4,), 0.01))


@pytest.mark.parametrize("name", ["epsilon", "v"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_noise_and_velocity_are_those_of_diffusers(name, beta_schedule):
    betas = {"beta_schedule": beta_schedule, "beta_start": 0.001, "beta_end": 0.01}
    objective, (images, noise, _) = OBJECTIVES[name](**betas), batch()
    scheduler, steps = diffusers.DDPMScheduler(**betas), torch.tensor([0, 10, 500, 999])
    sample, timestep = objective.network_inputs(images, noise, steps.float())
    torch.testing.assert_close(sample, scheduler.add_noise(images, noise, steps))
    assert torch.equal(timestep, steps.float())
    if name == "v":
        velocity = scheduler.get_velocity(images, noise, steps)
        torch.testing.assert_close(objective.target(images, noise, steps.float()), velocity)


def test_flow_is_that_of_diffusers():
    objective, (images, noise, _) = FlowObjective(shift=3.0), batch(1)
    scheduler = objective.scheduler()
    scheduler.set_timesteps(10)
    level, step = scheduler.sigmas[4:5], scheduler.timesteps[4:5]
    sample, timestep = objective.network_inputs(images, noise, level)
    torch.testing.assert_close(sample, scheduler.scale_noise(images, step, noise))
    torch.testing.assert_close(timestep, step)


def test_every_timestep_is_equally_likely():
    levels = EpsilonObjective(num_train_timesteps=10).noise_levels(torch.randn(20000))
    counts = torch.bincount(levels.long(), minlength=10)
    assert len(counts) == 10 and (counts - 2000).abs().max() < 250
    assert EpsilonObjective().noise_levels(torch.tensor([-40.0, 40.0])).tolist() == [0.0, 999.0]
    assert (
        0
        < FlowObjective().noise_levels(torch.randn(1000)).min()
        < FlowObjective().noise_levels(torch.randn(9)).max()
        < 1
    )


def test_min_snr_weighs_the_clean_images_error_alike():
    """`min(SNR, gamma)` times the squared error of the clean image, whatever is predicted (arXiv 2303.09556)."""
    steps = torch.tensor([0.0, 200.0, 600.0, 999.0])
    cumprod = EpsilonObjective().alphas_cumprod[steps.long()]
    snr = cumprod / (1 - cumprod)
    expected = snr.clamp(max=5.0).float()
    # An error e of the clean image is √SNR·e in the noise and √(SNR + 1)·e in the velocity.
    torch.testing.assert_close(EpsilonObjective(min_snr_gamma=5.0).weights(steps) * snr.float(), expected)
    torch.testing.assert_close(VObjective(min_snr_gamma=5.0).weights(steps) * (snr + 1).float(), expected)
    with pytest.raises(ValueError, match="min_snr_gamma"):
        EpsilonObjective(min_snr_gamma=0.0)


def test_the_variational_bound_is_the_divergence_of_two_gaussians():
    objective, (images, noise, _) = EpsilonObjective(), batch(2)
    steps, variance = torch.tensor([30.0, 700.0]), torch.rand(2, 3, 6, 5) * 2 - 1
    epsilon = noise + 0.3
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    for image in range(2):
        step = int(steps[image])
        cumprod, before = scheduler.alphas_cumprod[step].double(), scheduler.alphas_cumprod[step - 1].double()
        alpha = cumprod / before
        noisy = cumprod.sqrt() * images[image] + (1 - cumprod).sqrt() * noise[image]

        def mean(eps, noisy=noisy, cumprod=cumprod, alpha=alpha):
            return (noisy - (1 - alpha) / (1 - cumprod).sqrt() * eps) / alpha.sqrt()

        posterior = ((1 - before) / (1 - cumprod) * (1 - alpha)).sqrt()
        predicted = scheduler._get_variance(step, variance[image], "learned_range").double()
        truth = torch.distributions.Normal(mean(noise[image]), posterior)
        guess = torch.distributions.Normal(mean(epsilon[image]), (predicted / 2).exp())
        expected = torch.distributions.kl_divergence(truth, guess).mean() / math.log(2)
        found = objective.variational_bound(
            epsilon[image : image + 1], variance[image : image + 1], images[image : image + 1],
            noise[image : image + 1], steps[image : image + 1],
        )  # fmt: skip
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-3, atol=1e-5)


def test_a_learned_variance_is_trained_beside_the_noise():
    objective, (images, noise, _) = EpsilonObjective(), batch()
    steps = torch.tensor([0.0, 1.0, 500.0, 999.0])
    output = torch.cat([noise + 0.1, torch.zeros_like(noise)], dim=1).requires_grad_()
    losses = objective.losses(output, images, noise, steps)
    assert losses.isfinite().all() and (losses > 0.0099).all()
    losses.sum().backward()
    estimate, variance = output.grad.chunk(2, dim=1)
    torch.testing.assert_close(estimate, torch.full_like(estimate, 0.2 / 90))  # of the squared error alone
    assert all(image.abs().max() > 0 for image in variance)
    with pytest.raises(ValueError, match="out_channels"):
        FlowObjective().losses(output, images, noise, torch.full((4,), 0.5))
