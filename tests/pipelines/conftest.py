"""Tiny networks with random weights, and the authors' tiny networks."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file

from brickwork.gen.conditioning import sincos_position_table
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.original.lego_checkpoints import convert_original_lego
from brickwork.pipelines.lego import LegoPipeline
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler

PARITY = Path(__file__).parents[1] / "data" / "lego_parity"
NAMES = {0: "Smileys & Emotion", 1: "Animals & Nature", 2: "Food & Drink"}


@pytest.fixture
def make_model():
    """`make_model(**config)`: a network of three bricks whose windows grow, with weights that are all random."""

    def make(seed=0, **config):
        stack = {
            "sample_size": 8,
            "num_classes": 3,
            "id2label": NAMES,
            "window_sizes": (2, 4, 8),
            "patch_sizes": (1, 2, 1),
            "num_layers": (1, 1, 1),
            "hidden_sizes": 16,
            "num_attention_heads": 2,
        }
        config = stack | config
        if config["num_classes"] is None:
            config["id2label"] = None
        model = LegoTransformer2DModel(**config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = 0.2 if parameter.ndim == 1 else 0.7 / parameter[0].numel() ** 0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
        return model

    return make


@pytest.fixture
def make_pipe(make_model):
    """`make_pipe(scheduler=…, vae=…, brick_schedule=…, **config)`: a silent pipeline round `make_model`."""

    def make(scheduler=None, vae=None, brick_schedule=None, **config):
        pipe = LegoPipeline(make_model(**config), scheduler or EDMHeunScheduler(), vae, brick_schedule)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def vae():
    """A decoder with a scale factor of 2 and random weights."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.4,
    ).eval()


@pytest.fixture
def authors_model():
    """`authors_model("pg")`: one of the networks that the parity arrays were made with."""

    def load(stack):
        path = PARITY / f"{stack}_weights.safetensors"
        with safe_open(path, "pt") as file:
            figures = {name: json.loads(value) for name, value in file.metadata().items()}
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        for brick, (window, patch) in enumerate(zip(figures["windows"], figures["patches"])):
            table = sincos_position_table(figures["width"], window // patch, window // patch)
            tensors[f"model.model.{brick}.pos_embed"] = table[None]
        config, state_dict = convert_original_lego(tensors, num_attention_heads=figures["heads"])
        model = LegoTransformer2DModel(**config).eval()
        model.load_state_dict(state_dict)
        return model

    return load


@pytest.fixture
def authors_run():
    """`authors_run("u_heun")`: arrays of a run of the authors' sampler, and its arguments."""

    def load(case):
        path = PARITY / f"sampler_{case}.safetensors"
        with safe_open(path, "pt") as file:
            arguments = {name: json.loads(value) for name, value in file.metadata().items()}
        return load_file(path), arguments

    return load
