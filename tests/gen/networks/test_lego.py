"""What every LEGO network promises, whatever its stack."""

import json

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from torch.utils.flop_counter import FlopCounterMode

from brickwork import LegoTransformer2DModel
from brickwork.gen.blocks.attention import SMALL_WINDOW, WindowAttention, small_window_attention
from brickwork.gen.operations import count_operations
from brickwork.gen.presets import LEGO_PRESETS


def inputs(batch=2, channels=3, height=16, width=16, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, channels, height, width, generator=generator),
        torch.randn(batch, generator=generator),
        torch.randint(0, classes, (batch,), generator=generator),
    )


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 48), (40, 8), (17, 23), (9, 33), (8, 8)])
def test_any_size(any_lego, batch, height, width):
    sample, timestep, labels = inputs(batch, height=height, width=width)
    output = any_lego(sample, timestep, labels).sample
    assert output.shape == (batch, 3, height, width)
    assert output.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(17, 23), (9, 33), (16, 20), (8, 12)])
def test_padding_is_masked_out(lego, monkeypatch, height, width):
    """What stands in the padding must not matter."""
    model = lego("growing")
    sample, timestep, labels = inputs(height=height, width=width)
    expected = model(sample, timestep, labels).sample

    from brickwork.gen.networks import lego as module

    real = module.pad_to_multiple

    def noisy_padding(image, multiple):
        padded = real(image, multiple).clone()
        mask = real(torch.ones_like(image), multiple) == 0
        # Only whole padded tokens are masked: within a token that shows some of the image, zeros are part of it.
        patch = next(p for p in (4, 2) if padded.shape[-1] % p == 0)
        whole = -(-image.shape[-2] // patch) * patch, -(-image.shape[-1] // patch) * patch
        mask[..., : whole[0], : whole[1]] = False
        padded[mask] = torch.randn(int(mask.sum())) * 100
        return padded

    monkeypatch.setattr(module, "pad_to_multiple", noisy_padding)
    torch.testing.assert_close(model(sample, timestep, labels).sample, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_window_larger_than_the_image_shrinks_without_changing_anything(lego, monkeypatch):
    model = lego("one brick")
    sample, timestep, labels = inputs(height=12, width=10)
    shrunk = model(sample, timestep, labels).sample
    assert model.bricks[0].window_of(12, 10) == (6, 5)
    monkeypatch.setattr(type(model.bricks[0]), "window_of", lambda self, *_: (self.window_tokens,) * 2)
    torch.testing.assert_close(model(sample, timestep, labels).sample, shrunk, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_windows_do_not_see_each_other(lego):
    """Except by its coordinates, a brick treats every window alike and on its own."""
    brick = lego("one brick").bricks[0]
    sample, temb = torch.randn(2, 5, 32, 48), torch.randn(2, 16)
    whole = brick(sample, temb)
    torch.testing.assert_close(whole[..., 16:32, 32:48], brick(sample[..., 16:32, 32:48], temb), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_batch_is_its_images(any_lego):
    sample, timestep, labels = inputs(3, height=24, width=16)
    together = any_lego(sample, timestep, labels).sample
    alone = torch.cat([any_lego(sample[i : i + 1], timestep[i : i + 1], labels[i : i + 1]).sample for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_no_class_is_none_or_the_number_behind_the_last(lego):
    model = lego()
    sample, timestep, labels = inputs(3)
    none = model(sample, timestep).sample
    assert torch.equal(none, model(sample, timestep, torch.full((3,), 5)).sample)
    assert not torch.allclose(none, model(sample, timestep, labels).sample)


@torch.no_grad()
def test_a_scalar_timestep_holds_for_the_batch(lego):
    model = lego()
    sample, _, labels = inputs(3)
    expected = model(sample, torch.full((3,), 0.3), labels).sample
    assert torch.equal(model(sample, 0.3, labels).sample, expected)
    assert torch.equal(model(sample, torch.tensor(0.3), labels).sample, expected)


@torch.no_grad()
@pytest.mark.parametrize("bricks", [(0,), (0, 1), (1,), (0, 2), (1, 2), (2,), (0, 1, 2), None])
def test_any_subset_of_bricks(lego, bricks):
    model = lego()
    sample, timestep, labels = inputs()
    output = model(sample, timestep, labels, bricks=bricks, return_intermediates=True)
    ran = bricks or (0, 1, 2)
    assert len(output.intermediates) == len(ran)
    assert output.intermediates[-1] is output.sample
    # By hand: the previous estimate is that of the last brick that ran, zeros if there is none.
    temb = model.condition(timestep, labels, torch.float32)
    ramp = torch.linspace(-1, 1, 16)
    places = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij")).expand(2, 2, 16, 16)
    estimate = torch.zeros_like(sample)
    for number, intermediate in zip(ran, output.intermediates):
        previous = [] if number == 0 else [estimate]
        estimate = model.bricks[number](torch.cat([*previous, sample, places], dim=1), temb)
        torch.testing.assert_close(intermediate, estimate, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_an_early_exit_equals_the_intermediate_of_the_whole(any_lego):
    sample, timestep, labels = inputs()
    whole = any_lego(sample, timestep, labels, return_intermediates=True).intermediates
    for length, estimate in enumerate(whole, start=1):
        assert torch.equal(any_lego(sample, timestep, labels, bricks=range(length)).sample, estimate)


@torch.no_grad()
@pytest.mark.parametrize(
    ("stack", "height", "width"),
    [("growing", 16, 16), ("shrinking", 17, 40), ("growing", 32, 24), ("one brick", 8, 8)],
)
def test_skipped_bricks_cost_nothing(lego, stack, height, width):
    """Counted operations equal the model's figures for every subset: a brick that ran all the same would show."""
    model = lego(stack, trained_subsets="any")
    sample, timestep, labels = inputs(1, height=height, width=width)
    subnets = model.subnets(height, width)
    assert len(subnets) == 2**model.num_bricks - 1
    for name, operations in subnets.items():
        bricks = tuple(int(part) for part in name.split("+"))
        counted, _ = count_operations(lambda bricks=bricks: model(sample, timestep, labels, bricks=bricks))
        assert counted == operations


def test_subnets_of_weights_trained_for_early_exits(lego):
    assert list(lego().subnets(16, 16)) == ["0", "0+1", "0+1+2"]


@torch.no_grad()
def test_modulation_is_computed_once_an_image(lego):
    model, rows = lego(), []
    for block in model.bricks[0].blocks:
        block.modulation.linear.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    model(*inputs(2, height=32, width=32))
    assert rows == [2] * len(model.bricks[0].blocks)


@pytest.mark.parametrize("bricks", [None, (0,), (1, 2)])
def test_every_parameter_of_the_bricks_that_ran_gets_a_gradient(lego, bricks):
    model = lego()
    output = model(*inputs(), bricks=bricks, return_intermediates=True)
    sum(estimate.square().mean() for estimate in output.intermediates).backward()
    ran = range(3) if bricks is None else bricks
    for name, parameter in model.named_parameters():
        part, number, *_ = name.split(".")
        if part == "bricks" and int(number) not in ran:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_fresh_networks_say_nothing():
    """adaLN-zero and a zero head: training starts from an estimate of zero."""
    model = LegoTransformer2DModel(
        window_sizes=[8], patch_sizes=[2], num_layers=[1], hidden_sizes=16, num_attention_heads=2
    )
    with torch.no_grad():
        assert model(torch.randn(1, 3, 8, 8), 0.1).sample.abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"num_classes": None}, {"in_channels": 4}, {"in_channels": 1, "mlp_ratio": 2.0}])
def test_unconditional_and_latent_networks(lego, settings):
    model = lego(**settings)
    sample, timestep, labels = inputs(channels=model.config.in_channels)
    labels = labels if model.config.num_classes else None
    assert model(sample, timestep, labels).sample.shape == sample.shape


def test_gradient_checkpointing_changes_nothing(lego):
    model = lego().train()
    sample, timestep, labels = inputs()

    def gradients():
        model.zero_grad()
        model(sample, timestep, labels).sample.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.enable_gradient_checkpointing()
    calls = []
    inner = model.bricks[0]._gradient_checkpointing_func
    for brick in model.bricks:
        brick._gradient_checkpointing_func = lambda *args: calls.append(1) or inner(*args)
    checkpointed = gradients()
    assert len(calls) == 4
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(lego, dtype):
    model = lego()
    sample, timestep, labels = inputs()
    expected = model(sample, timestep, labels).sample
    output = model.to(dtype)(sample.to(dtype), timestep, labels).sample
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < 0.03 * expected.norm()


@torch.no_grad()
def test_autocast(lego):
    model = lego()
    expected = model(*inputs()).sample
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs()).sample
    assert 0 < (output.float() - expected).norm() < 0.03 * expected.norm()


@torch.no_grad()
def test_layerwise_casting_stores_eight_bits(lego):
    model = lego()
    expected = model(*inputs()).sample
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.bricks[0].blocks[0].attn.qkv.weight.dtype == torch.float8_e4m3fn
    assert model.bricks[0].patch_embed.weight.dtype == torch.float32
    output = model(*inputs()).sample
    assert 0 < (output - expected).norm() < 0.1 * expected.norm()


@torch.no_grad()
def test_group_offload(lego):
    model = lego()
    expected = model(*inputs()).sample
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(model(*inputs()).sample, expected)


@torch.no_grad()
def test_save_and_load(lego, tmp_path):
    model = lego("u", id2label={0: "zero", 1: "one"})
    expected = model(*inputs()).sample
    model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    again = LegoTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(again(*inputs()).sample, expected)
    assert dict(again.config)["hidden_sizes"] == [16, 24, 8, 24, 16]
    mapped = LegoTransformer2DModel.from_pretrained(tmp_path, device_map="auto", max_memory={"cpu": "1GB"})
    assert torch.equal(mapped(*inputs()).sample, expected)


@torch.no_grad()
def test_the_automatic_class_finds_it_and_a_folder_saved_again(lego, tmp_path):
    from diffusers import AutoModel

    model = lego()
    model.save_pretrained(tmp_path / "one")
    first = AutoModel.from_pretrained(str(tmp_path / "one"))
    assert type(first) is LegoTransformer2DModel
    first.save_pretrained(tmp_path / "two")
    configs = [(tmp_path / name / "config.json").read_text() for name in ("one", "two")]
    assert configs[0] == configs[1]  # no word of the folder that it was loaded from
    again = AutoModel.from_pretrained(str(tmp_path / "two"))
    assert torch.equal(again(*inputs()).sample, model(*inputs()).sample)


def test_registering_for_auto_classes_leaves_the_folder_loadable(lego, tmp_path):
    from diffusers import AutoModel

    LegoTransformer2DModel.register_for_auto_class("AutoModel")
    lego().save_pretrained(tmp_path / "one")
    assert "auto_map" not in json.loads((tmp_path / "one" / "config.json").read_text())
    AutoModel.from_pretrained(str(tmp_path / "one")).save_pretrained(tmp_path / "two")
    assert type(AutoModel.from_pretrained(str(tmp_path / "two"))) is LegoTransformer2DModel


def test_folders_that_hold_no_such_network(lego, tmp_path):
    with pytest.raises(ValueError, match="config.json is missing.*save_pretrained"):
        LegoTransformer2DModel.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match='it is a pipeline; say subfolder="transformer"'):
        LegoTransformer2DModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="holds a UNet2DModel, not a LegoTransformer2DModel"):
        LegoTransformer2DModel.from_pretrained(tmp_path)
    lego().save_pretrained(tmp_path / "cut")
    (tmp_path / "cut" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="No LegoTransformer2DModel could be loaded"):
        LegoTransformer2DModel.from_pretrained(tmp_path / "cut")


def test_push_to_hub_sends_weights_and_config(lego, monkeypatch, tmp_path):
    import huggingface_hub
    from diffusers.utils import hub_utils

    sent = {}

    def upload(*args, folder_path, **kwargs):
        from pathlib import Path

        sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    for module in (hub_utils, huggingface_hub):
        monkeypatch.setattr(module, "create_repo", lambda repo_id, **kwargs: type("R", (), {"repo_id": repo_id})())
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *args, **kwargs: huggingface_hub.ModelCard(""))
    lego().push_to_hub("someone/lego")
    assert {"config.json", "diffusion_pytorch_model.safetensors"} <= set(sent)
    assert json.loads(sent["config.json"])["_class_name"] == "LegoTransformer2DModel"


