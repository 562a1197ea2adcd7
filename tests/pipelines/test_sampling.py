"""The sampling loop itself: hooks, subnets, several networks, further axes, what is saved beside the networks."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, HeunDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config

from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.lego import LegoPipeline
from brickwork.pipelines.sampling import Hook, SamplingPipeline, checked_generator, first_noise
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_network(seed=0, **config):
    torch.manual_seed(seed)
    common = {"in_channels": 3, "num_classes": 3, "sample_size": 8, "attention_head_dim": 8, "hidden_size": 16}
    model = BlockTransformer2DModel(**(common | {"num_layers": 1} | config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_pipe(network=None, scheduler=None, **further):
    pipe = ClassToImagePipeline(network or make_network(), scheduler or DDIMScheduler(), **further)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, labels=0, **arguments):
    return pipe(
        labels, **{"num_inference_steps": 3, "generator": seeded(), "output_type": "latent"} | arguments
    ).images


class Recorder(Hook):
    """Notes what it meets, and changes nothing."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def before(self, latents, evaluation):
        self.log.append((self.name, "before", evaluation.number, len(latents)))
        return latents, {}

    def at(self, network, sample, timestep, **arguments):
        self.log.append((self.name, "at", sorted(arguments), len(sample)))
        return network(sample, timestep, **arguments)

    def after(self, output, evaluation):
        self.log.append((self.name, "after", evaluation.number, len(output)))
        return output

    def after_step(self, latents, evaluation):
        self.log.append((self.name, "after_step", evaluation.number, len(latents)))
        return latents


def test_hooks_stand_round_every_call_of_the_network():
    pipe, log = make_pipe(), []
    reference = draw(pipe, guidance_scale=2.0)
    pipe.hooks = [Recorder("a", log), Recorder("b", log)]
    assert torch.equal(draw(pipe, guidance_scale=2.0), reference)
    first = [(name, where, count) for name, where, _, count in log[:8]]
    assert first == [
        ("a", "before", 1), ("b", "before", 1), ("b", "at", 2), ("a", "at", 2),
        ("b", "after", 1), ("a", "after", 1), ("a", "after_step", 1), ("b", "after_step", 1),
    ]  # fmt: skip
    assert log[2][2] == ["class_labels"]
    assert [number for name, where, number, _ in log if (name, where) == ("a", "before")] == [0, 1, 2]


def test_hooks_change_what_they_return():
    class Double(Hook):
        def before(self, latents, evaluation):
            return 2 * latents, {"class_labels": None}  # conditions have the last word

        def at(self, network, sample, timestep, **arguments):
            return 0 * network(sample, timestep, **arguments) + sample

        def after(self, output, evaluation):
            return output / 2

        def after_step(self, latents, evaluation):
            return latents + 1

    pipe, latents = make_pipe(), torch.randn(1, 3, 8, 8)
    pipe.hooks = [Double()]
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1)
    expected = scheduler.step(latents, scheduler.timesteps[0], latents).prev_sample + 1
    torch.testing.assert_close(draw(pipe, num_inference_steps=1, latents=latents), expected)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, HeunDiscreteScheduler, EDMHeunScheduler])
