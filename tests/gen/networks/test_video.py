"""Pseudo-3D video networks: exactly the image network at the start, and the paper's units after it."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from peft import LoraConfig

from brickwork import VideoDenoiser, inflate
from brickwork.gen.networks import load_network_class
from brickwork.gen.networks.video import KINDS, TemporalAttention, TemporalUnit, frame_encoding, residual_blocks

AUTHORS = Path(__file__).parents[2] / "data" / "video" / "units.json"
SMALL = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def randomise(model, seed=0, std=0.15):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def image_model(kind):
    if kind == "UNet2DModel":
        down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
        made = UNet2DModel(**SMALL, down_block_types=down, up_block_types=up, num_class_embeds=6, attention_head_dim=8)
    elif kind == "UNet2DConditionModel":
        down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
        made = UNet2DConditionModel(
            **SMALL, down_block_types=down, up_block_types=up, in_channels=3, out_channels=3, cross_attention_dim=8,
            attention_head_dim=4,
        )  # fmt: skip
    else:
        network = load_network_class(kind)
        made = network(**network.smallest)
    return randomise(made)


def call_of(model, batch=2, frames=5, height=16, width=12, seed=1):
    torch.manual_seed(seed)
    call = {"sample": torch.randn(batch, 3, frames, height, width), "timestep": torch.tensor([0.3, 0.9])[:batch]}
    if model.config.num_classes is not None:
        call["class_labels"] = torch.arange(batch)
    if model.config.cross_attention_dim is not None:
        call["encoder_hidden_states"] = torch.randn(batch, 7, model.config.cross_attention_dim)
    return call


def folded(call):
    frames = call["sample"].shape[2]
    rest = {name: value.repeat_interleave(frames, dim=0) for name, value in call.items() if name != "sample"}
    return {"sample": call["sample"].transpose(1, 2).flatten(0, 1)} | rest


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_an_inflated_network_begins_as_the_image_network_bit_for_bit(kind):
    image = image_model(kind)
    video = inflate(image)
    assert [unit.kind for unit in video.temporal.layers][:4] == list("ABCA")[: len(video.temporal.layers)]
    for frames in (1, 5):
        call = call_of(video, frames=frames)
        expected = image(**folded(call)).sample
        output = video(**call).sample
        assert output.shape == (2, 3, frames, 16, 12)
        assert torch.equal(output.transpose(1, 2).flatten(0, 1), expected)
    randomise(video.temporal)
    assert not torch.allclose(video(**call).sample.transpose(1, 2).flatten(0, 1), expected)
    assert torch.equal(video.image(**folded(call)).sample, expected)  # alone it is what it was


def test_the_units_follow_one_another_as_in_the_authors_network():
    """Their 3-D bottlenecks are A, B and C in turn, which the same pattern makes of as many blocks."""
    units = json.loads(AUTHORS.read_text())["units"]
    network = load_network_class("BlockTransformer2DModel")
    image = network(**network.smallest | {"num_layers": len(units), "block_types": "dit"})
    assert "".join(unit.kind for unit in inflate(image).temporal.layers) == "".join(units.values())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["A", "B", "C"])
def test_a_unit_is_the_equation_of_the_paper(kind):
    """A: x + T(S(x)), B: x + S(x) + T(x), C: x + S(x) + T(S(x)), with T written out frame by frame; A's begins at the
    identity."""
    torch.manual_seed(0)
    unit = randomise(TemporalUnit(kind, 6, 6))
    x, s = torch.randn(2, 4, 10, 6), torch.randn(2, 4, 10, 6)  # (clips, frames, pixels, channels)

    def temporal(z):
        z = z if unit.norm is None else torch.nn.functional.silu(unit.norm(z))
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        behind = torch.cat([z[:, 1:], torch.zeros_like(z[:, :1])], dim=1)
        taps = unit.conv.weight[..., 0, 0].unbind(2)
        return sum(part @ tap.T for part, tap in zip((before, z, behind), taps)) + unit.conv.bias

    expected = {"A": x + (s + temporal(s)), "B": x + s + temporal(x), "C": x + s + temporal(s)}[kind]
    added = unit(x.flatten(0, 1), (x + s).flatten(0, 1), frames=4).permute(0, 2, 3, 1)
    torch.testing.assert_close(x + s + added, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["BlockTransformer2DModel", "LegoTransformer2DModel", "UNet2DModel"])
def test_attention_over_time_begins_as_the_image_network_and_sees_all_frames(kind):
    image = image_model(kind)
    video, units = inflate(image, "T"), inflate(image, "A")
    call = call_of(video, frames=9)
    expected = image(**folded(call)).sample
    assert torch.equal(video(**call).sample.transpose(1, 2).flatten(0, 1), expected)
    sizes = [sum(p.numel() for p in one.temporal.parameters()) for one in (video, units)]
    assert 0.7 < sizes[0] / sizes[1] < 1.3
    randomise(video.temporal)
    before = video(**call).sample
    call["sample"] = call["sample"].clone()
    call["sample"][0, :, 8] += 1
    changed = (video(**call).sample - before).abs().amax(dim=(1, 3, 4)) > 0
    assert changed.tolist() == [[True] * 9, [False] * 9]


@torch.no_grad()
def test_attention_over_time_written_out():
    torch.manual_seed(0)
    unit = randomise(TemporalAttention(8), std=0.4)
    output = torch.randn(2 * 3, 5, 8)  # two clips of three frames, five pixels
    clips = unit.norm(output).view(2, 3, 5, 8) + frame_encoding(3, 8)[:, None]
    query, key, value = unit.qkv(clips).view(2, 3, 5, 3, unit.heads, -1).unbind(3)
    weight = (torch.einsum("bfphd,bgphd->bphfg", query, key) / query.shape[-1] ** 0.5).softmax(-1)
    expected = unit.proj(torch.einsum("bphfg,bgphd->bfphd", weight, value).flatten(-2)).permute(0, 3, 1, 2)
    torch.testing.assert_close(unit(output, output, 3), expected, rtol=1e-5, atol=1e-5)
    assert frame_encoding(4, 7).shape == (4, 7) and frame_encoding(2, 4)[1, 0] == torch.tensor(1.0).sin()


@torch.no_grad()
def test_time_goes_no_further_than_the_units_reach():
    network = load_network_class("BlockTransformer2DModel")
    video = randomise(inflate(network(**network.smallest)))
    call = call_of(video, frames=9)
    expected = video(**call).sample
    call["sample"] = call["sample"].clone()
    call["sample"][:, :, 4] += 1
    changed = (video(**call).sample - expected).abs().amax(dim=(0, 1, 3, 4)) > 0
    reach = len(video.temporal.layers)
    assert changed.tolist() == [abs(frame - 4) <= reach for frame in range(9)]
    alone = torch.cat([video(**{k: v[i : i + 1] for k, v in call.items()}).sample for i in range(2)])
    torch.testing.assert_close(alone, video(**call).sample, rtol=1e-4, atol=1e-5)  # clips do not see each other


@torch.no_grad()
def test_bricks_work_frame_by_frame_and_so_do_noise_levels():
    image = image_model("LegoTransformer2DModel")
    video = inflate(image, "CA")
    call = call_of(video)
    assert video.subnet_names() == image.subnet_names()
    for name in video.subnets(16, 16):
        output = video(**call, subnet=name).sample.transpose(1, 2).flatten(0, 1)
        assert torch.equal(output, image(**folded(call), subnet=name).sample)
    levels = torch.rand(2, 5)
    output = video(**call | {"timestep": levels}).sample.transpose(1, 2).flatten(0, 1)
    assert torch.equal(output, image(**folded(call) | {"timestep": levels.flatten()}).sample)


@pytest.mark.parametrize("kind", ["BlockUNet2DModel", "LegoTransformer2DModel", "UNet2DModel"])
def test_saved_with_the_image_network_inside_and_copied(kind, tmp_path):
    video = randomise(inflate(image_model(kind)))
    call = call_of(video)
    with torch.no_grad():
        expected = video(**call).sample
    video.save_pretrained(tmp_path)
    assert type(video.image).from_pretrained(tmp_path / "image").config.sample_size == video.config.sample_size
    for again in (VideoDenoiser.from_pretrained(tmp_path), deepcopy(video)):
        with torch.no_grad():
            assert torch.equal(again(**call).sample, expected)
    again.temporal.layers[0].conv.bias.data += 1  # the copy's own units are the ones that run
    with torch.no_grad():
        assert not torch.equal(again(**call).sample, expected) and torch.equal(video(**call).sample, expected)


def test_the_temporal_parts_learn_alone():
    video = inflate(image_model("BlockUNet2DModel"))
    video.image.requires_grad_(False)
    video.train()(**call_of(video)).sample.square().mean().backward()
    for name, parameter in video.named_parameters():
        learns = name.startswith("temporal.") and "norm" not in name  # behind zeros a norm learns from step two
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == learns or "norm" in name, name


@torch.no_grad()
def test_adapters_go_onto_the_temporal_parts():
    video = randomise(inflate(image_model("BlockTransformer2DModel")))
    call = call_of(video)
    expected = video(**call).sample
    video.add_adapter(LoraConfig(r=2, target_modules=["layers.0.conv", "layers.1.conv"], init_lora_weights=False))
    assert not torch.allclose(video(**call).sample, expected)
    video.disable_adapters()
    assert torch.equal(video(**call).sample, expected)


def test_what_cannot_be_inflated_says_so(tmp_path):
    network = load_network_class("BlockUNet2DModel")
    image = network(**network.smallest)
    for pattern in ("ABD", "", None, "abc"):
        with pytest.raises(ValueError, match="`pattern` is"):
            inflate(image, pattern)
    with pytest.raises(ValueError, match="`model` is a Linear, which cannot be inflated"):
        inflate(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="holds no network"):
        inflate(tmp_path)
    assert len(residual_blocks(image)) == len(inflate(image).temporal.layers)
    with pytest.raises(ValueError, match=r"`sample` has shape \(2, 3, 16, 16\).*frames"):
        inflate(image)(torch.randn(2, 3, 16, 16), 0.5)


@torch.no_grad()
def test_one_graph_holds_the_units():
    video = randomise(inflate(image_model("BlockTransformer2DModel")), std=0.1)
    call = call_of(video, frames=3)
    compiled = torch.compile(video, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**call).sample, video(**call).sample, rtol=1e-4, atol=1e-5)