def test_lora_through_peft(lego):
    from peft import LoraConfig

    model = lego()
    expected = model(*inputs()).sample.detach()
    model.add_adapter(LoraConfig(r=2, target_modules=["qkv", "proj"], init_lora_weights=False))
    assert not torch.allclose(model(*inputs()).sample, expected)
    model.disable_adapters()
    assert torch.equal(model(*inputs()).sample, expected)


def _operation_names(function) -> set[str]:
    from torch.utils._python_dispatch import TorchDispatchMode

    names = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(str(function))
            return function(*args, **(kwargs or {}))

    with Record():
        function()
    return names


@torch.no_grad()
def test_the_attention_backend_is_the_operation_that_runs(lego):
    """Windows of 64 tokens: the fused kernel under `native`, matrix products alone under `_native_math`."""
    model = lego("one brick")
    sample, timestep, labels = inputs()
    fused = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    expected = model(sample, timestep, labels).sample
    model.set_attention_backend("native")
    assert fused in _operation_names(lambda: model(sample, timestep, labels))
    model.set_attention_backend("_native_math")
    assert fused not in _operation_names(lambda: model(sample, timestep, labels))
    torch.testing.assert_close(model(sample, timestep, labels).sample, expected, rtol=1e-4, atol=1e-5)
    # diffusers also notes the latest choice for all models; each must keep its own.
    lego("one brick").set_attention_backend("native")
    assert fused not in _operation_names(lambda: model(sample, timestep, labels))
    model.reset_attention_backend()
    with attention_backend("_native_math"):
        assert fused not in _operation_names(lambda: model(sample, timestep, labels))
    with pytest.raises(ValueError, match="backend"):
        model.set_attention_backend("no such backend")


