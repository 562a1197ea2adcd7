"""Boxes and phrases as arguments of a pipeline."""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from brickwork import LayoutAdapter, LayoutPipeline, load_adapter

BOXES, PHRASES = [[(0.0, 0.0, 0.5, 1.0)], [(0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0)]], [["a"], ["b", "a"]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return CLIPTokenizer(
        vocab={token: n for n, token in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"])},
        merges=[],
        model_max_length=6,
    )


@pytest.fixture
def pipe(tokenizer):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, eos_token_id=1, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    pipe = LayoutPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8),
        text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt=("a", "b"), **given):
    generators = [torch.Generator().manual_seed(n) for n in range(len(prompt) * given.get("num_images_per_prompt", 1))]
    return pipe(list(prompt), num_inference_steps=2, output_type="np", generator=generators, **given).images


def test_boxes_and_phrases(pipe, tmp_path):
    with pytest.raises(ValueError, match="has no layout adapter"):
        draw(pipe, boxes=BOXES, phrases=PHRASES)
    plain = draw(pipe)
    adapter = LayoutAdapter.create(pipe, dim=8, num_heads=2)
    assert (draw(pipe, boxes=BOXES, phrases=PHRASES) == plain).all()  # untrained
    for site in adapter.parts.sites.values():
        nn.init.normal_(site.gate, std=2.0)
    drawn = draw(pipe, boxes=BOXES, phrases=PHRASES)
    assert (drawn != plain).any(axis=(1, 2, 3)).all()
    assert (draw(pipe, boxes=BOXES, phrases=PHRASES, layout_scale=0.0) == plain).all()
    assert (draw(pipe, boxes=BOXES, phrases=PHRASES, layout_share=0.0) == plain).all()
    twice = draw(pipe, boxes=BOXES, phrases=PHRASES, num_images_per_prompt=2)
    assert abs(twice[0] - drawn[0]).max() < 1e-4  # the first of each prompt is that prompt's layout
    second = draw(pipe, prompt=["b"], boxes=BOXES[1], phrases=PHRASES[1], num_images_per_prompt=4)
    assert abs(twice[2:] - second[2:]).max() < 1e-4
    with pytest.raises(ValueError, match="belong together"):
        draw(pipe, phrases=PHRASES, num_images_per_prompt=2)

    pipe.save_pretrained(tmp_path / "model")
    again = LayoutPipeline.from_pretrained(tmp_path / "model")
    parts = DiffusionPipeline.from_pretrained(tmp_path / "model")
    load_adapter(parts, tmp_path / "model" / "layout")
    for other in (again, parts):
        other.set_progress_bar_config(disable=True)
        assert type(other) is LayoutPipeline
        assert abs(draw(other, boxes=BOXES, phrases=PHRASES) - drawn).max() < 1e-4
    adapter.unload()
    assert (draw(pipe) == plain).all()
    load_adapter(pipe, tmp_path / "model" / "layout")
    assert abs(draw(pipe, boxes=BOXES, phrases=PHRASES) - drawn).max() < 1e-4


def test_the_call_names_what_it_takes():
    """What reads signatures, such as `brickwork sweep`, finds Stable Diffusion's arguments."""
    parameters = inspect.signature(LayoutPipeline.__call__).parameters
    assert list(parameters)[:4] == ["self", "prompt", "boxes", "phrases"]
    assert {"height", "width", "num_inference_steps", "generator", "callback_on_step_end"} <= set(parameters)
    assert "arguments" not in parameters


def test_without_an_adapter_a_folder_has_the_components_alone(pipe, tmp_path):
    plain = draw(pipe)
    pipe.save_pretrained(tmp_path / "plain")
    again = LayoutPipeline.from_pretrained(tmp_path / "plain")
    again.set_progress_bar_config(disable=True)
    assert not (tmp_path / "plain" / "layout").exists() and (draw(again) == plain).all()
    adapter = LayoutAdapter.create(pipe, dim=8, num_heads=2)
    pipe.save_pretrained(tmp_path / "model")
    adapter.unload()
    with pytest.raises(ValueError, match="holds an adapter, and the UNet has none; give a new folder"):
        pipe.save_pretrained(tmp_path / "model")
