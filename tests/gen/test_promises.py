"""What diffusers promises of a network, of every one of ours that is registered, by whatever it is made of."""

import pytest
import torch
from peft import LoraConfig

import brickwork
from brickwork.gen.networks.base import Denoiser

KINDS = {name: getattr(brickwork, name) for name in brickwork._REGISTERED}
KINDS = {name: kind for name, kind in KINDS.items() if issubclass(kind, Denoiser)}


def make(kind):
    """The smallest network, with random numbers everywhere: fresh ones end in zeros and would hide mistakes."""
    torch.manual_seed(0)
    model = kind(**kind.smallest)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


@pytest.fixture(params=list(KINDS))
def model(request):
    return make(KINDS[request.param])


def run(model, dtype=torch.float32):
    """Of inputs full of noise."""
    size, generator = model.config.get("sample_size") or model.config.length, torch.Generator().manual_seed(0)
    call = model.example_inputs(2, size, size)
    call = {k: torch.randn(v.shape, generator=generator).to(dtype) if v.ndim > 1 else v for k, v in call.items()}
    with torch.no_grad():
        return model(**call).sample


def test_nothing_is_left_out():
    assert {"StitchedDenoiser", "CompositeDenoiser", "VideoDenoiser", "SeriesDenoiser"} < set(KINDS)
    assert {"MaxViTGenerator2DModel", "LegoTransformer2DModel"} < set(KINDS)


def test_variants_in_half_precision_by_either_way_of_loading(model, tmp_path):
    """`low_cpu_mem_usage=False` builds the network before it reads the weights; both give the same one, which runs."""
    model.save_pretrained(tmp_path, variant="fp16")
    options = {"variant": "fp16", "torch_dtype": torch.float16}
    found = [type(model).from_pretrained(tmp_path, low_cpu_mem_usage=low, **options) for low in (True, False)]
    for name, tensor in found[0].state_dict().items():
        assert found[1].state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(found[1].state_dict()[name], tensor), name
        assert tensor.dtype == torch.float16 or not tensor.is_floating_point(), name
    outputs = [run(one, torch.float16) for one in found]
    assert outputs[0].dtype == torch.float16 and outputs[0].isfinite().all() and torch.equal(*outputs)
    for wrong in ({}, {"variant": "bf16"}):
        for kind in (OSError, ValueError):
            with pytest.raises(kind):
                type(model).from_pretrained(tmp_path, **wrong)


@pytest.mark.parametrize("saved", [{"max_shard_size": "20KB"}, {"safe_serialization": False}])
def test_shards_and_weights_that_torch_saved_load_again(model, tmp_path, saved):
    expected = run(model)
    model.save_pretrained(tmp_path, **saved)
    assert torch.equal(run(type(model).from_pretrained(tmp_path)), expected)


def test_a_device_map_is_made(model, tmp_path):
    expected = run(model)
    model.save_pretrained(tmp_path)
    mapped = type(model).from_pretrained(tmp_path, device_map="auto", max_memory={"cpu": "1GB"})
    assert torch.equal(run(mapped), expected)


def test_what_must_not_be_split_is_named(model):
    """On the class before there is a network, of all kinds that there may be; on a network, of those that it has."""
    own, of_all = set(model._no_split_modules), set(type(model)._no_split_modules)
    there = {type(module).__name__ for module in model.modules()}
    assert own & there and own <= of_all
    assert own == set(model._repeated_blocks) or "LegoTransformer2DModel" == type(model).__name__


def test_attention_processors_are_listed_and_set(model):
    expected, processors = run(model), model.attn_processors
    assert processors and all(name.endswith(".processor") for name in processors)
    model.set_attn_processor(dict(processors))
    assert model.attn_processors == processors and torch.equal(run(model), expected)
    with pytest.raises(ValueError, match="number of processors 0 does not match"):
        model.set_attn_processor({})
    ran = []

    class Spy(type(next(iter(processors.values())))):
        def __call__(self, *arguments, **options):
            ran.append(1)
            return super().__call__(*arguments, **options)

    model.set_attn_processor(Spy())
    run(model)
    assert ran


def test_fused_projections_and_attention_backends_change_nothing(model):
    expected = run(model)
    model.fuse_qkv_projections()  # nothing to do: ours are one layer from the start
    assert torch.equal(run(model), expected)
    model.unfuse_qkv_projections()
    model.set_attention_backend("_native_math")
    torch.testing.assert_close(run(model), expected, rtol=1e-3, atol=1e-4)
    model.reset_attention_backend()


def test_lora_names_our_layers_and_works_on_them(model):
    with pytest.raises(ValueError, match="`target_modules` are .'to_k', 'to_q'.*its projections are .*qkv") as caught:
        model.add_adapter(LoraConfig(target_modules=["to_q", "to_k"]))
    expected, names = run(model), str(caught.value).partition("projections are ")[2].rstrip(".").split(", ")
    model.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))  # what the error told
    assert not torch.allclose(run(model), expected)
    model.disable_adapters()
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-6)
    model.enable_adapters()
    model.delete_adapters("default")
    assert torch.equal(run(model), expected)


def test_gradient_checkpointing_reaches_every_block(model):
    assert not model.is_gradient_checkpointing
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


def test_weights_stored_in_eight_bits_and_offloaded_run(model):
    expected, cpu = run(model), torch.device("cpu")
    offloaded = make(type(model))
    offloaded.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(run(offloaded), expected)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.float8_e4m3fn in {parameter.dtype for parameter in model.parameters()}
    assert 0 < (run(model) - expected).norm() < 0.4 * expected.norm()
