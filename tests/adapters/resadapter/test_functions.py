"""Loading, scaling, switching, fusing and unloading, against the base and the authors' own procedure."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file

from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.functions import (
    disable_resadapter,
    enable_resadapter,
    fuse_resadapter,
    load_resadapter,
    save_resadapter,
    set_resadapter_scale,
    unfuse_resadapter,
    unload_resadapter,
    use_resadapter,
)


def snapshot(unet):
    return {key: value.clone() for key, value in unet.state_dict().items()}


def assert_same_state(unet, before):
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_scale_one_equals_the_authors_procedure(pipelines, helpers, tmp_path, kind):
    ours, theirs = copy.deepcopy(pipelines[kind]), copy.deepcopy(pipelines[kind])
    folder = helpers.write_official(tmp_path, *helpers.random_adapter_tensors(ours.unet))
    theirs.load_lora_weights(folder / "pytorch_lora_weights.safetensors", adapter_name="res_adapter")
    theirs.set_adapters(["res_adapter"], adapter_weights=[1.0])
    theirs.unet.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=False)
    base = helpers.generate(ours)
    load_resadapter(ours, folder)
    expected = helpers.generate(theirs)
    assert (expected - base).abs().max() > 0.1  # the adapter does something
    assert (helpers.generate(ours) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_off_means_off(pipelines, helpers, tmp_path, kind):
    pipe = copy.deepcopy(pipelines[kind])
    folder = helpers.write_official(tmp_path, *helpers.random_adapter_tensors(pipe.unet))
    base, before = helpers.generate(pipe, width=96), snapshot(pipe.unet)
    load_resadapter(pipe, folder)
    on = helpers.generate(pipe, width=96)
    assert not torch.equal(on, base)
    assert_same_state(pipe.unet, before)  # a loaded adapter is no part of the model's state
    set_resadapter_scale(pipe, 0.0)
    assert torch.equal(helpers.generate(pipe, width=96), base)
    assert not {type(module).__name__ for module in pipe.unet.modules()} & {"AdaptedConv2d", "AdaptedGroupNorm"}
    set_resadapter_scale(pipe, 1.0)
    disable_resadapter(pipe)
    assert torch.equal(helpers.generate(pipe, width=96), base)
    enable_resadapter(pipe)
    assert torch.equal(helpers.generate(pipe, width=96), on)
    unload_resadapter(pipe)
    assert torch.equal(helpers.generate(pipe, width=96), base)
    assert_same_state(pipe.unet, before)


def test_identity_of_an_adapter_that_changes_nothing(unet, helpers, tmp_path):
    lora, norms = helpers.random_adapter_tensors(unet)
    lora = {key: value * 0 if "lora_up" in key else value for key, value in lora.items()}
    norms = {key: value.detach().clone() for key, value in unet.state_dict().items() if key in norms}
    base = helpers.predict(unet)
    load_resadapter(unet, helpers.write_official(tmp_path, lora, norms))
    assert torch.equal(helpers.predict(unet), base)


@pytest.mark.parametrize("batch, size", [(1, (8, 6)), (3, (5, 9))])
def test_halves_add_up(unet, official, helpers, batch, size):
    """At lora_scale=a and norm_scale=b the weights are base + a x LoRA and own + b x (adapter's - own)."""
    lora = load_file(official / "pytorch_lora_weights.safetensors")
    norms = load_file(official / "diffusion_pytorch_model.safetensors")
    expected = copy.deepcopy(unet)
    state = expected.state_dict()
    for key in [key for key in lora if key.endswith("lora_up.weight")]:
        name = key.removesuffix(".lora_up.weight")
        down, up = lora[f"{name}.lora_down.weight"].float(), lora[key].float()
        path = next(p for p, _ in unet.named_modules() if "lora_unet_" + p.replace(".", "_") == name)
        state[f"{path}.weight"] += 0.7 * (1.5 / 3) * torch.einsum("or,rixy->oixy", up[:, :, 0, 0], down)
    for key, value in norms.items():
        state[key] += 0.2 * (value - state[key])
    load_resadapter(unet, official, scale=1.0)
    set_resadapter_scale(unet, lora_scale=0.7, norm_scale=0.2)
    close = helpers.predict(expected, *size, batch=batch)
    torch.testing.assert_close(helpers.predict(unet, *size, batch=batch), close, rtol=0, atol=1e-5)


def test_fused_equals_unfused_and_costs_nothing(unet, official, official_b, helpers):
    base, before = helpers.predict(unet), snapshot(unet)
    load_resadapter(unet, official, "a", scale=0.8)
    load_resadapter(unet, official_b, "b", scale=-0.5)
    both = helpers.predict(unet)
    fuse_resadapter(unet, "b")
    torch.testing.assert_close(helpers.predict(unet), both, rtol=0, atol=1e-5)
    fuse_resadapter(unet, "a")
    torch.testing.assert_close(helpers.predict(unet), both, rtol=0, atol=1e-5)
    classes = {type(module).__name__ for module in unet.modules()}
    assert not {name for name in classes if "Adapted" in name}  # the same modules, so the same operations
    with pytest.raises(ValueError, match="'a' was fused after 'b'"):
        unfuse_resadapter(unet, "b")
    with pytest.raises(ValueError, match="while fused"):
        set_resadapter_scale(unet, 0.1, "a")
    with pytest.raises(ValueError, match="is fused already"):
        fuse_resadapter(unet, "a")
    unfuse_resadapter(unet)
    assert torch.equal(helpers.predict(unet), both)
    fuse_resadapter(unet)
    unload_resadapter(unet)
    assert torch.equal(helpers.predict(unet), base)
    assert_same_state(unet, before)


def test_fused_runs_the_operations_of_the_base(unet, official, helpers):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    counts = []
    for prepare in (lambda: None, lambda: load_resadapter(unet, official), lambda: fuse_resadapter(unet)):
        prepare()
        names: list[str] = []
        with Count():
            helpers.predict(unet)
        counts.append(names)
    assert counts[0] == counts[2]
    assert len(counts[1]) > len(counts[0])


def test_unfuse_refuses_weights_changed_since(unet, official, helpers):
    load_resadapter(unet, official)
    fuse_resadapter(unet)
    weight = unet.down_blocks[0].downsamplers[0].conv.weight
    changed = helpers.predict(unet)
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1.0
        changed = helpers.predict(unet)
        with pytest.raises(ValueError, match="have changed since"):
            unfuse_resadapter(unet)
        with pytest.raises(ValueError, match="have changed since"):
            unload_resadapter(unet)
        assert torch.equal(helpers.predict(unet), changed)  # a refusal touches nothing


def test_unfusing_several_is_all_or_nothing(unet, helpers, tmp_path):
    lora, norms = helpers.random_adapter_tensors(unet)
    load_resadapter(unet, helpers.write_official(tmp_path / "lora", lora, {}), "lora")
    load_resadapter(unet, helpers.write_official(tmp_path / "norms", {}, norms), "norms")
    fuse_resadapter(unet)
    with torch.no_grad():
        unet.down_blocks[0].downsamplers[0].conv.weight[0] += 1.0  # the first fused can no longer be undone
    before = snapshot(unet)
    with pytest.raises(ValueError, match="cannot unfuse 'lora'"):
        unfuse_resadapter(unet)
    assert_same_state(unet, before)
    unfuse_resadapter(unet, "norms")
    assert torch.equal(unet.mid_block.resnets[0].norm1.weight, torch.ones(16))


def test_reference_is_the_base_even_after_fusing(unet, official, official_b, helpers):
    """A second adapter's norms are compared with the model's own, not with what fusing the first one made of them."""
    load_resadapter(unet, official, "a")
    load_resadapter(unet, official_b, "b")
    expected = helpers.predict(unet)
    unload_resadapter(unet, "b")
    fuse_resadapter(unet, "a")
    load_resadapter(unet, official_b, "b")
    torch.testing.assert_close(helpers.predict(unet), expected, rtol=0, atol=1e-5)


def test_order_of_several_does_not_matter(unet, official, official_b, helpers):
    load_resadapter(unet, official, "a", scale=0.5)
    load_resadapter(unet, official_b, "b", scale=0.25)
    one = helpers.predict(unet)
    unload_resadapter(unet)
    load_resadapter(unet, official_b, "b", scale=0.25)
    load_resadapter(unet, official, "a", scale=0.5)
    torch.testing.assert_close(helpers.predict(unet), one, rtol=0, atol=1e-6)
    unload_resadapter(unet, "b")
    load_resadapter(copy_ := helpers.make_unet("two"), official, scale=0.5)
    assert torch.equal(helpers.predict(unet), helpers.predict(copy_))


def test_delta_keeps_a_personalised_models_norms(unet, official, helpers):
    base = copy.deepcopy(unet)
    norms = load_file(official / "diffusion_pytorch_model.safetensors")
    with torch.no_grad():
        for key, value in unet.state_dict().items():
            if key in norms:
                value.add_(0.125)
    expected = copy.deepcopy(unet)
    for key, value in expected.state_dict().items():
        if key in norms:
            value.add_(norms[key] - base.state_dict()[key])
    load_resadapter(unet, official, norm_mode="delta", base_model=base)
    set_resadapter_scale(unet, lora_scale=0.0)
    torch.testing.assert_close(helpers.predict(unet), helpers.predict(expected), rtol=0, atol=1e-5)
    set_resadapter_scale(unet, 0.0)
    with pytest.raises(ValueError, match="needs base_model"):
        load_resadapter(unet, official, "other", norm_mode="delta")
    with pytest.raises(ValueError, match="base_model has no part in norm_mode='replace'"):
        load_resadapter(unet, official, "other", base_model=base)


def test_a_file_of_differences_on_a_personalised_model(unet, official, helpers, tmp_path):
    """Differences are added to the norms a model has; with the base given, "replace" restores absolute values."""
    base = copy.deepcopy(unet)
    (one,) = convert_resadapter(official, tmp_path / "one.safetensors", to="comfyui", base_model=base)
    with torch.no_grad():
        for key, value in unet.state_dict().items():
            if ".resnets." in key and ".norm" in key:
                value.add_(0.125)
    twin = copy.deepcopy(unet)
    load_resadapter(unet, one)
    load_resadapter(twin, official, norm_mode="delta", base_model=base)
    torch.testing.assert_close(helpers.predict(unet), helpers.predict(twin), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="differences from another base"):
        save_resadapter(unet, tmp_path / "saved")
    save_resadapter(unet, tmp_path / "saved", base_model=base)
    name = "diffusion_pytorch_model.safetensors"
    saved, original = load_file(tmp_path / "saved" / name), load_file(official / name)
    assert all(torch.equal(saved[key], original[key]) for key in original)
    unload_resadapter(unet)
    unload_resadapter(twin)
    load_resadapter(unet, one, base_model=base)
    load_resadapter(twin, official)
    torch.testing.assert_close(helpers.predict(unet), helpers.predict(twin), rtol=0, atol=1e-6)
    unload_resadapter(unet)
    with pytest.raises(ValueError, match="base_model has no part in norm_mode='delta'"):
        load_resadapter(unet, one, norm_mode="delta", base_model=base)


def test_saved_in_every_form(unet, official, helpers, tmp_path):
    load_resadapter(unet, official)
    expected = helpers.predict(unet)
    for to, name in (("comfyui", "one.safetensors"), ("diffusers", "two.safetensors")):
        save_resadapter(unet, tmp_path / name, to=to)
        load_resadapter(again := helpers.make_unet("two"), tmp_path / name)
        torch.testing.assert_close(helpers.predict(again), expected, rtol=0, atol=1e-6)
        save_resadapter(again, tmp_path / to)
        for part in ("pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors"):
            one, other = load_file(official / part), load_file(tmp_path / to / part)
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_saved_file_holds_the_adapter_alone(unet, official, tmp_path):
    load_resadapter(unet, official, scale=0.3)
    saved = save_resadapter(unet, tmp_path / "saved")
    assert [path.name for path in saved] == ["pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors"]
    for path in saved:
        tensors, original = load_file(path), load_file(official / path.name)
        assert tensors.keys() == original.keys()
        assert all(torch.equal(tensors[k], original[k]) and tensors[k].dtype == original[k].dtype for k in tensors)
    with pytest.raises(ValueError, match="which is there already"):
        save_resadapter(unet, tmp_path / "saved")


def test_halves_alone(unet, helpers, tmp_path):
    lora, norms = helpers.random_adapter_tensors(unet)
    load_resadapter(unet, helpers.write_official(tmp_path / "lora", lora, {}), "lora")
    load_resadapter(unet, helpers.write_official(tmp_path / "norms", {}, norms), "norms")
    apart = helpers.predict(unet)
    unload_resadapter(unet)
    load_resadapter(unet, helpers.write_official(tmp_path / "both", lora, norms))
    torch.testing.assert_close(helpers.predict(unet), apart, rtol=0, atol=1e-6)


def test_context_manager_leaves_nothing(unet, official, helpers):
    base = helpers.predict(unet)
    with pytest.raises(RuntimeError), use_resadapter(unet, official, scale=0.5):
        assert not torch.equal(helpers.predict(unet), base)
        fuse_resadapter(unet)
        raise RuntimeError("inside")
    assert torch.equal(helpers.predict(unet), base)
    assert "_resadapters" not in vars(unet)


def test_copies_are_independent(unet, official, helpers):
    base = helpers.predict(unet)
    load_resadapter(unet, official)
    on = helpers.predict(unet)
    twin = copy.deepcopy(unet)
    unload_resadapter(twin)
    assert torch.equal(helpers.predict(twin), base)
    assert torch.equal(helpers.predict(unet), on)


def test_auto_scale_follows_the_size_asked_for(pipelines, helpers, tmp_path):
    pipe = copy.deepcopy(pipelines["sd"])  # trained, it says, on 64 px
    folder = helpers.write_official(tmp_path, *helpers.random_adapter_tensors(pipe.unet))
    load_resadapter(pipe, folder, scale="auto")
    fixed = copy.deepcopy(pipelines["sd"])
    load_resadapter(fixed, folder, scale=1.0)
    assert torch.equal(helpers.generate(pipe, 32, 64), helpers.generate(fixed, 32, 64))
    set_resadapter_scale(fixed, 0.3)
    assert torch.equal(helpers.generate(pipe, 128, 128), helpers.generate(fixed, 128, 128))
    set_resadapter_scale(fixed, 1.0)
    assert torch.equal(helpers.generate(pipe, 64, 64), helpers.generate(fixed, 64, 64))
    set_resadapter_scale(pipe, 0.5)
    set_resadapter_scale(fixed, 0.5)
    assert torch.equal(helpers.generate(pipe, 128, 64), helpers.generate(fixed, 128, 64))
    unload_resadapter(pipe)
    assert not pipe.unet._forward_pre_hooks and not pipe.unet._forward_hooks


def test_auto_scale_needs_a_training_size(unet, official):
    unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="scale='auto' needs the UNet's config.sample_size"):
        load_resadapter(unet, official, scale="auto")
    load_resadapter(unet, official)
    with pytest.raises(ValueError, match="norm_scale='auto' needs"):
        set_resadapter_scale(unet, norm_scale="auto")