@pytest.mark.parametrize("tokens", [2, SMALL_WINDOW, SMALL_WINDOW + 1, 40])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_a_written_out_softmax(tokens, masked):
    torch.manual_seed(0)
    attn = WindowAttention(12, 3)
    hidden_states = torch.randn(2, 3, tokens, 12)
    mask = torch.rand(3, tokens) < 0.6 if masked else None
    if masked:
        mask[:, 0] = True
    query, key, value = attn.qkv(hidden_states).view(2, 3, tokens, 3, 3, 4).unbind(3)
    scores = torch.einsum("bwqhd,bwkhd->bwhqk", query, key) / 2
    if masked:
        scores = scores.masked_fill(~mask[None, :, None, None, :], float("-inf"))
    expected = torch.einsum("bwhqk,bwkhd->bwqhd", scores.softmax(-1), value)
    output = attn(hidden_states, mask)
    torch.testing.assert_close(output, attn.proj(expected.flatten(3)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_small_windows_never_reach_a_fused_kernel(lego):
    names = _operation_names(lambda: lego("shrinking").bricks[1](torch.randn(2, 8, 16, 16), torch.randn(2, 16)))
    assert not any("scaled_dot_product" in name for name in names)
    assert small_window_attention(*torch.randn(3, 5, 2, 4, 8)).shape == (5, 2, 4, 8)


def test_one_compiled_graph_for_all_batches(lego):
    torch._dynamo.reset()
    model, graphs = lego(), []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for batch in (2, 3, 5):
            expected = model(*inputs(batch)).sample
            torch.testing.assert_close(compiled(*inputs(batch)).sample, expected, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_repeated_blocks_compile_once_each_shape(lego):
    torch._dynamo.reset()
    model = lego()
    with torch.no_grad():
        expected = model(*inputs()).sample
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(model(*inputs()).sample, expected, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(lego):
    model = lego()
    expected = model(*inputs()).sample
    output = model.cuda()(*(tensor.cuda() for tensor in inputs())).sample
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-3, atol=1e-4)


# name: parameters in millions with 3 channels and 1,000 classes, computed from the architecture by hand:
# per block 18 D² + 15 D, per brick (in·p² + 1) D + (2 D + 2) D + (D + 1) 3 p², and the embeddings.
@pytest.mark.parametrize("name", list(LEGO_PRESETS))
def test_presets_have_the_papers_stacks(name):
    with torch.device("meta"):
        model = LegoTransformer2DModel.from_preset(name, in_channels=3, num_classes=1000)
    config = model.config
    width = config.hidden_sizes
    expected = 256 * width + width + width**2 + width + 1000 * width + width
    for number, (patch, layers) in enumerate(zip(config.patch_sizes, config.num_layers)):
        channels = 5 if number == 0 else 8
        expected += layers * (18 * width**2 + 15 * width)
        expected += (channels * patch**2 + 1) * width + 2 * width * (width + 1) + (width + 1) * 3 * patch**2
    assert sum(p.numel() for p in model.parameters()) == expected
    shape = "pg" if config.window_sizes[0] < config.window_sizes[-1] else "pr"
    shape = "u" if len(config.window_sizes) == 5 else shape
    assert name.split("-")[2] == shape
    assert max(config.window_sizes) == config.sample_size == int(name.split("-")[3])


def test_s_pg_64_has_the_measured_operations():
    """The authors' code needs 40.9 GFLOP an image with everything counted; matrix products and attention are 39.7."""
    with torch.device("meta"):
        model = LegoTransformer2DModel.from_preset("lego-s-pg-64")
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 3, 64, 64), torch.randn(1))
    assert counter.get_total_flops() == model.subnets(64, 64)["0+1+2"]
    assert 39e9 < counter.get_total_flops() < 41e9


def test_presets_take_overrides():
    model = LegoTransformer2DModel.from_preset("lego-s-pg-64", in_channels=4, hidden_sizes=24, num_layers=[1, 1, 1])
    assert model.config.in_channels == 4 and model.config.num_layers == [1, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.randn(1, 4, 16, 16), 0.1), r"`sample` has shape \(1, 4, 16, 16\).*3, height"),
        (lambda m: m(torch.randn(1, 3, 16, 3), 0.1), r"`sample`.*\(16, 3\).*one patch of 4.*at least 4"),
        (lambda m: m(torch.randn(3, 16, 16), 0.1), "`sample` has shape"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, torch.tensor([6])), "`class_labels`.*6.*0 to 4.*5 for no class"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, torch.tensor([-1])), "`class_labels`.*-1"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, torch.tensor([1, 2])), r"`class_labels` has shape \(2,\)"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, torch.tensor([0.5])), "`class_labels`.*float32.*integers"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, [1]), "`class_labels` is .1.; give an integer tensor"),
        (lambda m: m(torch.randn(0, 3, 16, 16), 0.1), r"`sample` has shape \(0,"),
        (lambda m: m(torch.randn(2, 3, 16, 16), torch.zeros(3)), r"`timestep` has shape \(3,\).*\(2,\)"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, bricks=0), "`bricks` is 0; give at least one"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, bricks=()), r"`bricks` is \(\).*0 to 2"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, bricks=(0, 3)), r"`bricks` is \(0, 3\)"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, bricks=(1, 0)), "rising order"),
        (lambda m: m(torch.randn(1, 3, 16, 16), 0.1, bricks=(1, 1)), "each once"),
    ],
)
def test_bad_calls(lego, call, message):
    with pytest.raises(ValueError, match=message):
        call(lego())