def test_several_networks_share_the_noise_levels(scheduler):
    """Each runs where the schedule says; at every level it is the schedule's network that the sampler hears."""
    small, large, log = make_network(1), make_network(2, num_layers=2), []
    for name, network in (("small", small), ("large", large)):
        network.register_forward_hook(lambda *_, name=name: log.append(name))
    pipe = make_pipe(large, scheduler())
    schedule = SubnetSchedule.from_rules({"small": small, "full": large}, {"small": (2.0, None), "full": (0, 2.0)})
    mixed = draw(pipe, subnet_schedule=schedule, networks={"small": small}, num_inference_steps=6)
    pipe.scheduler.set_timesteps(6)
    order = pipe.scheduler.order
    steps = [{"small": "small", "full": "large"}[name] for name in schedule.resolve(pipe.scheduler)]
    assert set(steps) == {"small", "large"}
    assert log == [steps[number // order] for number in range(len(pipe.scheduler.timesteps))]
    assert not torch.equal(mixed, draw(pipe, num_inference_steps=6))
    alone = draw(make_pipe(small, scheduler()), num_inference_steps=6)
    all_small = SubnetSchedule.from_levels({"small": small}, {1.0: "small"})
    found = draw(pipe, subnet_schedule=all_small, networks={"small": small}, num_inference_steps=6)
    assert torch.equal(found, alone)


def test_networks_that_do_not_fit_are_refused():
    pipe, small = make_pipe(), make_network(num_classes=None)
    with pytest.raises(ValueError, match=r"`networks\['small'\]` has num_classes None, and the pipeline's own"):
        draw(pipe, networks={"small": small})
    schedule = SubnetSchedule(("small",))
    with pytest.raises(ValueError, match="`subnet` is 'small'; choose one of full"):
        draw(pipe, subnet_schedule=schedule)
    with pytest.raises(ValueError, match="`subnet_schedule` is 'fast'; give a SubnetSchedule, or None"):
        draw(pipe, subnet_schedule="fast")
    with pytest.raises(ValueError, match="`subnet` is 'small'"):
        pipe.subnet_schedule = schedule


def test_a_stack_of_bricks_follows_either_kind_of_schedule(make_pipe):
    pipe = make_pipe()
    bricks = BrickSchedule.from_rules(pipe.transformer, {2: (1.0, None)})
    subnets = SubnetSchedule.from_rules(pipe.transformer, {"0+1+2": (1.0, None), "0+1": (0, 1.0)})
    found = [
        pipe(0, num_inference_steps=5, generator=seeded(), output_type="latent", brick_schedule=schedule)
        for schedule in (bricks, subnets)
    ]
    assert found[0].bricks == found[1].bricks and len(set(found[0].bricks)) == 2
    assert torch.equal(found[0].images, found[1].images)
    plain = make_pipe().transformer
    same = ClassToImagePipeline(plain, EDMHeunScheduler(), subnet_schedule=subnets)
    same.set_progress_bar_config(disable=True)
    assert (draw(same, num_inference_steps=5) - found[0].images).abs().max() < 1e-4


def test_what_is_recommended_is_saved_and_used(make_pipe, tmp_path):
    pipe = make_pipe()
    steps = SimpleNamespace(num_inference_steps=4)
    saved = LegoPipeline(pipe.transformer, pipe.scheduler, guidance_scale=1.5, num_inference_steps=4)
    saved.save_pretrained(tmp_path)
    again = LegoPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    found = again(0, generator=seeded(), output_type="latent")
    expected = pipe(0, generator=seeded(), output_type="latent", guidance_scale=1.5, **vars(steps))
    assert len(found.bricks) == 4 and torch.equal(found.images, expected.images)
    assert len(again(0, num_inference_steps=2, guidance_scale=1.0).bricks) == 2 and again.guidance_scale == 1.0
    assert len(pipe(0).bricks) == 18 and pipe.guidance_scale == 1.0  # as ever


def test_components_keep_the_schedule(make_pipe):
    pipe = make_pipe()
    pipe.brick_schedule = BrickSchedule.fast(pipe.transformer)
    again = LegoPipeline(**pipe.components)
    assert again.brick_schedule == pipe.brick_schedule and again.transformer is pipe.transformer
    assert LegoPipeline.from_pipe(pipe).brick_schedule == pipe.brick_schedule


def test_num_images_per_prompt_is_another_name(make_pipe):
    assert len(draw(make_pipe(), [0, 1], num_images_per_prompt=3)) == 6
    with pytest.raises(ValueError, match="`num_images_per_label` is 0"):
        draw(make_pipe(), num_images_per_prompt=0)


def test_every_argument_is_documented():
    for pipeline, steps in ((LegoPipeline, 18), (ClassToImagePipeline, 50)):
        text = pipeline.__call__.__doc__
        taken = [name for name in inspect.signature(pipeline.__call__).parameters if name != "self"]
        assert [name for name in taken if f"            {name}:" not in text] == []
        assert "SHARED" not in text and f"else {steps}." in text and "{" + "unit}" not in text


class FrameMeans(ModelMixin, ConfigMixin):
    """A network of frames `(B, C, F, H, W)` whose estimate is their mean over time."""

    @register_to_config
    def __init__(self, in_channels: int = 3, sample_size: int = 8, num_classes: int | None = None, id2label=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return (self.weight * sample.mean(2, keepdim=True).expand_as(sample),)


class FramePipeline(SamplingPipeline):
    """A whole pipeline for a further axis."""

    _axes = ("batch", "channels", "frames", "height", "width")

    def __init__(self, transformer, scheduler, vae=None):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)

    @torch.no_grad()
    def __call__(self, frames=4, height=None, width=None, generator=None, latents=None, output_type="pil"):
        self._check_arguments(3, 1.0, output_type, (), frames=frames)
        size = self._sample_size(height, width, latents, 1)
        generators = checked_generator(generator, 2)
        noise = first_noise(latents, (2, self.transformer.config.in_channels, frames, *size), generators, self.device)
        subnets = self._set_steps(3, None)
        conditions = self._class_conditions([None] * 2, self.device)
        return self._decode(self._denoise(noise, conditions, generators, subnets)[0], output_type)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EDMHeunScheduler])
