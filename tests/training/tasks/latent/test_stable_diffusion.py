"""A pipeline's parts, as training uses them, against what the pipeline itself does."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.pipelines import latents as latents_of
from brickwork.pipelines import stable_diffusion as sd
from brickwork.pipelines.prompts import encode_captions
from brickwork.training.tasks.latent import encoding
from brickwork.training.tasks.latent.task import LatentTask

KINDS = ("sd1", "sd2", "sdxl")


@pytest.fixture(params=KINDS)
def pipeline(request, fresh):
    return fresh(request.param)


def make_batch(pipeline, height=6, width=10, batch=3):
    """A complete batch of random latents."""
    generator = torch.Generator().manual_seed(1)
    image, noise = (torch.randn(batch, 4, height, width, generator=generator) for _ in range(2))
    texts = encode_captions(pipeline, [f"number {'abc'[i]}" for i in range(batch)])
    time_ids = sd.plain_time_ids(2 * height, 2 * width).expand(batch, 6)
    return {"image": image, "noise": noise, "level": torch.randn(batch, generator=generator), **texts} | (
        {"time_ids": time_ids} if sd.is_xl(pipeline) else {}
    )


def latent_loss(pipeline, parameterization, batch, complete=lambda batch: batch):
    """The losses `(B,)` of a task of the pipeline's UNet."""
    task = SimpleNamespace(parameterization=parameterization, complete=complete, network=pipeline.unet)
    task.noisy = partial(LatentTask.noisy, task)
    step = LatentTask.step(task, batch, 0)
    step.outputs = LatentTask.call(task, pipeline.unet, step)
    return LatentTask.losses(task, step)


def test_parts(pipeline, request):
    kind = request.node.callspec.params["pipeline"]
    assert type(pipeline) is (StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline)
    assert latents_of.pixels_per_latent(pipeline.vae) == pipeline.vae_scale_factor == 2
    assert sd.size_step(pipeline) == (4 if kind == "sdxl" else 8)
    assert sd.is_xl(pipeline) == (kind == "sdxl")


@pytest.mark.parametrize("batch", [1, 3])
def test_loss_is_the_schedulers_own_noise_and_target(pipeline, batch):
    """Against diffusers' `add_noise` and `get_velocity` at the same timesteps."""
    objective = sd.objective_of(pipeline.scheduler)
    content = make_batch(pipeline, batch=batch)
    losses = latent_loss(pipeline, objective, content)
    assert losses.shape == (batch,)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    timestep = objective.noise_levels(content["level"]).long()
    noisy = scheduler.add_noise(content["image"], content["noise"], timestep)
    target = content["noise"]
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(content["image"], content["noise"], timestep)
    output = pipeline.unet(noisy, timestep, **sd.unet_arguments(content)).sample
    expected = (output - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)


def test_min_snr_weighs_the_clean_images_error(pipeline):
    """min(SNR, γ) of the clean image's error is min(SNR, γ) / SNR of epsilon's and / (SNR + 1) of v's."""
    plain, weighted = (sd.objective_of(pipeline.scheduler, gamma) for gamma in (None, 5.0))
    content = make_batch(pipeline)
    a, b = (latent_loss(pipeline, objective, content) for objective in (plain, weighted))
    cumprod = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
    snr = (cumprod / (1 - cumprod))[plain.noise_levels(content["level"]).long()]
    v = pipeline.scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(b / a, snr.clamp(max=5) / (snr + v), rtol=1e-4, atol=1e-6)


def test_schedules_that_are_given_or_rescaled():
    rescaled = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert sd.objective_of(rescaled, 5.0).alphas_cumprod[-1] == pytest.approx(0, abs=1e-6)
    given = DDPMScheduler(4, trained_betas=[0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(sd.objective_of(given).alphas_cumprod, given.alphas_cumprod.double())
    with pytest.raises(ValueError, match="epsilon says nothing"):
        sd.objective_of(DDPMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="'sample'; epsilon, v_prediction can be trained"):
        sd.objective_of(DDPMScheduler(prediction_type="sample"))


def test_latents_are_what_the_pipeline_decodes(pipeline):
    pixels = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, logvar = latents_of.moments(pipeline.vae, pixels)
    assert mean.shape == logvar.shape == (2, 4, 6, 10)
    latents = latents_of.draw(pipeline.vae, mean, logvar, torch.zeros_like(mean))
    expected = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)
    apart = latents_of.draw(pipeline.vae, mean, logvar, torch.ones_like(mean)) - latents
    torch.testing.assert_close(apart, torch.exp(0.5 * logvar) * pipeline.vae.config.scaling_factor)


def test_latents_of_a_vae_with_means(pipeline):
    vae = pipeline.vae
    vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0] * 4)
    latents = torch.randn(1, 4, 3, 5)
    mean = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)
    torch.testing.assert_close(latents_of.scale(vae, latents), (latents - mean) / 2 * vae.config.scaling_factor)


