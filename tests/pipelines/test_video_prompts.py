"""Clips for a text: until trained, every frame is what Stable Diffusion draws from that frame's noise."""

import string

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from brickwork import BlockUNet2DModel, VideoPipeline, inflate


@pytest.fixture(scope="module")
def stable():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), cross_attention_dim=16, layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=12)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    parts = {"vae": vae.eval(), "text_encoder": CLIPTextModel(text).eval(), "tokenizer": tokenizer}
    pipe = StableDiffusionPipeline(
        **parts, unet=unet.eval(), scheduler=DDIMScheduler(clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clips_of(stable, trained=False, **settings):
    pipe = VideoPipeline.from_stable_diffusion(stable, num_frames=4, fps=6, **settings)
    pipe.set_progress_bar_config(disable=True)
    if trained:
        torch.manual_seed(1)
        for parameter in pipe.transformer.temporal.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return pipe


def draw(pipe, **arguments):
    call = {"prompt": ["a cat", "a dog"], "num_inference_steps": 2, "output_type": "pt"} | arguments
    generator = [torch.Generator().manual_seed(k) for k in range(len(call["prompt"]))]
    return pipe(generator=generator, **call).frames


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_before_training_frames_are_the_image_pipelines(stable, guidance, scheduler):
    stable.scheduler = scheduler.from_config(stable.scheduler.config)
    noise = torch.randn(2, 4, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 2, "guidance_scale": guidance, "output_type": "pt", "height": 16, "width": 24}
    clips = clips_of(stable)(prompt=["a cat", "a dog"], negative_prompt="fog", latents=noise, **call).frames
    prompts = ["a cat"] * 3 + ["a dog"] * 3
    flat = noise.transpose(1, 2).flatten(0, 1)
    expected = stable(prompts, negative_prompt=["fog"] * 6, latents=flat, **call).images
    assert clips.shape == (2, 3, 3, 16, 24)
    difference = (clips.flatten(0, 1) - expected).norm() / expected.norm()
    assert difference < 1e-5


def test_texts_guide_and_time_mixes(stable):
    pipe = clips_of(stable, trained=True)
    assert pipe.config.guidance_scale == 7.5
    drawn = draw(pipe)
    assert drawn.shape == (2, 4, 3, 16, 16)
    assert not torch.allclose(draw(pipe, prompt=["a cat", "a bird"])[1], drawn[1])
    assert not torch.allclose(draw(pipe, negative_prompt=["fog", "rain"]), drawn)
    assert not torch.allclose(draw(pipe, guidance_scale=1.0), drawn)
    alone = draw(clips_of(stable, trained=True), prompt=["a cat"])
    torch.testing.assert_close(alone[0], drawn[0], rtol=1e-4, atol=1e-4)
    each = pipe(prompt="a cat", num_images_per_prompt=2, num_inference_steps=1, output_type="latent").frames
    assert each.shape == (2, 4, 4, 8, 8)


def test_a_first_frame_and_long_clips(stable):
    pipe, picture = clips_of(stable, trained=True), Image.effect_noise((16, 16), 60).convert("RGB")
    latents = draw(pipe, first_frames=picture, output_type="latent")
    assert torch.equal(latents[:, :, :1], pipe._known(picture, 4, (8, 8)).expand(2, -1, -1, -1, -1))
    assert not torch.allclose(latents[:, :, 1:], draw(pipe, output_type="latent")[:, :, 1:])
    long, parts = draw(pipe, num_frames=9, window=9), draw(pipe, num_frames=9)
    assert long.shape == parts.shape == (2, 9, 3, 16, 16) and not torch.allclose(long, parts)
    untrained = clips_of(stable)
    expected = draw(untrained, num_frames=9, window=9)
    torch.testing.assert_close(draw(untrained, num_frames=9), expected, rtol=1e-4, atol=1e-4)


def test_saved_and_loaded_with_its_text_encoder(stable, tmp_path):
    pipe = clips_of(stable, trained=True)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is VideoPipeline and torch.equal(draw(again), draw(pipe))
    assert set(again.components) >= {"tokenizer", "text_encoder", "vae", "transformer"}


def test_what_does_not_go_is_told(stable):
    pipe = clips_of(stable)
    image = BlockUNet2DModel(sample_size=8, num_classes=2, block_out_channels=(8,), layers_per_block=1)
    classes = VideoPipeline(inflate(image), pipe.scheduler)
    texts = {"tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder}
    for call, message in [
        (lambda: pipe(), "`prompt` has 0 texts"),
        (lambda: pipe("a cat"), "`class_labels` were given to a network that reads texts"),
        (lambda: pipe(prompt=["a", "b"], negative_prompt=["a"] * 3), "`negative_prompt` 3"),
        (lambda: pipe(prompt=3), "`prompt` is 3"),
        (lambda: pipe(prompt=["a", 3]), "`prompt` has an? int"),
        (lambda: classes(prompt="a cat"), "a network that reads no text"),
        (lambda: VideoPipeline(pipe.transformer, pipe.scheduler, pipe.vae)(), "give the pipeline the `tokenizer`"),
        (lambda: VideoPipeline(classes.transformer, pipe.scheduler, **texts)(prompt="a"), "reads no text; leave it"),
        (lambda: VideoPipeline.from_stable_diffusion(classes), "`pipe` is a VideoPipeline; give a StableDiff"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.warns(UserWarning, match="has 32 tokens; 12 of them are read"):
        pipe(prompt="a" * 30, num_inference_steps=1, output_type="latent", num_frames=1)
