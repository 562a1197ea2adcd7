"""Two Stable Diffusion networks share a picture's steps: which runs when, the same pictures at both ends, undone."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)  # fmt: skip
from transformers import CLIPTextConfig, CLIPTextModel

import brickwork
from brickwork import SubnetSchedule
from brickwork.pipelines.schedules import step_sigmas
from brickwork.pipelines.trajectory import stitch_trajectory


def make_unet(seed, width, **changes):
    torch.manual_seed(seed)
    config = {
        "sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
        "cross_attention_dim": 8, "block_out_channels": (width, width),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**config | changes).eval()


def make_pipeline(unet, scheduler=None):
    torch.manual_seed(9)
    text = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=0, eos_token_id=8, pad_token_id=8,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8), text_encoder=CLIPTextModel(text),
        tokenizer=None, unet=unet, scheduler=scheduler or DDIMScheduler(clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, steps=4):
    torch.manual_seed(4)
    prompts = {"prompt_embeds": torch.randn(1, 3, 8), "negative_prompt_embeds": torch.randn(1, 3, 8)}
    generator = torch.Generator().manual_seed(0)
    return pipe(**prompts, num_inference_steps=steps, generator=generator, output_type="latent").images


@pytest.fixture(scope="module")
def pipes():
    return make_pipeline(make_unet(0, 8)), make_pipeline(make_unet(1, 16))


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_each_network_runs_at_its_noise_levels(pipes, scheduler):
    small, large = pipes
    for pipe in pipes:
        pipe.scheduler = scheduler.from_config(DDIMScheduler(clip_sample=False).config)
    expected = [draw(pipe) for pipe in pipes]
    sigmas = step_sigmas(large.scheduler)
    middle = (sigmas[1] * sigmas[2]) ** 0.5
    with stitch_trajectory(large, {"small": small}, {"small": (middle, None), "full": (0, middle)}) as stitched:
        both = draw(large)
        assert stitched.ran == ["small", "small", "full", "full"]
        stitched.schedule = SubnetSchedule(("small",))
        assert torch.equal(draw(large), expected[0])
        stitched.schedule = SubnetSchedule(("full",))
        assert torch.equal(draw(large), expected[1])
        with pytest.raises(ValueError, match="`schedule` is None; give a SubnetSchedule of small, full"):
            stitched.schedule = None
    assert not any(torch.equal(both, one) for one in expected)
    assert torch.equal(draw(large), expected[1]) and "forward" not in vars(large.unet)


def test_what_does_not_fit_is_refused(pipes):
    small, large = pipes
    for pipe in pipes:
        pipe.scheduler = DDIMScheduler(clip_sample=False)
    rules = {"small": (1.0, None), "full": (0, 1.0)}
    v = make_pipeline(small.unet, DDIMScheduler(clip_sample=False, prediction_type="v_prediction"))
    for others, message in (
        ({"small": v}, r"`others\['small'\].scheduler` has prediction_type v_prediction"),
        ({"small": make_unet(2, 8, cross_attention_dim=4)}, "cross_attention_dim 4, and the pipeline's own 8"),
        ({"small": make_unet(2, 8, in_channels=9)}, "in_channels 9"),
        ({"small": small.scheduler}, "a DDIMScheduler; give a network, or a pipeline with one"),
        ({"full": small}, "other names than 'full'"),
        ({"smal": small}, "`subnet` is 'small'; did you mean 'smal'"),
    ):
        with pytest.raises(ValueError, match=message):
            stitch_trajectory(large, others, rules)
    assert brickwork.stitch_trajectory is stitch_trajectory
