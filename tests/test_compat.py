"""The private calls of other packages, each by itself: what fails here is what an upgrade took away."""

import importlib.util

import pytest
import torch
from torch import nn

import brickwork
from brickwork import compat


def test_diffusers_constructor_keys():
    keys = compat.constructor_keys(brickwork.BlockUNet2DModel)
    assert {"in_channels", "block_types"} <= keys and "self" not in keys


def test_torch_functorch_is_active():
    seen = []
    torch.func.grad(lambda x: (seen.append(compat.functorch_is_active()), x.sum())[1])(torch.ones(2))
    assert seen == [True] and not compat.functorch_is_active()


def test_torch_saved_tensor_hooks():
    assert compat.saved_tensor_hooks() is None

    def pack(tensor):
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, pack):
        assert compat.saved_tensor_hooks()[0] is pack


def test_torch_compiler():
    assert importlib.util.find_spec(compat.COMPILER) is not None


def test_torch_vector_instructions():
    from torch._inductor import cpu_vec_isa

    tried = cpu_vec_isa.VecISA.check_build
    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    compat.trust_vector_instructions()
    assert cpu_vec_isa.VecISA.check_build is tried and cpu_vec_isa.valid_vec_isa_list.cache_info().currsize == 1
    if (capability := torch.backends.cpu.get_cpu_capability()) in ("AVX2", "AVX512"):
        found = str(cpu_vec_isa.pick_vec_isa())
        assert capability.lower() in found and "amx" not in found


def test_torch_in_backward():
    seen, x = [], torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: seen.append(compat.in_backward()))
    y.sum().backward()
    assert seen == [True] and not compat.in_backward()


def test_torch_storage_key():
    x, y = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    keys = [compat.storage_key(t.untyped_storage()) for t in (x, x[1:], y)]
    assert keys[0] == keys[1] != keys[2]


def test_torch_lerp_all():
    here, there = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.zeros(3)]
    compat.lerp_all_(here, there, 0.25)
    assert here[0].tolist() == [0.25] * 2 and here[1].tolist() == [0.75] * 3


def test_torch_fake_tensors():
    mode, kind = compat.fake_tensors()
    with mode():
        assert isinstance(torch.empty(3), kind)


def test_python_become():
    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    before, keys = layer(x), list(layer.state_dict())
    assert compat.become(layer, Doubling) is layer
    assert torch.equal(layer(x), 2 * before) and list(layer.state_dict()) == keys


def test_torch_forward_hooks():
    layer = nn.Linear(2, 2)
    mine, other = (lambda *_: None), (lambda *_: None)
    layer.register_forward_pre_hook(mine, with_kwargs=True)
    layer.register_forward_hook(mine, with_kwargs=True)
    layer.register_forward_hook(other, with_kwargs=True)
    found = compat.forward_hooks(layer, lambda hook: hook is mine)
    assert len(found) == 2 and all(hooks[number] is mine and kinds[number] for hooks, kinds, number in found)
    compat.take_off_hooks(layer, lambda hook: hook is mine)
    assert not compat.forward_hooks(layer, lambda hook: hook is mine)
    assert len(compat.forward_hooks(layer, lambda hook: True)) == 1
    layer(torch.ones(1, 2))


def test_torch_compiled_call():
    layer = nn.Linear(2, 2)
    assert compat.compiled_call(layer) is None
    layer.compile(backend="eager")
    compiled, seen = compat.compiled_call(layer), []
    compat.set_compiled_call(layer, lambda x: [seen.append(1), compiled(x)][1])
    layer(torch.ones(1, 2))
    assert seen == [1]


def test_accelerate_offloaded_weights():
    from accelerate import cpu_offload

    layer = nn.Linear(2, 2)
    weight = layer.weight.detach().clone()
    assert compat.offloaded_weights(layer) is None
    cpu_offload(layer, "cpu")
    assert layer.weight.device.type == "meta"
    assert torch.equal(compat.offloaded_weights(layer)["weight"], weight)


def test_diffusers_finds_our_classes():
    import diffusers

    assert diffusers.LegoPipeline is brickwork.LegoPipeline
    with pytest.raises(AttributeError, match="NoSuchName"):
        diffusers.NoSuchName  # noqa: B018


def test_before_call(tmp_path):
    class Network(brickwork.BlockTransformer2DModel):
        pass

    told = []

    def tell(*arguments):
        told.append(arguments)

    for _ in range(2):
        compat.before_call(Network, "save_pretrained", tell)
    network = Network(sample_size=4, num_layers=1, hidden_size=8, attention_head_dim=8)
    network.save_pretrained(tmp_path)
    assert told == [(network, tmp_path)] and (tmp_path / "config.json").is_file()


def test_diffusers_finds_variants_of_parts(tmp_path):
    from diffusers.pipelines import pipeline_utils

    compat.find_variants_of_parts()
    for name in ("unet/diffusion.fp16.safetensors", "transformer/network/diffusion.fp16-00001-of-2.safetensors",
                 "vae/diffusion.safetensors", "transformer/config.json", "other/x.fp16.safetensors"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    find, parts = pipeline_utils._identify_model_variants, dict.fromkeys(["unet", "transformer", "vae", "scheduler"])
    assert find(folder=str(tmp_path), variant="fp16", config=parts) == {"unet": "fp16", "transformer": "fp16"}
    assert find(folder=str(tmp_path), variant=None, config=parts) == {}
