"""What every skeleton and every family of presets computed when it was last looked at, number for number.

`python tests/gen/test_golden.py` writes the arrays anew: only where a change of what networks compute, of their names,
or of how they start is meant. With `--missing` it adds those of new networks and presets, and leaves the others alone.
"""

import hashlib
import json
import re
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel

from brickwork.gen.networks import NETWORKS, load_network_class
from brickwork.gen.networks.gan import MaxViTGenerator2DModel, ResidualDiscriminator
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.presets import PRESETS

DATA = Path(__file__).parents[1] / "data" / "golden"
EVERY = 7  # of the flattened output one number in so many is kept

LEGO = {"num_layers": (1, 1, 1), "hidden_sizes": 32, "num_attention_heads": 4, "num_classes": 5}
TEXT = {"num_classes": 5, "cross_attention_dim": 12}
TRANSFORMER = TEXT | {"num_layers": 2, "hidden_size": 32, "attention_head_dim": 8}
UNET = TEXT | {"block_out_channels": (16, 24, 32), "layers_per_block": (1, 2, 1), "attention_head_dim": 8}
UNET |= {"time_embed_dim": 32, "sample_size": 32}
BRICK = {"window_sizes": [8], "patch_sizes": [2], "num_layers": [1], "hidden_sizes": 16, "num_attention_heads": 2}
GENERATOR = {"sample_size": 32, "latent_dim": 16, "block_out_channels": (32, 32, 16), "layers_per_stage": 1}
GENERATOR |= {"attention_head_dim": 8}


def wrapped_unet():
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    network = UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), down_block_types=down, up_block_types=up, norm_num_groups=4,
        layers_per_block=1, num_class_embeds=6, attention_head_dim=8,
    )  # fmt: skip
    return LegoTransformer2DModel.from_denoiser(network, DDPMScheduler(), num_classes=5, **BRICK)


def wrapped_dit():
    network = DiTTransformer2DModel(
        sample_size=16, in_channels=3, out_channels=6, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_embeds_ada_norm=5, patch_size=4,
    )  # fmt: skip
    return LegoTransformer2DModel.from_denoiser(network, DDPMScheduler(prediction_type="v_prediction"), **BRICK)


def unet_of(preset, **overrides):
    return lambda: BlockUNet2DModel.from_preset(preset, **UNET | overrides)


def transformer_of(preset, **overrides):
    return lambda: BlockTransformer2DModel.from_preset(preset, in_channels=3, **TRANSFORMER | overrides)


def smallest_of(name):
    network = load_network_class(name)
    return network(**network.smallest)


# name: (what makes the network, height, width)
CASES = {
    "lego-s-pg-64": (lambda: LegoTransformer2DModel.from_preset("lego-s-pg-64", **LEGO), 21, 34),
    "lego-s-pr-64": (lambda: LegoTransformer2DModel.from_preset("lego-s-pr-64", **LEGO), 35, 17),
    "lego-s-u-32": (
        lambda: LegoTransformer2DModel.from_preset("lego-s-u-32", **LEGO | {"num_layers": (1,) * 5}),
        19,
        41,
    ),
    "wrapped unet": (wrapped_unet, 18, 26),
    "wrapped dit": (wrapped_dit, 20, 20),
    "dit-s-2": (transformer_of("dit-s-2"), 19, 26),
    "dit-s-4": (transformer_of("dit-s-4", freq_shift=1), 33, 18),
    "d-emo-s-2": (transformer_of("d-emo-s-2"), 19, 26),
    "mixed transformer": (transformer_of("dit-s-2", block_types="maxvit,resnet", window_size=5), 15, 22),
    "u-emo-s": (unet_of("u-emo-s"), 31, 37),
    "maxvit-s": (unet_of("maxvit-s"), 31, 37),
    "resnet-s": (unet_of("resnet-s", time_cond_proj_dim=6), 15, 22),
    "mixed unet": (unet_of("resnet-s", block_types="resnet,i2rmb,dit", window_size=4), 15, 22),
    "generator": (lambda: MaxViTGenerator2DModel(**GENERATOR), 32, 32),
    "discriminator": (lambda: ResidualDiscriminator(32, 3, (16, 24, 32)), 32, 32),
}
# Every registered network at its smallest: a new one needs no line here, only its arrays (`--missing`).
CASES |= {name: (partial(smallest_of, name), 16, 16) for name in NETWORKS}


def numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers in [-1, 1) that depend on the name and the shape alone: NumPy's old generator never changes."""
    values = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    return torch.from_numpy(np.asarray(values, np.float32))