def test_auto_scale_warns_outside_the_stated_sizes(helpers, tmp_path):
    unet = helpers.make_unet("two")
    folder = tmp_path / "resadapter_v1_sd1.5_interpolation"  # stated: 128 to 512, ratio up to 2
    helpers.write_official(folder, *helpers.random_adapter_tensors(unet))
    load_resadapter(unet, folder, scale="auto")
    with pytest.warns(UserWarning, match="trained for 128 to 512"):
        helpers.predict(unet, 8, 8)
    with pytest.warns(UserWarning, match="aspect ratio of 3.00"):
        helpers.predict(unet, 48, 16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", True, None])
def test_bad_scales_are_refused(unet, official, value):
    with pytest.raises(ValueError, match="scale"):
        load_resadapter(unet, official, scale=value)
    load_resadapter(unet, official)
    with pytest.raises(ValueError, match="scale"):
        set_resadapter_scale(unet, value)


def test_names_are_checked(unet, official):
    with pytest.raises(ValueError, match="no ResAdapter is loaded"):
        set_resadapter_scale(unet, 0.5)
    with pytest.raises(ValueError, match="`norm_mode` is 'add'"):
        load_resadapter(unet, official, norm_mode="add")
    load_resadapter(unet, official, "a")
    with pytest.raises(ValueError, match="'a' is in use"):
        load_resadapter(unet, official, "a")
    with pytest.raises(ValueError, match="loaded are: a"):
        disable_resadapter(unet, "b")
    with pytest.raises(ValueError, match="is not fused"):
        unfuse_resadapter(unet, "a")
    with pytest.raises(ValueError, match="need a StableDiffusion"):
        load_resadapter(torch.nn.Linear(2, 2), official)
    load_resadapter(unet, official, "b")
    with pytest.raises(ValueError, match="name one of a, b"):
        save_resadapter(unet, "nowhere")


def test_a_refused_adapter_leaves_the_pipeline_alone(pipelines, helpers, tmp_path):
    pipe = copy.deepcopy(pipelines["sd"])
    before = snapshot(pipe.unet)
    folder = helpers.write_official(tmp_path, *helpers.random_adapter_tensors(pipelines["xl"].unet))
    with pytest.raises(ValueError, match="does not fit this UNet2DConditionModel"):
        load_resadapter(pipe, folder)
    assert_same_state(pipe.unet, before)
    assert not {name for name in vars(pipe.unet) if "resadapter" in name}
    assert not {type(module).__name__ for module in pipe.unet.modules()} & {"AdaptedConv2d", "AdaptedGroupNorm"}


def test_saving_says_what_is_not_saved(pipelines, helpers, tmp_path):
    pipe = copy.deepcopy(pipelines["sd"])
    folder = helpers.write_official(tmp_path / "adapter", *helpers.random_adapter_tensors(pipe.unet))
    before = snapshot(pipe.unet)
    load_resadapter(pipe, folder, adapter_name="sizes")
    with pytest.warns(UserWarning, match="the ResAdapters .'sizes'. are not saved with the UNet2DConditionModel"):
        pipe.unet.save_pretrained(tmp_path / "unet")
    saved = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[key], before[key]) for key in before)
    copied = copy.deepcopy(pipe.unet)
    fuse_resadapter(pipe)
    with pytest.warns(UserWarning, match="'sizes'. are fused, and are saved as part of"):
        pipe.unet.save_pretrained(tmp_path / "fused")
    with pytest.warns(UserWarning, match="are not saved"):
        copied.save_pretrained(tmp_path / "copied")
    unfuse_resadapter(pipe)
    unload_resadapter(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.unet.save_pretrained(tmp_path / "plain")
