"""The Heun scheduler against a plain float64 version of EDM's Algorithm 2 and against closed forms."""

import copy
import math
import pickle

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler

SHAPE = (3, 2, 5, 4)
CHURN = {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
MEAN, STD = 0.3, 0.7  # of Gaussian data, for which the best denoiser is linear


def denoise(x, sigma):
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def network(scheduler, sample, timestep):
    """What EDM's network would return for the scaled input, and its estimate."""
    sigma = math.exp(4 * timestep.double().item())
    sigma_data = scheduler.config.sigma_data
    x = sample * (sigma**2 + sigma_data**2) ** 0.5
    skip, out = sigma_data**2 / (sigma**2 + sigma_data**2), sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
    return (denoise(x, sigma) - skip * x) / out


def sample_with(scheduler, noise, num_steps, generator=None):
    scheduler.set_timesteps(num_steps)
    x = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = network(scheduler, scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(output, timestep, x, generator=generator).prev_sample
    return x


def algorithm_2(x, num_steps, generator=None, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0):
    ramp = torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)
    levels = [*((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    x = x * levels[0]
    for i in range(num_steps):
        gamma = min(s_churn / num_steps, 2**0.5 - 1) if s_tmin <= levels[i] <= s_tmax else 0.0
        hat = levels[i] * (1 + gamma)
        if gamma > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x = x + (hat**2 - levels[i] ** 2) ** 0.5 * s_noise * noise
        slope = (x - denoise(x, hat)) / hat
        x_next = x + (levels[i + 1] - hat) * slope
        if levels[i + 1] > 0:
            slope_next = (x_next - denoise(x_next, levels[i + 1])) / levels[i + 1]
            x_next = x + (levels[i + 1] - hat) * (slope + slope_next) / 2
        x = x_next
    return x


def noise_of(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [2, 7, 18])
def test_reproduces_algorithm_2(num_steps):
    result = sample_with(EDMHeunScheduler(), noise_of(), num_steps)
    # `timesteps` are float32, so the test's network knows sigma to 4e-7 only.
    torch.testing.assert_close(result, algorithm_2(noise_of(), num_steps), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [6, 40])
def test_reproduces_algorithm_2_with_churn(num_steps):
    plain = algorithm_2(noise_of(), num_steps)
    expected = algorithm_2(noise_of(), num_steps, torch.Generator().manual_seed(1), **CHURN)
    assert (plain - expected).abs().max() > 0.1, "the churn must matter for this test to mean anything"
    result = sample_with(EDMHeunScheduler(**CHURN), noise_of(), num_steps, torch.Generator().manual_seed(1))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_churn_before_the_first_step_is_part_of_the_initial_noise():
    scheduler = EDMHeunScheduler(s_churn=4.0, s_noise=1.1)
    scheduler.set_timesteps(10)
    raised = 80 * 1.4
    assert scheduler.init_noise_sigma == pytest.approx(math.sqrt(80**2 + 1.1**2 * (raised**2 - 80**2)))
    assert scheduler.sigmas[0].item() == pytest.approx(raised)
    assert scheduler.timesteps[0].item() == pytest.approx(math.log(raised) / 4)


def test_is_of_second_order():
    exact = MEAN + (noise_of() * 80 - MEAN) * STD / math.sqrt(STD**2 + 80**2)
    errors = [(sample_with(EDMHeunScheduler(), noise_of(), n) - exact).abs().max().item() for n in (16, 32, 64)]
    for coarse, fine in zip(errors, errors[1:]):
        assert 3.2 < coarse / fine < 5.5


def test_layout_of_the_evaluations():
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == 9 and len(scheduler.sigmas) == 10
    assert scheduler.timesteps.dtype == torch.float32
    euler = EDMEulerScheduler()
    euler.set_timesteps(5)
    torch.testing.assert_close(scheduler.sigmas[::2].float(), euler.sigmas[:-1])
    torch.testing.assert_close(scheduler.sigmas[1::2].float(), euler.sigmas[1:])
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize(
    "option", [{"sigma_schedule": "exponential"}, {"final_sigmas_type": "sigma_min"}, {"rho": 3.0}]
)
def test_spacings_are_those_of_the_euler_scheduler(option):
    ours, theirs = EDMHeunScheduler(**option), EDMEulerScheduler(**option)
    ours.set_timesteps(6)
    theirs.set_timesteps(6)
    torch.testing.assert_close(ours.sigmas[1::2].float(), theirs.sigmas[1:])
    assert torch.isfinite(sample_with(ours, noise_of(), 6)).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_preconditioning_is_that_of_the_euler_scheduler(prediction_type):
    ours = EDMHeunScheduler(prediction_type=prediction_type, sigma_data=0.4)
    theirs = EDMEulerScheduler(prediction_type=prediction_type, sigma_data=0.4)
    x, output, sigma = noise_of(), noise_of(1), torch.tensor(1.7)
    torch.testing.assert_close(ours.precondition_inputs(x, sigma), theirs.precondition_inputs(x, sigma))
    torch.testing.assert_close(ours.precondition_noise(sigma), theirs.precondition_noise(sigma))
    torch.testing.assert_close(
        ours.precondition_outputs(x, output, sigma), theirs.precondition_outputs(x, output, sigma)
    )


def test_one_step_lands_on_the_denoised_estimate():
    result = sample_with(EDMHeunScheduler(), noise_of(), 1)
    torch.testing.assert_close(result, denoise(noise_of() * 80, 80.0), rtol=1e-5, atol=1e-6)


def test_custom_sigmas():
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(sigmas=[10.0, 1.0, 0.1])
    assert scheduler.sigmas.tolist() == [10.0, 1.0, 1.0, 0.1, 0.1, 0.0]
    assert scheduler.init_noise_sigma == 10.0


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_taken_between_two_evaluations_goes_on_alike(clone):
    scheduler = EDMHeunScheduler(**CHURN)
    scheduler.set_timesteps(4)
    x = noise_of() * scheduler.init_noise_sigma
    generator = torch.Generator()
    results = []
    for position, timestep in enumerate(scheduler.timesteps):
        if position == 3:
            assert not scheduler.state_in_first_order
            other, x_other = clone(scheduler), x.clone()
            results = [(scheduler, x), (other, x_other)]
            break
        output = network(scheduler, scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(output, timestep, x, generator=generator.manual_seed(position)).prev_sample
    ends = []
    for each, state in results:
        for timestep in each.timesteps[3:]:
            output = network(each, each.scale_model_input(state, timestep), timestep)
            state = each.step(output, timestep, state, generator=generator.manual_seed(9)).prev_sample
        ends.append(state)
    assert torch.equal(*ends)


def test_setting_timesteps_again_forgets_a_step_begun():
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(3)
    scheduler.step(noise_of(), scheduler.timesteps[0], noise_of())
    assert not scheduler.state_in_first_order
    scheduler.set_timesteps(3)
    assert scheduler.state_in_first_order and scheduler.step_index is None
    torch.testing.assert_close(
        sample_with(scheduler, noise_of(), 4), sample_with(EDMHeunScheduler(), noise_of(), 4), rtol=0, atol=0
    )


@pytest.mark.parametrize("churn", [{}, CHURN])
def test_begins_in_the_middle_by_index_or_by_timestep(churn):
    ends = []
    for by_index in (True, False):
        scheduler = EDMHeunScheduler(**churn)
        scheduler.set_timesteps(24)
        if by_index:
            scheduler.set_begin_index(16)
        timesteps = scheduler.timesteps[16:]
        clean = torch.full(SHAPE, MEAN, dtype=torch.float64)
        x = scheduler.add_noise(clean, noise_of(), timesteps[:1].repeat(SHAPE[0]))
        torch.testing.assert_close(x, clean + noise_of() * scheduler.sigmas[16])
        for timestep in timesteps:
            output = network(scheduler, scheduler.scale_model_input(x, timestep), timestep)
            x = scheduler.step(
                output, timestep, x, generator=torch.Generator().manual_seed(scheduler.step_index)
            ).prev_sample
        ends.append(x)
    assert torch.equal(*ends)
    if not churn:
        sigma = scheduler.sigmas[16].item()
        exact = MEAN + noise_of() * sigma * STD / math.hypot(STD, sigma)
        torch.testing.assert_close(ends[0], exact, rtol=0.02, atol=0.02)


def test_add_noise_takes_a_level_for_each_image():
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(6)
    clean = torch.zeros(SHAPE)
    noisy = scheduler.add_noise(clean, torch.ones(SHAPE), scheduler.timesteps[[0, 4, 8]])
    torch.testing.assert_close(noisy[:, 0, 0, 0], scheduler.sigmas[[0, 4, 8]].float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_samples_keep_their_dtype(dtype):
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(3)
    x = noise_of().to(dtype)
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]).dtype == dtype
    for timestep in scheduler.timesteps:
        output = scheduler.step(torch.zeros(SHAPE, dtype=torch.bfloat16), timestep, x)
        assert output.prev_sample.dtype == output.pred_original_sample.dtype == dtype
        x = output.prev_sample


def test_churn_noise_of_an_image_does_not_depend_on_the_batch():
    def run(images):
        generators = [torch.Generator().manual_seed(10 + image) for image in images]
        return sample_with(EDMHeunScheduler(**CHURN), noise_of()[images], 5, generators)

    together = run([0, 1, 2])
    assert torch.equal(together[1:], run([1, 2]))
    assert torch.equal(together[2:], run([2]))
    with pytest.raises(ValueError, match="2 entries for 3 images"):
        sample_with(EDMHeunScheduler(**CHURN), noise_of(), 5, [torch.Generator(), torch.Generator()])


def test_configuration_goes_to_and_from_the_other_edm_schedulers(tmp_path):
    euler = EDMEulerScheduler(sigma_max=40.0, sigma_data=1.0, rho=5.0)
    ours = EDMHeunScheduler.from_config(euler.config, s_churn=3.0)
    assert [ours.config[name] for name in ("sigma_max", "sigma_data", "rho", "s_churn")] == [40.0, 1.0, 5.0, 3.0]
    assert EDMEulerScheduler.from_config(ours.config).config.sigma_max == 40.0
    assert EDMDPMSolverMultistepScheduler.from_config(ours.config).config.sigma_data == 1.0
    solver = EDMDPMSolverMultistepScheduler(sigma_min=0.01, solver_order=3)
    assert EDMHeunScheduler.from_config(solver.config).config.sigma_min == 0.01

    ours.save_pretrained(tmp_path)
    loaded = EDMHeunScheduler.from_pretrained(tmp_path)
    public = [name for name in ours.config if not name.startswith("_")]
    assert {name: loaded.config[name] for name in public} == {name: ours.config[name] for name in public}
    assert "Infinity" not in (tmp_path / "scheduler_config.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_schedule": "cosine"}, "karras, exponential"),
        ({"prediction_type": "sample"}, "epsilon, v_prediction"),
        ({"final_sigmas_type": "one"}, "zero, sigma_min"),
        ({"sigma_min": 0.0}, "above 0"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "below `sigma_max`"),
        ({"s_churn": -1.0}, "below 0"),
    ],
)
def test_refuses_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        EDMHeunScheduler(**options)


def test_refuses_bad_calls():
    scheduler = EDMHeunScheduler()
    for arguments in ({"num_inference_steps": 0}, {}, {"sigmas": [1.0, 2.0]}, {"sigmas": [1.0, 0.0]}, {"sigmas": []}):
        with pytest.raises(ValueError, match="`num_inference_steps` is|`sigmas` is"):
            scheduler.set_timesteps(**arguments)
    with pytest.raises(ValueError, match="leave it out"):
        scheduler.set_timesteps(3, sigmas=[2.0, 1.0])
    scheduler.set_timesteps(4)
    for begin_index in (1, -2, 8):
        with pytest.raises(ValueError, match="even position"):
            scheduler.set_begin_index(begin_index)
    with pytest.raises(ValueError, match="an integer"):
        scheduler.step(noise_of(), 3, noise_of())
    with pytest.raises(ValueError, match="not among"):
        scheduler.step(noise_of(), torch.tensor(0.123), noise_of())
    scheduler = EDMHeunScheduler(**CHURN)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="never begun"):
        scheduler.step(noise_of(), scheduler.timesteps[3], noise_of())
