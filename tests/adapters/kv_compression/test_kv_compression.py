"""Compressed keys and values: the average at first, off bit for bit, saved and loaded, in every network with them."""

import copy
import threading

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from brickwork import BlockTransformer2DModel, BlockUNet2DModel, KVCompression, load_adapter
from brickwork.adapters.kv_compression.layer import Compression
from brickwork.gen.operations import count_operations


def make(kind: str) -> nn.Module:
    """A small network without layers that start as zeros."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    if kind == "unet":
        blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
        network = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
            cross_attention_dim=8, **blocks,
        )  # fmt: skip
    elif kind == "dit":
        network = DiTTransformer2DModel(in_channels=4, num_embeds_ada_norm=5, norm_num_groups=4, **heads)
    elif kind == "sd3":
        network = SD3Transformer2DModel(
            in_channels=4, out_channels=4, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8,
            pos_embed_max_size=16, dual_attention_layers=(0,), **heads,
        )  # fmt: skip
    else:
        options = {"stage_options" if kind == "ours-u" else "layer_options": [{}, {"sr_ratio": 2}]}
        network_class = BlockUNet2DModel if kind == "ours-u" else BlockTransformer2DModel
        network = network_class(**network_class.smallest | {"block_types": "dit,sra"} | options)
    for parameter in network.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


def predict(network: nn.Module, height: int = 12, width: int = 8) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=random)

    t = torch.tensor([3, 4])
    if isinstance(network, UNet2DConditionModel):
        return network(draw(2, 4, height, width), t, draw(2, 3, 8)).sample
    if isinstance(network, DiTTransformer2DModel):  # which draws squares
        return network(draw(2, 4, height, height), t, class_labels=torch.tensor([1, 2])).sample
    if isinstance(network, SD3Transformer2DModel):
        return network(draw(2, 4, height, width), draw(2, 3, 16), draw(2, 8), t).sample
    inputs = network.example_inputs(2, height, width)
    return network(**{key: draw(*v.shape) if v.is_floating_point() else v for key, v in inputs.items()}).sample


KINDS = ("unet", "dit", "sd3", "ours", "ours-u")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_handle(kind, tmp_path):
    network = make(kind)
    plain, keys, attributes = predict(network), list(network.state_dict()), set(vars(network))
    untouched = KVCompression.create(network, ratio=1)
    assert torch.equal(predict(network), plain) and untouched.trainable_parameters() == []
    (file,) = untouched.save(tmp_path / "one.safetensors")
    untouched.unload()
    load_adapter(network, file).unload()
    adapter = KVCompression.create(network, ratio=2)
    averaged = predict(network)
    assert not torch.equal(averaged, plain) and list(network.state_dict()) == keys
    adapter.scale = 0
    assert torch.equal(predict(network), plain)
    with adapter.at(1):
        assert torch.equal(predict(network), averaged)
    adapter.scale = 1
    adapter.enabled = False
    assert torch.equal(predict(network), plain)
    adapter.enabled = True
    for parameter in adapter.trainable_parameters():
        nn.init.normal_(parameter, std=0.3)
    trained = predict(network)
    assert not torch.equal(trained, averaged)
    (file,) = adapter.save(tmp_path / "two.safetensors")
    twin = copy.deepcopy(network)
    adapter.unload()
    assert torch.equal(predict(network), plain) and set(vars(network)) == attributes
    assert torch.equal(predict(twin), trained)
    again = load_adapter(network, file)
    assert torch.equal(predict(network), trained) and again.config == adapter.config


@pytest.mark.parametrize("height, width", [(6, 4), (5, 7), (1, 3), (2, 2)])
@pytest.mark.parametrize("ratio", [2, 3])
def test_it_starts_as_the_average_of_what_is_there(height, width, ratio):
    maps = torch.randn(2, 8, height, width)
    part = Compression(8, ratio)
    expected = nn.functional.avg_pool2d(maps, ratio, ceil_mode=True)
    found = part(maps.flatten(2).transpose(1, 2), height, width)
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_attention_reads_the_shorter_map_and_costs_less():
    """Against the written-out softmax over averaged keys and values; maps of any two sides, each with its own."""
    network = make("ours")
    attention, seen = network.blocks[0].core.attn, {}
    attention.register_forward_hook(lambda module, args, out: seen.update(read=args[0], out=out))
    adapter = KVCompression.create(network, ratio=[2, 1])
    before = {}
    for height, width in ((12, 8), (6, 10)):
        predict(network, height, width)
        tokens, rows, columns = seen["read"][:, 0], height // 2, width // 2
        maps = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        shorter = nn.functional.avg_pool2d(maps, 2, ceil_mode=True).flatten(2).transpose(1, 2)
        query, key, value = (
            attention.qkv(source).unflatten(-1, (3, 2, 8))[:, :, part].transpose(1, 2)
            for part, source in enumerate((tokens, shorter, shorter))
        )
        scores = (query @ key.transpose(-1, -2) / 8**0.5).softmax(dim=-1)
        expected = attention.proj((scores @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(seen["out"][:, 0], expected, atol=1e-5, rtol=1e-4)
    before["on"], _ = count_operations(lambda: predict(network))
    adapter.scale = 0
    before["off"], _ = count_operations(lambda: predict(network))
    assert before["on"] < before["off"]


@pytest.mark.parametrize("kind", ["unet", "ours"])
def test_it_learns_and_recomputes_alike(kind):
    """Every convolution gets a gradient, the same with gradient checkpointing, whose recomputation has a thread."""
    network = make(kind).train()
    adapter = KVCompression.create(network, ratio=2)
    gradients = []
    for _ in range(2):
        predict(network).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in adapter.trainable_parameters()])
        for parameter in adapter.trainable_parameters():
            parameter.grad = None
        network.enable_gradient_checkpointing()
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_threads_with_maps_of_unlike_shape():
    network = make("unet")
    KVCompression.create(network, ratio=2)
    shapes = [(12, 8), (8, 12), (6, 16), (16, 6)]
    alone = [predict(network, *shape) for shape in shapes]
    found: list = [None] * len(shapes)

    def draw(number: int) -> None:
        with torch.no_grad():
            for _ in range(3):
                found[number] = predict(network, *shapes[number])

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(len(shapes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, expected in zip(found, alone):
        torch.testing.assert_close(ours, expected)


@torch.no_grad()
def test_beside_a_lora_on_the_same_layers():
    network = make("ours")
    KVCompression.create(network, ratio=2)
    alone = predict(network)
    network.add_adapter(LoraConfig(r=2, target_modules=["qkv"]))
    torch.testing.assert_close(predict(network), alone)  # a fresh LoRA adds nothing
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert not torch.allclose(predict(network), alone)


@pytest.mark.parametrize(
    "ratio, message",
    [
        (0, "`ratio` is 0 at stage 1 of 2; give a whole number from 1"),
        (1.5, "`ratio` is 1.5 at stage 1"),
        (True, "`ratio` is True at stage 1"),
        ("2", "`ratio` is '2'"),
        ([2], r"`ratio` has 1 numbers for 2 stages; give one for each, such as \[2, 1\]"),
        ([2, -1], "`ratio` is -1 at stage 2 of 2"),
    ],
)
def test_ratios_that_do_not_do(ratio, message):
    network = make("unet")
    with pytest.raises(ValueError, match=message):
        KVCompression.create(network, ratio=ratio)
    assert not any(module._forward_pre_hooks for module in network.modules())


@torch.no_grad()
def test_strengths_between_lead_from_one_to_the_other():
    """Attention to the enlarged copy is attention to the shorter map."""
    network = make("unet")
    adapter = KVCompression.create(network, ratio=2)
    on = predict(network, 8, 8)
    adapter.scale = 1 - 1e-6
    torch.testing.assert_close(predict(network, 8, 8), on, atol=1e-4, rtol=1e-4)
    adapter.scale = 0.5
    half = predict(network, 8, 8)
    adapter.scale = 0
    off = predict(network, 8, 8)
    assert 0 < (half - off).norm() < (on - off).norm()


def test_networks_that_have_none():
    flux = FluxTransformer2DModel(
        num_layers=1, num_single_layers=0, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(4, 4, 8), in_channels=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="FluxTransformer2DModel, which turns its keys by rotary positions"):
        KVCompression.create(flux)
    with pytest.raises(ValueError, match="has none.*UNet2DConditionModel"):
        KVCompression.create(BlockUNet2DModel(**BlockUNet2DModel.smallest | {"block_types": "resnet"}))
    mixed = BlockUNet2DModel(**BlockUNet2DModel.smallest | {"block_types": "resnet,dit"})
    with pytest.raises(ValueError, match=r"`ratio` is 2 at stage 1 of 2, which has no .*\(stages that have: 2\)"):
        KVCompression.create(mixed, ratio=[2, 1])
    adapter = KVCompression.create(mixed)
    assert adapter.config == {"ratio": [1, 2]}