@torch.no_grad()
def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Replace every number of a network but its fixed tables by one of about unit gain."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in model.state_dict().items():
        drawn = numbers(name, tuple(tensor.shape))
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.5 * drawn)
        elif name.endswith("running_mean"):
            tensor.copy_(0.2 * drawn)
        elif name in trained and tensor.ndim > 1:
            tensor.copy_(drawn * (3 / tensor[0].numel()) ** 0.5)
        elif name in trained:  # the weights of norms lie around one
            tensor.copy_(0.2 * drawn + name.endswith("weight"))
    return model.eval()


@torch.no_grad()
def output_of(model: torch.nn.Module, height: int, width: int) -> torch.Tensor:
    """What the network makes of time, class and, where it reads one, text."""
    if isinstance(model, MaxViTGenerator2DModel):
        return model(numbers("latents", (2, model.config.latent_dim))).sample
    if isinstance(model, ResidualDiscriminator):
        return model(4 * numbers("images", (30, 3, height, width)))
    call = {"timestep": torch.tensor([0.25, 0.75]), "class_labels": torch.tensor([1, 4])}
    if "lego" not in type(model).__name__.lower():
        call["timestep"] = torch.tensor([12.0, 700.0])
    if model.config.get("cross_attention_dim"):
        call["encoder_hidden_states"] = numbers("text", (2, 7, model.config.cross_attention_dim))
    if model.config.get("time_cond_proj_dim"):
        call["timestep_cond"] = numbers("guidance", (2, model.config.time_cond_proj_dim))
    return model(2 * numbers("sample", tuple(model.example_inputs(2, height, width)["sample"].shape)), **call).sample


def compute(name: str) -> np.ndarray:
    make, height, width = CASES[name]
    return output_of(fill(make()), height, width).flatten()[::EVERY].numpy()


def start_of(model: torch.nn.Module) -> dict[str, list[str]]:
    """Which parameters start as one number all over (`"0"`, `"1"`), by name, with numbers as `*`."""
    found: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        low, high = parameter.min().item(), parameter.max().item()
        kind = "drawn" if low != high or parameter.numel() == 1 else f"{low:g}"
        found.setdefault(re.sub(r"\d+", "*", name), set()).add(kind)
    start: dict[str, list[str]] = {}
    for name, kinds in sorted(found.items()):
        if kinds != {"drawn"}:
            start.setdefault(" or ".join(sorted(kinds)), []).append(name)
    return start


def keys_of(model: torch.nn.Module) -> dict[str, int | str]:
    """How many parameters, and a digest of the names and shapes of the state dict."""
    keys = json.dumps(sorted((name, list(tensor.shape)) for name, tensor in model.state_dict().items()))
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": count, "keys": hashlib.sha256(keys.encode()).hexdigest()[:16]}


def all_presets() -> dict[str, type]:
    return {preset: load_network_class(network) for network, names in PRESETS.items() for preset in names}


def build_preset(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return all_presets()[name].from_preset(name, num_classes=10)


@pytest.mark.parametrize("name", CASES)
def test_outputs(name):
    with np.load(DATA / "outputs.npz") as kept:
        expected = kept[name]
    assert 0.02 < expected.std() < 20  # neither silent nor so loud that rounding would show
    np.testing.assert_allclose(compute(name), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_start(name):
    torch.manual_seed(0)
    assert start_of(CASES[name][0]()) == json.loads((DATA / "start.json").read_text())[name]


def test_every_preset_has_its_parameters_and_names():
    kept = json.loads((DATA / "presets.json").read_text())
    assert set(kept) == set(all_presets())
    assert {name: keys_of(build_preset(name)) for name in kept} == kept


def write(missing_alone: bool) -> None:
    with np.load(DATA / "outputs.npz") as kept:
        outputs = dict(kept) if missing_alone else {}
    starts = json.loads((DATA / "start.json").read_text()) if missing_alone else {}
    presets = json.loads((DATA / "presets.json").read_text()) if missing_alone else {}
    np.savez(DATA / "outputs.npz", **{name: compute(name) for name in CASES if name not in outputs}, **outputs)
    torch.manual_seed(0)
    files = {
        "start.json": {name: start_of(make()) for name, (make, _, _) in CASES.items() if name not in starts} | starts,
        "presets.json": {name: keys_of(build_preset(name)) for name in all_presets() if name not in presets} | presets,
    }
    for name, content in files.items():
        (DATA / name).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    write("--missing" in sys.argv)