def test_labels_for_an_unconditional_network(lego):
    with pytest.raises(ValueError, match="`class_labels`.*unconditional"):
        lego(num_classes=None)(*inputs())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_sizes": [4, 8]}, "`window_sizes`, `patch_sizes` and `num_layers` have 2, 3 and 3"),
        ({"window_sizes": [5, 8, 16]}, "`patch_sizes` has 2, which does not divide its window of 5"),
        ({"hidden_sizes": [16, 16]}, "`hidden_sizes` has 2 entries for 3 bricks"),
        ({"num_attention_heads": 3}, "`num_attention_heads` is 3, which does not divide the width 16"),
        ({"hidden_sizes": 18}, "width of 18.*multiple of 4"),
        ({"trained_subsets": "all"}, "`trained_subsets` is 'all'; choose one of prefix, any"),
        ({"window_sizes": 16}, "`window_sizes` is 16; give a list"),
        ({"num_layers": [-1, 1, 1]}, "`num_layers` is .-1, 1, 1.; give a list of whole numbers from 1 up"),
        ({"patch_sizes": [2.0, 4, 2]}, "`patch_sizes` is"),
        ({"hidden_sizes": 0}, "`hidden_sizes`"),
        ({"num_classes": 0}, "`num_classes` is 0.*None for an unconditional"),
        ({"in_channels": 0}, "`in_channels` is 0"),
        ({"mlp_ratio": 0}, "`mlp_ratio` is 0"),
        ({"id2label": {7: "x"}}, "`id2label`.*below `num_classes`"),
    ],
)
def test_bad_stacks(lego, settings, message):
    with pytest.raises(ValueError, match=message):
        lego(**settings)


def test_bad_presets():
    with pytest.raises(ValueError, match="lego-s-gp-64.*did you mean.*lego-s-pg-64"):
        LegoTransformer2DModel.from_preset("lego-s-gp-64")
    with pytest.raises(ValueError, match="`overrides` has 'layers'.*did you mean 'num_layers'"):
        LegoTransformer2DModel.from_preset("lego-s-pg-64", layers=3)
