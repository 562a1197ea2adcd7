"""Sampling from networks of blocks with diffusers' schedulers."""

import diffusers
import pytest
import torch

from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.parameterization import OBJECTIVES
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler

CLASSES = {0: "Cat", 1: "Dog", 2: "Bird"}


def make_network(kind="transformer", **overrides):
    torch.manual_seed(0)
    common = {"in_channels": 3, "num_classes": 3, "id2label": CLASSES, "sample_size": 8, "attention_head_dim": 8}
    if kind == "transformer":
        model = BlockTransformer2DModel(**(common | {"hidden_size": 16, "num_layers": 1} | overrides))
    else:
        widths = {"block_types": "i2rmb", "block_out_channels": (16, 16), "layers_per_block": 1, "window_size": 4}
        model = BlockUNet2DModel(**(common | widths | overrides))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_pipeline(kind="transformer", scheduler=None, **overrides):
    pipe = ClassToImagePipeline(make_network(kind, **overrides), scheduler or diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Oracle(BlockTransformer2DModel):
    """A network that knows: all images are one grey, so the best estimate is known in closed form."""

    grey, objective = 0.5, None

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        kind = type(self.objective).__name__
        level = timestep.view(-1, 1, 1, 1).float()
        image = torch.full_like(sample, self.grey)
        if kind == "EDMObjective":
            sigma = (4 * level).exp()
            noise = (sample * (sigma**2 + 0.25).sqrt() - image) / sigma
            return (self.objective.target(image, noise, sigma.flatten()),)
        if kind == "FlowObjective":
            share = level / 1000
            noise = (sample - (1 - share) * image) / share
            return (self.objective.target(image, noise, share.flatten()),)
        signal, scale = self.objective._signal_and_noise(timestep, sample)
        return (self.objective.target(image, (sample - signal * image) / scale, timestep),)


SCHEDULERS = {
    "epsilon": ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"),
    "v": ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"),
    "edm": ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"),
    "flow": ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
}


@pytest.mark.parametrize(("name", "scheduler"), [(name, entry) for name, many in SCHEDULERS.items() for entry in many])
def test_training_and_sampling_agree(name, scheduler):
    """Whatever the objective and the sampler, a network that is right draws the image it knows."""
    network = Oracle(sample_size=8, in_channels=3, hidden_size=8, num_layers=1, attention_head_dim=8)
    network.objective = OBJECTIVES[name]()
    fitting = network.objective.scheduler()
    pipe = ClassToImagePipeline(network, getattr(diffusers, scheduler).from_config(fitting.config))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_inference_steps=20, output_type="latent", generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(images, torch.full((1, 3, 8, 8), 0.5), rtol=0, atol=0.02)


def test_from_objective_and_our_heun():
    for name, kind in OBJECTIVES.items():
        pipe = ClassToImagePipeline.from_objective(make_network(), kind())
        pipe.set_progress_bar_config(disable=True)
        assert pipe(0, num_inference_steps=2, output_type="pt").images.isfinite().all(), name
    assert (
        make_pipeline(scheduler=EDMHeunScheduler())(0, num_inference_steps=3, output_type="pt").images.isfinite().all()
    )


@pytest.mark.parametrize("kind", ["transformer", "unet"])
def test_sizes_labels_and_names(kind):
    pipe = make_pipeline(kind)
    images = pipe(["cat", 2, None], height=10, width=13, num_inference_steps=2).images
    assert [image.size for image in images] == [(13, 10)] * 3
    by_number = pipe([0], num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(3)).images
    by_name = pipe("CAT", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(3)).images
    assert torch.equal(by_number, by_name)
    assert len(pipe([0, 1], num_inference_steps=1, num_images_per_label=3).images) == 6


@pytest.mark.parametrize("scheduler", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
def test_an_image_does_not_depend_on_its_batch(scheduler):
    pipe = make_pipeline(scheduler=scheduler())

    def draw(labels):
        generators = [torch.Generator().manual_seed(5 + index) for index in range(len(labels))]
        return pipe(labels, num_inference_steps=3, output_type="pt", generator=generators).images

    torch.testing.assert_close(draw([0, 1, 2])[:1], draw([0]), rtol=1e-4, atol=1e-5)


def test_guidance_is_the_written_formula():
    pipe, latents = make_pipeline(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = pipe.scheduler
    scheduler.set_timesteps(1)
    timestep = scheduler.timesteps[0]
    with torch.no_grad():
        conditional = pipe.transformer(latents, timestep, torch.tensor([0, 1])).sample
        unconditional = pipe.transformer(latents, timestep).sample
        estimate = unconditional + 3.0 * (conditional - unconditional)
        expected = scheduler.step(estimate, timestep, latents).prev_sample
    images = pipe([0, 1], num_inference_steps=1, guidance_scale=3.0, latents=latents, output_type="latent").images
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_a_learned_variance_reaches_schedulers_that_want_it():
    pipe = make_pipeline(out_channels=6, scheduler=diffusers.DDPMScheduler(variance_type="learned_range"))

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe(0, num_inference_steps=3, guidance_scale=2.0, output_type="pt", generator=generator).images

    learned = draw()
    pipe.scheduler = diffusers.DDPMScheduler(variance_type="fixed_small")
    assert not torch.allclose(learned, draw())
    with torch.no_grad():
        pipe.transformer.proj_out.bias[3 * 4 :] += 1.0  # the variance's half alone
    fixed = draw()
    pipe.scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    assert not torch.allclose(learned, draw())
    pipe.scheduler = diffusers.DDPMScheduler(variance_type="fixed_small")
    assert torch.equal(fixed, draw())
    assert learned.isfinite().all()


def test_latent_models_and_saving(tmp_path):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = ClassToImagePipeline(make_network(in_channels=4, out_channels=8), diffusers.DDIMScheduler(), vae)
    pipe.set_progress_bar_config(disable=True)

    def draw(pipe):
        return pipe(1, height=20, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(1))

    expected = draw(pipe).images
    assert expected.shape == (1, 20, 16, 3)
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    again = BlockTransformer2DModel.from_pretrained(tmp_path / "transformer")
    drawn = torch.from_numpy(draw(ClassToImagePipeline(again, pipe.scheduler, vae)).images)
    torch.testing.assert_close(drawn, torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="multiple of the VAE's 2"):
        pipe(1, height=21)


def test_callbacks_change_latents_and_interrupt():
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(step)
        pipe._interrupt = step == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    pipe = make_pipeline()
    images = pipe(0, num_inference_steps=5, output_type="latent", callback_on_step_end=callback).images
    assert seen == [0, 1] and images.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"class_labels": 7}, "allowed are 0 to 2"),
        ({"class_labels": "Dgo"}, "Dog"),
        ({"height": 1}, "from 2 up"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_images_per_label": 0}, "num_images_per_label"),
        ({"output_type": "jpg"}, "output_type"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        make_pipeline()(**arguments)


def test_a_size_below_a_window_is_refused_before_anything_is_drawn():
    pipe, generator = make_pipeline("unet"), torch.Generator().manual_seed(0)
    state = generator.get_state()
    with pytest.raises(ValueError, match=r"sample has height and width \(6, 9\), where stage 2 of 2 is 3 × 5, below"):
        pipe(0, height=6, width=9, generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_bad_combinations():
    with pytest.raises(ValueError, match="guidance_scale"):
        make_pipeline(num_classes=None, id2label=None)(guidance_scale=2.0)
    with pytest.raises(ValueError, match="no variance"):
        make_pipeline(scheduler=diffusers.DDPMScheduler(variance_type="learned_range"))(0)
    with pytest.raises(ValueError, match="cross_attention_dim"):
        make_pipeline("unet", cross_attention_dim=4)(0)