def test_a_frame_axis_passes_through(scheduler):
    pipe = FramePipeline(FrameMeans(), scheduler())
    pipe.set_progress_bar_config(disable=True)
    assert pipe(generator=seeded(), output_type="latent").shape == (2, 3, 4, 8, 8)
    assert pipe(height=6, width=10, generator=seeded(), output_type="pt").shape == (2, 4, 3, 6, 10)
    assert pipe(generator=seeded(), output_type="np").shape == (2, 4, 8, 8, 3)
    films = pipe(generator=seeded())
    assert [len(film) for film in films] == [4, 4] and films[0][0].size == (8, 8)
    with pytest.raises(ValueError, match=r"give a tensor \(batch, channels, frames, height, width\)"):
        pipe(latents=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"needs \(2, 3, 4, 8, 8\)"):
        pipe(latents=torch.zeros(2, 3, 5, 8, 8))


def test_a_vae_of_pictures_decodes_frame_by_frame():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, latent_channels=4, scaling_factor=0.4,
    ).eval()  # fmt: skip
    pipe = FramePipeline(FrameMeans(4), DDIMScheduler(), vae)
    pipe.set_progress_bar_config(disable=True)
    films = pipe(generator=seeded(), output_type="np")
    assert films.shape == (2, 4, 16, 16, 3)
    latents = pipe(generator=seeded(), output_type="latent")
    with torch.no_grad():
        frame = vae.decode(latents[1:, :, 2] / 0.4).sample.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(films[1, 2], (frame[0] / 2 + 0.5).clip(0, 1), atol=1e-5)
    pixels = torch.rand(2, 3, 4, 16, 16) * 2 - 1
    torch.testing.assert_close(pipe.encode(pixels)[:, :, 3], pipe.encode(pixels[:, :, 3]), atol=1e-5, rtol=1e-4)


def test_a_series_folded_into_an_image_passes_through():
    """A network of images that draws series `(B, C, L)`: the fold is a hook at the network's call."""

    class Fold(Hook):
        def at(self, network, sample, timestep, **arguments):
            return network(sample.unflatten(-1, (8, 8)), timestep, **arguments).flatten(2)

    class SeriesPipeline(FramePipeline):
        def __call__(self, length, generator=None):
            noise = first_noise(None, (2, 3, length), checked_generator(generator, 2), self.device)
            self._check_arguments(2, 1.0, "latent", ())
            conditions = self._class_conditions([0, 1], self.device)
            with torch.no_grad():
                return self._denoise(noise, conditions, [], self._set_steps(2, None), hooks=[Fold()])[0]

    network, pipe = make_network(), SeriesPipeline(make_network(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    expected = draw(make_pipe(network), [0, 1], num_inference_steps=2)
    torch.testing.assert_close(pipe(64, generator=seeded()), expected.flatten(2))
