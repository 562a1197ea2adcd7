"""Drawing images with `LegoPipeline`."""

from functools import partial

import accelerate
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch.utils.flop_counter import FlopCounterMode

from brickwork.gen.subnets import bricks_of
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule

SCHEDULERS = {
    "heun": EDMHeunScheduler,
    "heun-churn": lambda: EDMHeunScheduler(s_churn=10.0, s_noise=1.01),
    "euler": EDMEulerScheduler,
    "dpm": EDMDPMSolverMultistepScheduler,
    "dpm-sde": lambda: EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(pipe, labels=0, **arguments):
    arguments = {"num_inference_steps": 3, "generator": seeded(), "output_type": "latent"} | arguments
    return pipe(labels, **arguments).images


def operations(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.fixture
def calls(monkeypatch):
    """`calls(pipe)`: a list that grows by (inputs, timestep, labels, bricks) at each evaluation of its network."""

    def watch(pipe):
        seen, forward = [], pipe.transformer.forward

        def record(sample, timestep, class_labels=None, subnet=None, **rest):
            seen.append((sample, timestep, class_labels, bricks_of(subnet, pipe.transformer.num_bricks)))
            return forward(sample, timestep, class_labels=class_labels, subnet=subnet, **rest)

        monkeypatch.setattr(pipe.transformer, "forward", record)
        return seen

    return watch


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("scheduler", ["heun", "euler"])
def test_skipping_saves_the_operations_of_the_bricks_left_out(make_pipe, scheduler, guidance_scale):
    pipe = make_pipe(SCHEDULERS[scheduler]())
    rows = 2 if guidance_scale == 1 else 4
    sample, labels = torch.zeros(rows, 3, 8, 8), torch.zeros(rows, dtype=torch.long)
    exits = [(0, 1), (0, 1, 2)]
    cost = {bricks: operations(partial(pipe.transformer, sample, 0.0, labels, bricks=bricks)) for bricks in exits}
    last = pipe.transformer.bricks[2]
    tokens = rows * 64  # patches of one pixel
    least = 2 * tokens * sum(p.numel() for p in last.blocks[0].mlp.parameters() if p.ndim == 2)
    assert cost[0, 1, 2] - cost[0, 1] > least

    def spent(schedule):
        return operations(
            lambda: draw(pipe, [0, 1], num_inference_steps=6, guidance_scale=guidance_scale, brick_schedule=schedule)
        )

    full_evaluations, fast_evaluations = (6, 5) if scheduler == "heun" else (3, 3)
    evaluations = full_evaluations + fast_evaluations
    assert spent(BrickSchedule.full(pipe.transformer)) == evaluations * cost[0, 1, 2]
    fast = spent(BrickSchedule.fast(pipe.transformer))
    assert fast == full_evaluations * cost[0, 1, 2] + fast_evaluations * cost[0, 1]


def test_guidance_is_one_call_of_twice_the_batch(make_pipe, calls):
    pipe = make_pipe()
    seen = calls(pipe)
    draw(pipe, [2, 0], guidance_scale=3.0)
    assert len(seen) == 5
    for sample, timestep, labels, _ in seen:
        assert sample.shape == (4, 3, 8, 8) and timestep.shape == (4,)
        assert torch.equal(sample[:2], sample[2:])
        assert labels.tolist() == [2, 0, 3, 3]


@pytest.mark.parametrize("arguments", [{"guidance_scale": 1.0}, {"labels": [None, None], "guidance_scale": 3.0}])
def test_guidance_that_changes_nothing_costs_nothing(make_pipe, calls, arguments):
    pipe = make_pipe()
    seen = calls(pipe)
    draw(pipe, **({"labels": [1, 2]} | arguments))
    assert {len(sample) for sample, *_ in seen} == {2}


def test_guidance_moves_away_from_no_class(make_pipe):
    pipe = make_pipe(EDMEulerScheduler())
    latents = torch.randn(1, 3, 8, 8, generator=seeded())
    images = {
        scale: draw(pipe, label, num_inference_steps=1, guidance_scale=scale, latents=latents)
        for label, scale in [(1, 1.0), (1, 0.0), (1, 2.5)]
    }
    nothing = draw(pipe, None, num_inference_steps=1, latents=latents)
    torch.testing.assert_close(images[0.0], nothing, rtol=1e-5, atol=1e-5)
    # One Euler step is linear in the network's output.
    expected = nothing + 2.5 * (images[1.0] - nothing)
    assert (images[1.0] - nothing).abs().max() > 0.05
    torch.testing.assert_close(images[2.5], expected, rtol=1e-4, atol=1e-4)


def test_guidance_moves_away_from_a_subnet_without_the_class(make_pipe, calls):
    pipe = make_pipe(EDMEulerScheduler(), trained_subsets="any")
    latents = torch.randn(2, 3, 8, 8, generator=seeded())

    def one_step(labels, scale=1.0, **arguments):  # linear in the network's output
        return draw(pipe, labels, num_inference_steps=1, guidance_scale=scale, latents=latents, **arguments)

    only = SubnetSchedule.from_rules(pipe.transformer, {"0": (None, None)})
    weak, strong = one_step([None, None], brick_schedule=only), one_step([1, 2])
    assert (strong - weak).abs().max() > 0.05
    seen = calls(pipe)
    found = one_step([1, 2], 2.5, guidance_subnet="0")
    torch.testing.assert_close(found, weak + 2.5 * (strong - weak), rtol=1e-4, atol=1e-4)
    assert [(labels.tolist(), bricks) for _, _, labels, bricks in seen] == [([1, 2], (0, 1, 2)), ([3, 3], (0,))]
    seen.clear()
    one_step([1, 2], guidance_subnet="0")
    assert len(seen) == 1  # guidance of 1 changes nothing


def test_guidance_by_the_subnet_that_runs_is_one_call(make_pipe, calls):
    pipe = make_pipe(trained_subsets="any")
    expected = draw(pipe, [2, 0], guidance_scale=3.0)
    seen = calls(pipe)
    assert torch.equal(draw(pipe, [2, 0], guidance_scale=3.0, guidance_subnet="full"), expected)
    assert {(len(sample), bricks) for sample, *_, bricks in seen} == {(4, (0, 1, 2))}
    seen.clear()
    schedule = BrickSchedule.from_rules(pipe.transformer, {1: (1.0, None), 0: (None, 1.0)})
    draw(pipe, [2, 0], guidance_scale=3.0, guidance_subnet="0+2", brick_schedule=schedule)
    assert {(len(sample), bricks) for sample, *_, bricks in seen} == {(4, (0, 2)), (2, (1, 2)), (2, (0, 2))}


def test_guidance_by_a_subnet_costs_the_subnet_and_its_patches_fit(make_pipe):
    pipe = make_pipe(EDMEulerScheduler(), trained_subsets="any")
    options = {"guidance_scale": 2.0, "guidance_subnet": "1"}
    first, second = (SubnetSchedule.from_rules(pipe.transformer, {name: (None, None)}) for name in ("0", "1"))
    alone, full = operations(lambda: draw(pipe, 0, brick_schedule=second)), operations(lambda: draw(pipe, 0))
    assert operations(lambda: draw(pipe, 0, **options)) == alone + full
    assert draw(pipe, 0, height=1, width=1, brick_schedule=first).shape == (1, 3, 1, 1)
    with pytest.raises(ValueError, match="`height` is 1; give .* from 2 up"):  # patches of brick 1
        draw(pipe, 0, height=1, width=1, brick_schedule=first, **options)


def test_guidance_by_a_subnet_needs_no_classes(make_pipe):
    pipe = make_pipe(EDMEulerScheduler(), num_classes=None, trained_subsets="any")
    plain = draw(pipe, None)
    assert not torch.allclose(draw(pipe, None, guidance_scale=2.0, guidance_subnet="0"), plain)
    with pytest.raises(ValueError, match="unconditional.*`guidance_subnet`"):
        draw(pipe, None, guidance_scale=2.0)
    with pytest.raises(ValueError, match="`guidance_subnet` is '0,1'"):
        draw(pipe, None, guidance_scale=2.0, guidance_subnet="0,1")


def test_guidance_by_another_network(make_pipe, make_model):
    pipe, other = make_pipe(EDMEulerScheduler()), make_model(seed=1)
    options = {"guidance_scale": 2.0, "networks": {"early": other}}
    guided = draw(pipe, [0, 1], guidance_subnet="early", **options)
    assert not torch.allclose(guided, draw(pipe, [0, 1], **options))
    same = draw(pipe, [0, 1], guidance_subnet="early", guidance_scale=2.0, networks={"early": pipe.transformer})
    torch.testing.assert_close(same, draw(pipe, [0, 1], **options))
    with pytest.raises(ValueError, match="`guidance_subnet` is 'early'"):
        draw(pipe, [0, 1], guidance_scale=2.0, guidance_subnet="early")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_and_reports_one_set_of_bricks_a_step(make_pipe, calls, scheduler):
    pipe = make_pipe(SCHEDULERS[scheduler]())
    seen = calls(pipe)
    output = pipe(
        [0, 1],
        num_inference_steps=4,
        brick_schedule=BrickSchedule.fast(pipe.transformer),
        generator=seeded(),
        output_type="pt",
    )
    assert output.images.shape == (2, 3, 8, 8) and torch.isfinite(output.images).all()
    assert output.bricks == [(0, 1, 2)] * 2 + [(0, 1)] * 2
    ran = [bricks for *_, bricks in seen]
    heun = scheduler.startswith("heun")
    assert ran == ([(0, 1, 2)] * 4 + [(0, 1)] * 3 if heun else output.bricks)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_image_does_not_depend_on_its_batch(make_pipe, scheduler):
    pipe = make_pipe(SCHEDULERS[scheduler]())
    # Noise is equal bit for bit; products of matrices round differently at another batch size.
    generators = [seeded(seed) for seed in (5, 6, 7)]
    together = draw(pipe, [0, 1, 2], generator=generators)
    alone = draw(pipe, [2], generator=[seeded(7)])
    torch.testing.assert_close(alone, together[2:], rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_noise_is_drawn_as_by_pipelines_of_diffusers(make_pipe, calls):
    """One generator draws for the whole batch; of a list, each draws what it would draw alone."""
    pipe = make_pipe()
    seen = calls(pipe)
    draw(pipe, [0, 0, 0], num_inference_steps=1, generator=seeded())
    draw(pipe, [0, 0, 0], num_inference_steps=1, generator=[seeded(seed) for seed in (5, 6, 7)])
    draw(pipe, [0], num_inference_steps=1, generator=seeded(7))
    batch, listed, alone = (sample for sample, *_ in seen)
    expected = randn_tensor(batch.shape, seeded())
    torch.testing.assert_close(batch / batch.std(), expected / expected.std(), rtol=1e-5, atol=1e-5)
    assert torch.equal(listed[2:], alone) and not torch.equal(listed[0], listed[1])


def test_seeds_without_a_generator_come_from_torch(make_pipe):
    pipe = make_pipe()
    torch.manual_seed(3)
    first = draw(pipe, generator=None)
    second = draw(pipe, generator=None)
    torch.manual_seed(3)
    assert torch.equal(first, draw(pipe, generator=None))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("height", "width"), [(8, 24), (5, 7), (17, 3), (2, 2)])
def test_any_size(make_pipe, height, width):
    pipe = make_pipe()
    images = pipe([0, None, 2], height=height, width=width, num_inference_steps=2, generator=seeded()).images
    assert [image.size for image in images] == [(width, height)] * 3


def test_the_size_is_that_of_training_or_of_the_latents(make_pipe):
    pipe = make_pipe(sample_size=6)
    assert draw(pipe).shape == (1, 3, 6, 6)
    assert draw(pipe, width=9).shape == (1, 3, 6, 9)
    assert draw(pipe, latents=torch.randn(1, 3, 5, 11)).shape == (1, 3, 5, 11)


def test_output_types(make_pipe):
    pipe = make_pipe()
    latent = draw(pipe, [0, 1], width=12)
    assert latent.dtype == torch.float32 and latent.shape == (2, 3, 8, 12)
    expected = (latent / 2 + 0.5).clamp(0, 1)
    pt = draw(pipe, [0, 1], width=12, output_type="pt")
    torch.testing.assert_close(pt, expected)
    array = draw(pipe, [0, 1], width=12, output_type="np")
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, expected.permute(0, 2, 3, 1), atol=1e-6)
    pil = draw(pipe, [0, 1], width=12, output_type="pil")
    assert all(isinstance(image, PIL.Image.Image) and image.size == (12, 8) for image in pil)
    np.testing.assert_allclose(np.asarray(pil[1]) / 255, array[1], atol=0.5 / 255 + 1e-6)
    images, bricks = pipe(0, num_inference_steps=2, return_dict=False)
    assert len(images) == 1 and bricks == [(0, 1, 2)] * 2


def test_grey_pictures(make_pipe):
    images = draw(make_pipe(in_channels=1), output_type="pil")
    assert images[0].mode == "L"


def test_labels_by_name_number_and_list(make_pipe, calls):
    pipe = make_pipe()
    seen = calls(pipe)
    for labels in ["animals & nature", 1, ["Animals & Nature"], torch.tensor([1]), np.array([1])]:
        draw(pipe, labels, num_inference_steps=1)
    assert [call[2].tolist() for call in seen] == [[1]] * 5
    seen.clear()
    draw(pipe, [None, "no class", 3, 0], num_inference_steps=1)
    assert seen[0][2].tolist() == [3, 3, 3, 0]
    seen.clear()
    draw(pipe, [2, 0], num_images_per_label=2, num_inference_steps=1)
    assert seen[0][2].tolist() == [2, 2, 0, 0]


def test_unconditional_networks(make_pipe, calls):
    pipe = make_pipe(num_classes=None)
    seen = calls(pipe)
    assert draw(pipe, None).shape[0] == 1
    assert draw(pipe, [None] * 3).shape[0] == 3
    assert draw(pipe, None, num_images_per_label=2).shape[0] == 2
    assert all(call[2] is None for call in seen)
    with pytest.raises(ValueError, match="unconditional"):
        draw(pipe, [0])
    with pytest.raises(ValueError, match="unconditional"):
        draw(pipe, None, guidance_scale=2.0)


@pytest.mark.parametrize("scheduler", ["heun", "euler"])
def test_callbacks_see_every_step_and_can_change_it(make_pipe, scheduler):
    pipe = make_pipe(SCHEDULERS[scheduler]())
    steps = []

    def watch(pipeline, step, timestep, tensors):
        assert pipeline is pipe and pipeline.num_timesteps == 4 and pipeline.guidance_scale == 1.0
        steps.append((step, timestep.item(), tensors["latents"].shape))

    draw(pipe, [0, 1], num_inference_steps=4, callback_on_step_end=watch)
    assert [step for step, *_ in steps] == [0, 1, 2, 3]
    assert [timestep for _, timestep, _ in steps] == sorted((timestep for _, timestep, _ in steps), reverse=True)

    def zero_the_last(pipeline, step, timestep, tensors):
        assert tensors["latents"].dtype == torch.float64
        return {"latents": tensors["latents"].float() * (step < 3)}

    assert draw(pipe, [0, 1], num_inference_steps=4, callback_on_step_end=zero_the_last).abs().max() == 0


def test_callbacks_can_stop_and_can_end_guidance(make_pipe, calls):
    pipe = make_pipe()
    seen = calls(pipe)

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1

    output = pipe(0, num_inference_steps=5, callback_on_step_end=stop)
    assert len(seen) == 4 and output.bricks == [(0, 1, 2)] * 2
    seen.clear()

    def end_guidance(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 1.0

    draw(pipe, num_inference_steps=3, guidance_scale=2.0, callback_on_step_end=end_guidance)
    assert [len(call[0]) for call in seen] == [2, 2, 1, 1, 1]


def test_progress_is_counted_in_steps(make_pipe, monkeypatch):
    pipe, bars = make_pipe(), []
    make_bar = pipe.progress_bar
    monkeypatch.setattr(pipe, "progress_bar", lambda **options: bars.append(make_bar(**options)) or bars[-1])
    pipe.set_progress_bar_config(disable=False, leave=False)
    draw(pipe, num_inference_steps=4)
    assert [(bar.total, bar.n) for bar in bars] == [(4, 4)]


def test_the_pipelines_own_schedule_is_used_unless_a_call_names_another(make_pipe):
    pipe = make_pipe()
    fast, full = BrickSchedule.fast(pipe.transformer), BrickSchedule.full(pipe.transformer)
    assert pipe.brick_schedule is None
    pipe.brick_schedule = fast
    assert pipe.brick_schedule == fast
    assert pipe(0, num_inference_steps=2).bricks == [(0, 1, 2), (0, 1)]
    assert pipe(0, num_inference_steps=2, brick_schedule=full).bricks == [(0, 1, 2)] * 2
    pipe.brick_schedule = None
    assert pipe(0, num_inference_steps=2).bricks == [(0, 1, 2)] * 2


def test_subsets_with_gaps(make_pipe, calls):
    pipe = make_pipe(trained_subsets="any")
    seen = calls(pipe)
    schedule = BrickSchedule.from_rules(pipe.transformer, {0: (1.0, None), 1: (None, 1.0)})
    draw(pipe, num_inference_steps=5, guidance_scale=2.0, brick_schedule=schedule)
    assert {bricks for *_, bricks in seen} == {(0, 2), (1, 2)}


@pytest.mark.parametrize("scheduler", ["heun", "euler", "dpm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_samplers_state(make_pipe, calls, dtype, scheduler):
    pipe = make_pipe(SCHEDULERS[scheduler]())
    reference = draw(pipe, [0, 1], num_inference_steps=8)
    pipe.to(dtype)
    seen = calls(pipe)
    states = []
    images = draw(
        pipe,
        [0, 1],
        num_inference_steps=8,
        callback_on_step_end=lambda pipeline, step, timestep, tensors: states.append(tensors["latents"].dtype),
    )
    assert {call[0].dtype for call in seen} == {dtype}
    assert set(states) == {torch.float64}
    assert images.dtype == torch.float32
    assert (images - reference).norm() / reference.norm() < 0.1


def test_layerwise_casting(make_pipe):
    pipe = make_pipe()
    reference = draw(pipe, [0, 1], guidance_scale=1.5)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    images = draw(pipe, [0, 1], guidance_scale=1.5)
    assert not torch.equal(images, reference)
    assert (images - reference).norm() / reference.norm() < 0.1


def test_compiled_network(make_pipe):
    pipe = make_pipe()
    arguments = {"labels": [0, 1], "brick_schedule": BrickSchedule.fast(pipe.transformer)}
    reference = draw(pipe, **arguments)
    pipe.transformer = torch.compile(pipe.transformer)
    # The network's own tests compile it; here the wrapper that compiling puts round it is what could go wrong.
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(draw(pipe, **arguments), reference)


@pytest.mark.parametrize("kind", ["model", "sequential", "group"])
def test_offloading(make_pipe, vae, kind, monkeypatch):
    pipe = make_pipe(in_channels=4, vae=vae)
    reference = draw(pipe, [0, 1], guidance_scale=1.5, output_type="pt")
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif kind == "sequential":
        for model in (pipe.transformer, pipe.vae):  # `enable_sequential_cpu_offload`, which takes no plain "cpu"
            accelerate.cpu_offload(model, torch.device("cpu"))
        assert next(pipe.transformer.parameters()).device.type == "meta"
    else:
        pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    freed, free = [], pipe.maybe_free_model_hooks
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(free()))
    for _ in range(2):
        assert torch.equal(draw(pipe, [0, 1], guidance_scale=1.5, output_type="pt"), reference)
    assert len(freed) == 2
    if kind == "model":
        assert all(isinstance(model._hf_hook, accelerate.hooks.CpuOffload) for model in (pipe.transformer, pipe.vae))


def test_latent_models(make_pipe, vae):
    pipe = make_pipe(in_channels=4, vae=vae)
    assert pipe.vae_scale_factor == 2
    latents = draw(pipe, [0, 1], height=16, width=10)
    assert latents.shape == (2, 4, 8, 5)
    images = draw(pipe, [0, 1], height=16, width=10, output_type="pt")
    with torch.no_grad():
        expected = vae.decode(latents / 0.4).sample
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert draw(pipe, output_type="pil")[0].size == (16, 16)
    with pytest.raises(ValueError, match="`width` is 9.*multiple of the VAE's 2"):
        draw(pipe, width=9)
    with pytest.raises(ValueError, match="4 latent channels and `transformer` 3"):
        draw(make_pipe(vae=vae))


def test_latents_are_shifted_as_the_vae_says(make_pipe, vae):
    pipe = make_pipe(in_channels=4, vae=vae)
    latents = draw(pipe)
    with torch.no_grad():
        vae.register_to_config(shift_factor=0.3)
        expected = vae.decode(latents / 0.4 + 0.3).sample
        torch.testing.assert_close(draw(pipe, output_type="pt"), (expected / 2 + 0.5).clamp(0, 1))
        vae.register_to_config(shift_factor=None, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5])
        mean, std = (torch.tensor(vae.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
        expected = vae.decode(latents / 0.4 * std + mean).sample
        torch.testing.assert_close(draw(pipe, output_type="pt"), (expected / 2 + 0.5).clamp(0, 1))


def test_half_precision_vae_is_decoded_in_single_precision(make_pipe, vae):
    pipe = make_pipe(in_channels=4, vae=vae)
    pipe.vae.to(torch.float16)
    seen = []
    pipe.vae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    assert torch.isfinite(draw(pipe, output_type="pt")).all()
    assert seen == [torch.float32] and pipe.vae.dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": 4}, "allowed are 0 to 2, and 3"),
        ({"labels": -1}, "allowed are 0 to 2"),
        ({"labels": True}, "allowed are 0 to 2"),
        ({"labels": 1.5}, "numbers, names"),
        ({"labels": []}, "empty"),
        ({"labels": "smilies"}, "did you mean 'Smileys & Emotion'"),
        ({"labels": "food"}, "did you mean 'Food & Drink'"),
        ({"labels": "xyzzy"}, "of the 3 classes are 'Smileys & Emotion'"),
        ({"height": 1}, "`height` is 1; give a whole number of pixels from 2"),
        ({"width": 1}, "`width` is 1"),
        ({"height": 8.0}, "`height` is 8.0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0"),
        ({"num_images_per_label": 0}, "`num_images_per_label` is 0"),
        ({"output_type": "jpeg"}, "choose one of pil, np, pt, latent"),
        ({"generator": [torch.Generator()] * 2}, "2 entries for 1 images"),
        ({"latents": torch.zeros(2, 3, 8, 8)}, r"\(2, 3, 8, 8\); this call needs \(1, 3, 8, 8\)"),
        ({"latents": torch.zeros(1, 3, 8, 8), "height": 9}, r"needs \(1, 3, 9, 8\)"),
        ({"latents": torch.zeros(8)}, "batch, channels, height, width"),
        ({"brick_schedule": "fast"}, "`brick_schedule` is 'fast'"),
        ({"brick_schedule": {}}, "`brick_schedule` is {}"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"\['noise'\]; allowed are \['latents'\]"),
    ],
)
def test_refuses_bad_arguments(make_pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(make_pipe(), **arguments)


def test_refuses_what_does_not_fit_together(make_model, make_pipe):
    pipe = make_pipe()
    other = BrickSchedule.full(make_model(window_sizes=(8, 4, 2), patch_sizes=(1, 2, 1)))
    with pytest.raises(ValueError, match="build one for this model"):
        draw(pipe, brick_schedule=other)
    with pytest.raises(ValueError, match="build one for this model"):
        pipe.brick_schedule = other
    gaps = BrickSchedule.from_rules(make_model(trained_subsets="any"), {0: (1.0, None)})
    with pytest.raises(ValueError, match="brick dropout"):
        draw(pipe, brick_schedule=gaps)
    with pytest.raises(ValueError, match="DDIMScheduler, which is not of the EDM family"):
        draw(make_pipe(DDIMScheduler()))
    with pytest.raises(ValueError, match="2 channels are no pictures"):
        draw(make_pipe(in_channels=2), output_type="pil")


def test_names_that_several_classes_share_need_a_number(make_pipe):
    pipe = make_pipe(id2label={"0": "crane", "1": "maillot", "2": "Crane"})
    draw(pipe, ["crane", "Crane", "MAILLOT"], num_inference_steps=1)
    with pytest.raises(ValueError, match=r"classes \[0, 2\]; give a number"):
        draw(pipe, "CRANE")
    with pytest.raises(ValueError, match="no names for its classes"):
        draw(make_pipe(id2label=None), "crane")
