"""What every network of blocks promises, whatever its blocks."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from peft import LoraConfig

from brickwork.gen.blocks import list_blocks
from brickwork.gen.necks import list_necks
from brickwork.gen.operations import count_operations
from brickwork.gen.stems import list_stems

KEYS = Path(__file__).parents[2] / "data" / "blocks" / "keys.json"


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(20, 20), (17, 31), (27, 18)])
def test_any_size(any_network, inputs, batch, height, width):
    output = any_network(**inputs(batch, height=height, width=width)).sample
    assert output.shape == (batch, 3, height, width)
    assert output.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(18, 22), (24, 17)])
def test_padding_is_masked_out(any_network, inputs, monkeypatch, height, width):
    """What stands in the padding of windows must not matter."""
    from brickwork.gen.blocks import windows

    call = inputs(height=height, width=width)
    expected = any_network(**call).sample
    real, padded_maps = windows.pad_to_multiple, []

    def noisy_padding(hidden_states, multiple):
        if hidden_states.dtype == torch.bool:  # the mask itself
            return real(hidden_states, multiple)
        padded = real(hidden_states, multiple).clone()
        padded_maps.append(padded.shape != hidden_states.shape)
        padded[real(torch.ones_like(hidden_states), multiple) == 0] = 100.0
        return padded

    monkeypatch.setattr(windows, "pad_to_multiple", noisy_padding)
    torch.testing.assert_close(any_network(**call).sample, expected, rtol=1e-4, atol=1e-5)
    assert any(padded_maps) == any(window > 1 for _, window in any_network.maps.values())


@torch.no_grad()
def test_a_batch_is_its_images(any_network, inputs):
    call = inputs(3, height=20, width=17)
    together = any_network(**call).sample
    alone = [any_network(**{key: value[i : i + 1] for key, value in call.items()}).sample for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_time_and_class_matter_and_no_class_is_the_number_behind_the_last(any_network, inputs):
    call = inputs(3)
    expected = any_network(**call).sample
    none = any_network(**(call | {"class_labels": None})).sample
    assert torch.equal(none, any_network(**(call | {"class_labels": torch.full((3,), 5)})).sample)
    assert not torch.allclose(none, expected)
    later = any_network(**(call | {"timestep": 3.0})).sample
    assert torch.equal(later, any_network(**(call | {"timestep": torch.full((3,), 3.0)})).sample)
    assert not torch.allclose(later, expected)


def test_every_trained_parameter_gets_a_gradient(any_network, inputs):
    any_network.train()
    any_network(**inputs(3)).sample.square().mean().backward()
    for name, parameter in any_network.named_parameters():
        if name == "pos_embed":
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_fresh_networks_say_nothing(any_network, inputs):
    """A zero head: training starts from an estimate of zero."""
    fresh = type(any_network).from_config(any_network.config)
    with torch.no_grad():
        assert fresh(**inputs()).sample.abs().max() == 0


def test_gradient_checkpointing_changes_nothing(mixed_network, inputs):
    """Neither gradients nor the running statistics of BatchNorm, which the second pass must not see again."""
    model, call = mixed_network.train(), inputs()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def run():
        model.load_state_dict(start)
        model.zero_grad()
        model(**call).sample.square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        return gradients | {name: buffer.clone() for name, buffer in model.named_buffers()}

    plain = run()
    model.enable_gradient_checkpointing()
    calls, inner = [], model._gradient_checkpointing_func
    model._gradient_checkpointing_func = lambda *args: calls.append(1) or inner(*args)
    checkpointed = run()
    blocks = [module for module in model.modules() if type(module).__name__ in model._repeated_blocks]
    assert len(calls) == len(blocks)
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(any_network, inputs, dtype):
    call = inputs()
    expected = any_network(**call).sample
    output = any_network.to(dtype)(**(call | {"sample": call["sample"].to(dtype)})).sample
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < 0.08 * expected.norm()


@torch.no_grad()
def test_autocast(any_network, inputs):
    expected = any_network(**inputs()).sample
    with torch.autocast("cpu", torch.bfloat16):
        output = any_network(**inputs()).sample
    assert 0 < (output.float() - expected).norm() < 0.08 * expected.norm()


@torch.no_grad()
def test_layerwise_casting_stores_eight_bits(mixed_network, inputs):
    expected = mixed_network(**inputs()).sample
    mixed_network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = {parameter.dtype for parameter in mixed_network.parameters()}
    assert stored == {torch.float8_e4m3fn, torch.float32}
    assert mixed_network.condition.time_embed.linear_1.weight.dtype == torch.float32
    output = mixed_network(**inputs()).sample
    assert 0 < (output - expected).norm() < 0.3 * expected.norm()


@torch.no_grad()
def test_group_offload(mixed_network, inputs):
    expected, cpu = mixed_network(**inputs()).sample, torch.device("cpu")
    mixed_network.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(mixed_network(**inputs()).sample, expected)


@torch.no_grad()
def test_save_and_load(any_network, inputs, tmp_path):
    any_network.register_to_config(id2label={0: "zero"})
    expected = any_network(**inputs()).sample
    any_network.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    again = type(any_network).from_pretrained(tmp_path)
    assert torch.equal(again(**inputs()).sample, expected)
    mapped = type(any_network).from_pretrained(tmp_path, device_map="auto", max_memory={"cpu": "1GB"})
    assert torch.equal(mapped(**inputs()).sample, expected)


def test_lora_through_peft(mixed_network, inputs):
    from peft import LoraConfig

    expected = mixed_network(**inputs()).sample.detach()
    targets = ["qkv", "qk", "v", "proj", "conv1", "conv2"]
    mixed_network.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert not torch.allclose(mixed_network(**inputs()).sample, expected)
    mixed_network.disable_adapters()
    torch.testing.assert_close(mixed_network(**inputs()).sample, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["transformer of dit", "transformer of i2rmb", "unet of maxvit", "mixed unet"])
def test_the_attention_backend_is_what_runs(network, inputs, monkeypatch, name):
    model, ran = network(name, cross_attention_dim=8), []
    call = inputs() | {"encoder_hidden_states": torch.randn(2, 20, 8)}
    expected = model(**call).sample
    for backend in (AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH):
        function = _AttentionBackendRegistry._backends[backend]

        def spy(*args, _function=function, _backend=backend, **kwargs):
            ran.append(_backend)
            return _function(*args, **kwargs)

        monkeypatch.setitem(_AttentionBackendRegistry._backends, backend, spy)
    for backend in (AttentionBackendName._NATIVE_MATH, AttentionBackendName.NATIVE):
        ran.clear()
        model.set_attention_backend(backend.value)
        torch.testing.assert_close(model(**call).sample, expected, rtol=1e-3, atol=1e-4)
        assert set(ran) == {backend}
    model.reset_attention_backend()


@torch.no_grad()
def test_a_text_matters_and_is_checked(mixed_network, network, inputs):
    name = "mixed unet" if "UNet" in type(mixed_network).__name__ else "mixed transformer"
    model, call = network(name, cross_attention_dim=8), inputs()
    text = torch.randn(2, 7, 8)
    one = model(**call, encoder_hidden_states=text).sample
    assert not torch.allclose(one, model(**call, encoder_hidden_states=text.flip(0)).sample)
    for wrong in (text[:1], text[..., :4], text[0]):
        with pytest.raises(ValueError, match="encoder_hidden_states"):
            model(**call, encoder_hidden_states=wrong)
    with pytest.raises(ValueError, match="cross_attention_dim"):
        mixed_network(**call, encoder_hidden_states=text)


@pytest.mark.parametrize("name", ["mixed transformer", "unet of resnet"])
def test_batches_share_a_compiled_graph(network, inputs, name):
    torch._dynamo.reset()
    model, graphs = network(name), []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for batch in (2, 3, 5):
            expected = model(**inputs(batch)).sample
            torch.testing.assert_close(compiled(**inputs(batch)).sample, expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1  # floats that count as variables would make the compiler start over
    torch._dynamo.reset()


def test_repeated_blocks_compile(network, inputs):
    torch._dynamo.reset()
    model = network("mixed transformer")
    with torch.no_grad():
        expected = model(**inputs()).sample
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(model(**inputs()).sample, expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_names_of_weights_are_frozen(any_network, request):
    """Saved weights keep loading. A new network adds its entry; an entry that changes breaks checkpoints."""
    frozen = json.loads(KEYS.read_text())
    name = request.node.callspec.params["any_network"]
    assert {key: list(tensor.shape) for key, tensor in any_network.state_dict().items()} == frozen[name]


def test_every_block_stem_and_neck_is_covered():
    """What is missing is added by `python tests/gen/blocks/freeze_keys.py`."""
    frozen, parts = json.loads(KEYS.read_text()), {"stem": list_stems(), "neck": list_necks()}
    wanted = {f"{kind} of {name}" for name in list_blocks() for kind in ("transformer", "unet")}
    wanted |= {f"{kind} {name}" for kind, names in parts.items() for name in names if name not in ("conv", "skip")}
    assert wanted <= set(frozen)


@torch.no_grad()
def test_sizes_down_to_the_smallest_that_holds_its_windows(any_network, inputs):
    """One pixel less names the map, its size, its window and both mends."""
    smallest = max((window - 1) * stride + 1 for stride, window in any_network.maps.values())
    smallest = max(smallest, any_network.config.get("patch_size", 1))
    assert any_network(**inputs(height=smallest, width=smallest + 3)).sample.isfinite().all()
    if all(window == 1 for _, window in any_network.maps.values()):
        return
    mend = rf"below its window of 5 × 5; make both sides at least {smallest}, or .* `window_size` of at most 4"
    for size in ((smallest - 1, smallest), (smallest + 3, smallest - 1)):
        with pytest.raises(ValueError, match=rf"\({size[0]}, {size[1]}\), where (stage|the map).*{mend}"):
            any_network(**inputs(height=size[0], width=size[1]))
    config = dict(any_network.config) | {"sample_size": smallest - 1}
    with pytest.raises(ValueError, match=f"`sample_size` .*{mend}"):
        type(any_network).from_config(config)
    assert type(any_network).from_config(config | {"window_size": 4}).maps


@torch.no_grad()
def test_the_one_subnet_is_the_network_and_costs_what_runs(any_network, inputs):
    operations, _ = count_operations(lambda: any_network(**inputs(1, height=20, width=17)))
    assert any_network.subnets(20, 17) == {"full": operations}


@torch.no_grad()
def test_bad_inputs_say_what_to_do(any_network, inputs):
    call = inputs()
    for change, match in (
        ({"sample": call["sample"][:, :2]}, "sample"),
        ({"sample": call["sample"][0]}, "sample"),
        ({"sample": call["sample"][..., :0]}, "at least"),
        ({"class_labels": torch.tensor([0, 6])}, "0 to 4"),
        ({"class_labels": torch.tensor([0.0, 1.0])}, "integers"),
        ({"class_labels": torch.tensor([0])}, "shape"),
        ({"timestep": torch.zeros(3)}, "timestep"),
    ):
        with pytest.raises(ValueError, match=match):
            any_network(**(call | change))


def test_half_precision_either_way_of_loading(any_network, inputs, tmp_path):
    """`low_cpu_mem_usage=False` builds the network before it reads the weights; both give the same one."""
    any_network.save_pretrained(tmp_path)
    kind, call = type(any_network), inputs()
    found = [kind.from_pretrained(tmp_path, torch_dtype=torch.float16, low_cpu_mem_usage=low) for low in (True, False)]
    for name, tensor in found[0].state_dict().items():
        assert found[1].state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(found[1].state_dict()[name], tensor), name
    with torch.no_grad():
        outputs = [model(**call).sample for model in found]
    assert outputs[0].dtype == torch.float16 and torch.equal(*outputs)


def test_weights_saved_by_torch_load_too(mixed_network, inputs, tmp_path):
    mixed_network.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors"))
    again = type(mixed_network).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs()).sample, mixed_network(**inputs()).sample)


@pytest.mark.parametrize("missing", [{"variant": "fp16"}, {"subfolder": "unet"}, {}])
def test_what_is_missing_is_an_error_of_both_kinds(mixed_network, tmp_path, missing):
    mixed_network.save_pretrained(tmp_path)
    if not missing:
        next(tmp_path.glob("*.safetensors")).unlink()
    for kind in (OSError, ValueError):
        with pytest.raises(kind):
            type(mixed_network).from_pretrained(tmp_path, **missing)


def test_classes_say_what_must_not_be_split(any_network):
    """Before there is a network, of all kinds of block; a network itself, of those that it has."""
    own, all_kinds = set(any_network._no_split_modules), set(type(any_network)._no_split_modules)
    assert own and own <= all_kinds
    assert own == {type(module).__name__ for module in any_network.modules() if type(module).__name__ in all_kinds}


@torch.no_grad()
def test_attention_processors_are_listed_and_set_as_in_diffusers(mixed_network, inputs):
    expected, processors = mixed_network(**inputs()).sample, mixed_network.attn_processors
    assert len(processors) > 2 and all(name.endswith(".processor") for name in processors)
    mixed_network.set_attn_processor(dict(processors))
    assert mixed_network.attn_processors == processors
    with pytest.raises(ValueError, match="number of processors 1 does not match"):
        mixed_network.set_attn_processor({"only": next(iter(processors.values()))})
    mixed_network.fuse_qkv_projections()  # nothing to do: ours are one layer from the start
    assert torch.equal(mixed_network(**inputs()).sample, expected)
    mixed_network.unfuse_qkv_projections()
    assert torch.equal(mixed_network(**inputs()).sample, expected)


def test_lora_on_layers_of_other_networks_names_ours(mixed_network):
    with pytest.raises(ValueError, match="`target_modules` are .'to_k', 'to_q'.*its projections are .*qkv"):
        mixed_network.add_adapter(LoraConfig(target_modules=["to_q", "to_k"]))
    mixed_network.add_adapter(LoraConfig(target_modules=["qkv", "proj"]))  # the refused one left nothing behind
    assert any("lora_A" in name for name, _ in mixed_network.named_parameters())


def test_shards_and_variants_load_again(mixed_network, tmp_path):
    mixed_network.save_pretrained(tmp_path, max_shard_size="30KB", variant="fp16")
    assert len(list(tmp_path.glob("*.fp16-0*.safetensors"))) > 1
    again = type(mixed_network).from_pretrained(tmp_path, variant="fp16")
    for name, tensor in mixed_network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