def test_encoding_first_equals_a_complete_batch(pipeline):
    captions = ["a red hat", "sun"]
    complete = encoding.EncodeFirst(pipeline, captions)
    pixels, normal = torch.rand(3, 3, 8, 12) * 2 - 1, torch.randn(3, 4, 4, 6)
    batch = {"pixels": pixels, "posterior": normal, "caption": torch.tensor([1, -1, 0]), "noise": normal}
    found = complete(batch)
    assert set(batch) == {"pixels", "posterior", "caption", "noise"}
    torch.testing.assert_close(
        found["image"], latents_of.draw(pipeline.vae, *latents_of.moments(pipeline.vae, pixels), normal)
    )
    encoded = encode_captions(pipeline, ["sun", "", "a red hat"])
    torch.testing.assert_close(found["prompt_embeds"][0::2], encoded["prompt_embeds"][0::2])
    nothing = torch.zeros(12, 16) if sd.is_xl(pipeline) else encoded["prompt_embeds"][1]
    torch.testing.assert_close(found["prompt_embeds"][1], nothing)
    assert ("pooled_prompt_embeds" in found) == sd.is_xl(pipeline)


def test_paired_loss_of_a_prompted_unet(pipeline):
    prompts = encode_captions(pipeline, ["a", "b", "c"])
    network = sd.PromptedUNet(pipeline.unet, prompts, 2)
    pairs = PairedSet.from_images(torch.randn(4, 4, 6, 10), torch.tensor([0, 1, 2, 0]), num_levels=2)
    objective = sd.objective_of(pipeline.scheduler)
    first = paired_loss(network, pairs, objective)["loss"]
    assert paired_loss(network, pairs, objective, batch_size=3)["loss"] == pytest.approx(first, rel=1e-5)
    network.prompts = encode_captions(pipeline, ["c", "b", "a"])
    assert paired_loss(network, pairs, objective)["loss"] != first


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_frozen_networks_compute_in_half_precision(pipeline, precision):
    encoding.freeze_encoders(pipeline, precision, torch.device("cpu"))
    encoding.freeze_unet(pipeline.unet, precision)
    assert not any(p.requires_grad for p in pipeline.unet.parameters())
    assert pipeline.unet.conv_in.weight.dtype == pipeline.vae.dtype == encoding.HALF[precision]
    assert pipeline.unet.conv_norm_out.weight.dtype == torch.float32
    batch = {"pixels": torch.zeros(1, 3, 8, 8), "posterior": torch.zeros(1, 4, 4, 4), "caption": torch.tensor([0])}
    batch |= {"noise": torch.ones(1, 4, 4, 4), "level": torch.zeros(1), "time_ids": torch.zeros(1, 6)}
    objective = sd.objective_of(pipeline.scheduler)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = latent_loss(pipeline, objective, batch, encoding.EncodeFirst(pipeline, ["sun"]))
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "LegoPipeline"}, "it is no Stable Diffusion"),
        ({"_class_name": "StableDiffusion3Pipeline"}, "it is no Stable Diffusion"),
        (None, "holds no pipeline"),
    ],
)
def test_what_is_no_stable_diffusion_is_refused(tmp_path, change, message):
    import json

    if change is not None:
        (tmp_path / "model_index.json").write_text(json.dumps({"_diffusers_version": "0.30"} | change))
    with pytest.raises(ValueError, match=message):
        sd.load_pipeline(str(tmp_path))


def test_single_files_and_edit_models_are_refused(tmp_path, fresh):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="single file; turn it into a folder once"):
        sd.load_pipeline(str(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match="`model.base` is empty"):
        sd.load_pipeline("")
    pipeline = fresh("sd1")
    pipeline.unet.register_to_config(in_channels=9)
    pipeline.unet.conv_in = torch.nn.Conv2d(9, 4, 3, padding=1)
    pipeline.save_pretrained(tmp_path / "inpaint")
    with pytest.raises(ValueError, match="takes 9 channels"):
        sd.load_pipeline(str(tmp_path / "inpaint"))
