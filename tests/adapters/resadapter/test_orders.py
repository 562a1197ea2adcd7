"""Whatever is done in whatever order, taking everything off comes back to the base bit for bit."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from brickwork.adapters.resadapter.functions import (
    disable_resadapter,
    enable_resadapter,
    fuse_resadapter,
    load_resadapter,
    set_resadapter_scale,
    unfuse_resadapter,
    unload_resadapter,
)

NAMES = st.sampled_from(["a", "b", "c"])
SCALES = st.floats(-2, 2, width=16)
STEPS = st.one_of(
    st.tuples(st.just("load"), NAMES, SCALES),
    st.tuples(st.just("scale"), NAMES, SCALES),
    st.tuples(st.just("halves"), NAMES, st.tuples(SCALES, SCALES)),
    st.tuples(st.sampled_from(["fuse", "unfuse", "enable", "disable", "unload"]), NAMES, st.none()),
    st.tuples(st.sampled_from(["lora on", "lora off"]), st.sampled_from(["x", "y"]), st.none()),
)


def do(unet, folders, action, name, value):
    if action == "load":
        load_resadapter(unet, folders[name], name, scale=value)
    elif action == "scale":
        set_resadapter_scale(unet, value, name)
    elif action == "halves":
        set_resadapter_scale(unet, adapter_name=name, lora_scale=value[0], norm_scale=value[1])
    elif action == "lora on":
        if name not in getattr(unet, "peft_config", {}):
            targets = ["downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"]
            unet.add_adapter(LoraConfig(r=1, target_modules=targets, init_lora_weights=False), name)
    elif action == "lora off":
        if getattr(unet, "peft_config", None):
            unet.unload_lora()
    else:
        actions = {
            "fuse": fuse_resadapter,
            "unfuse": unfuse_resadapter,
            "enable": enable_resadapter,
            "disable": disable_resadapter,
            "unload": unload_resadapter,
        }
        actions[action](unet, name)


@pytest.fixture(scope="module")
def prepared(helpers, tmp_path_factory):
    unet = helpers.make_unet("two")
    folder = tmp_path_factory.mktemp("adapters")
    folders = {
        name: helpers.write_official(folder / name, *helpers.random_adapter_tensors(unet, rank=rank, seed=seed))
        for seed, (name, rank) in enumerate({"a": 1, "b": 3, "c": 2}.items())
    }
    state = {key: value.clone() for key, value in unet.state_dict().items()}
    return unet, folders, state, helpers.predict(unet)


@given(steps=st.lists(STEPS, min_size=1, max_size=12))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_comes_back_to_the_base(prepared, helpers, steps):
    unet, folders, state, base = prepared
    unet = copy.deepcopy(unet)  # what one example breaks does not reach the next
    for action, name, value in steps:
        before = helpers.predict(unet)
        try:
            do(unet, folders, action, name, value)
        except ValueError:
            assert torch.equal(helpers.predict(unet), before)  # a refusal changes nothing
    if getattr(unet, "peft_config", None):
        unet.unload_lora()
    if "_resadapters" in vars(unet):
        unload_resadapter(unet)
    after = unet.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[key], state[key]) for key in state)
    assert torch.equal(helpers.predict(unet), base)
    assert not {name for name in vars(unet) if "resadapter" in name}


@given(rank=st.integers(1, 5), alpha=st.one_of(st.none(), st.floats(0.25, 32, width=16)), seed=st.integers(0, 999),
       scale=SCALES)  # fmt: skip
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fused_equals_unfused_for_any_adapter(prepared, helpers, tmp_path_factory, rank, alpha, seed, scale):
    unet, _, _, base = prepared
    tensors = helpers.random_adapter_tensors(unet, rank=rank, alpha=alpha, seed=seed, size=0.1)
    load_resadapter(unet, helpers.write_official(tmp_path_factory.mktemp("one"), *tensors), scale=scale)
    on = helpers.predict(unet)
    fuse_resadapter(unet)
    fused = helpers.predict(unet)
    unload_resadapter(unet)
    torch.testing.assert_close(fused, on, rtol=1e-4, atol=1e-5)
    assert torch.equal(helpers.predict(unet), base)
