"""Baking an adapter into a checkpoint, and the two commands."""

import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from brickwork import cli
from brickwork.adapters.comfyui.names import compvis_path, module_path
from brickwork.adapters.resadapter.base_norms import read_stream
from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.functions import (
    fuse_resadapter,
    load_resadapter,
    set_resadapter_scale,
)
from brickwork.adapters.resadapter.merge import merge_resadapter
from brickwork.files import digest


def single_file(unet, path, dtype=torch.float32):
    """A checkpoint in the original names, with a VAE tensor beside the UNet's."""
    tensors = {"first_stage_model.decoder.norm_out.weight": torch.ones(4)}
    for key, value in unet.state_dict().items():
        name, _, part = key.rpartition(".")
        name = compvis_path(name, 3) if module_path(name) else name
        tensors[f"model.diffusion_model.{name}.{part}"] = value.to(dtype, copy=True)
    save_file(tensors, path, {"title": "base"})
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", ["official", "comfyui"])
def test_single_file(unet, official, tmp_path, dtype, form):
    before = single_file(unet, tmp_path / "base.safetensors", dtype)
    adapter = official
    if form == "comfyui":
        (adapter,) = convert_resadapter(official, tmp_path / "one.safetensors", to="comfyui", base_model=unet)
    merged = merge_resadapter(tmp_path / "base.safetensors", adapter, tmp_path / "out" / "m.safetensors", scale=0.5)
    load_resadapter(unet, official, scale=0.5)
    fuse_resadapter(unet)
    expected = single_file(unet, tmp_path / "expected.safetensors", dtype)
    after = load_file(merged)
    assert after.keys() == before.keys()
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert len(changed) == 2 + 2 * 2 * (2 * 2 + 2 + 2 * 3)
    for key in after:
        assert after[key].dtype == before[key].dtype
        torch.testing.assert_close(after[key], expected[key], rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-3)
    with safe_open(merged, "pt") as opened:
        assert opened.metadata() == {"title": "base"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("sharded", [True, False])
def test_pipeline_folder(unet, official, helpers, tmp_path, sharded):
    unet.save_pretrained(tmp_path / "base" / "unet", **({"max_shard_size": "30KB"} if sharded else {}))
    (tmp_path / "base" / "model_index.json").write_text("{}")
    merged = merge_resadapter(tmp_path / "base", official, tmp_path / "merged", lora_scale=0.3, norm_scale=-0.2)
    assert (merged / "model_index.json").read_text() == "{}"
    load_resadapter(unet, official)
    set_resadapter_scale(unet, lora_scale=0.3, norm_scale=-0.2)
    again = UNet2DConditionModel.from_pretrained(merged / "unet").eval()
    torch.testing.assert_close(helpers.predict(again), helpers.predict(unet), rtol=0, atol=1e-5)


def test_merge_refuses(unet, official, helpers, tmp_path):
    single_file(unet, tmp_path / "base.safetensors")
    (tmp_path / "there").mkdir()
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    other = helpers.write_official(tmp_path / "sd", *helpers.random_adapter_tensors(helpers.make_unet("sd")))
    base, out = tmp_path / "base.safetensors", tmp_path / "out"
    for arguments, message in [
        ((base, official, tmp_path / "there"), "exists already"),
        ((tmp_path / "gone", official, out), "is not there"),
        ((tmp_path / "model.ckpt", official, out), "pickles"),
        ((tmp_path / "there", official, out), "has no weights of a UNet"),
        ((base, other, out), "does not fit"),
        ((base, tmp_path / "none", out), "does not exist"),
    ]:
        with pytest.raises(ValueError, match=message):
            merge_resadapter(*arguments)
    with pytest.raises(ValueError, match="scale=nan"):
        merge_resadapter(base, official, out, scale=float("nan"))
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter",
        "base.safetensors",
        "model.ckpt",
        "sd",
        "there",
    ]


def merged_like(unet, official, scale=0.5):
    """The UNet's tensors with the adapter fused."""
    load_resadapter(unet, official, scale=scale)
    fuse_resadapter(unet)
    return {key: value.clone() for key, value in unet.state_dict().items()}


def assert_merged(found, expected, atol=1e-5):
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key].float(), expected[key], rtol=0, atol=atol, msg=key)


def test_every_weight_file_of_a_folder(unet, official, tmp_path):
    """Variants, shards of a variant, pickles, and a checkpoint beside `unet/`: none is copied as it was."""
    base = tmp_path / "base"
    unet.save_pretrained(base / "unet")
    unet.save_pretrained(base / "unet", variant="non_ema")
    unet.save_pretrained(base / "unet", safe_serialization=False)
    half = UNet2DConditionModel.from_pretrained(base / "unet").half()
    half.save_pretrained(base / "unet", variant="fp16", max_shard_size="20KB")
    half.save_pretrained(tmp_path / "bin", variant="fp16", max_shard_size="20KB", safe_serialization=False)
    shutil.copytree(tmp_path / "bin", base / "unet", dirs_exist_ok=True)
    single_file(unet, base / "v1.safetensors")
    torch.save({"state_dict": dict(load_file(base / "v1.safetensors")), "global_step": 3}, base / "v1.ckpt")
    save_file({"a.lora_A.weight": torch.ones(1)}, base / "some_lora.safetensors")
    (base / "vae").mkdir()
    save_file({"x": torch.ones(1)}, base / "vae" / "diffusion_pytorch_model.safetensors")
    merged = merge_resadapter(base, official, tmp_path / "merged", scale=0.5)
    names = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    assert {str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file()} == names | {
        ".brickwork.json"
    }
    assert len([name for name in names if "-of-0" in name]) >= 4
    expected = merged_like(unet, official)
    unet_folder = merged / "unet"
    for variant, atol in ((None, 1e-5), ("non_ema", 1e-5), ("fp16", 2e-3)):
        for safe in (True, False):
            if variant == "non_ema" and not safe:
                continue
            again = UNet2DConditionModel.from_pretrained(unet_folder, variant=variant, use_safetensors=safe)
            assert_merged(again.state_dict(), expected, atol)
    single_file(unet, tmp_path / "expected.safetensors")
    expected = load_file(tmp_path / "expected.safetensors")
    assert_merged(load_file(merged / "v1.safetensors"), expected)
    checkpoint = torch.load(merged / "v1.ckpt", weights_only=True)
    assert_merged(checkpoint["state_dict"], expected)
    assert checkpoint["global_step"] == 3
    same = ("some_lora.safetensors", "vae/diffusion_pytorch_model.safetensors")
    assert all((merged / name).read_bytes() == (base / name).read_bytes() for name in same)


def test_averaged_weights_in_a_checkpoint(unet, official, tmp_path):
    tensors = single_file(unet, tmp_path / "base.safetensors")
    prefix = "model.diffusion_model."
    averaged = {
        f"model_ema.diffusion_model{key.removeprefix(prefix).replace('.', '')}": value.clone()
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
    save_file(tensors | averaged, tmp_path / "base.safetensors")
    found = load_file(merge_resadapter(tmp_path / "base.safetensors", official, tmp_path / "m.safetensors"))
    for key in averaged:
        own = next(k for k in tensors if f"model_ema.{k.removeprefix('model.').replace('.', '')}" == key)
        assert torch.equal(found[key], found[own])
    assert sum(not torch.equal(found[key], averaged[key]) for key in averaged) == 2 + 2 * 2 * (2 * 2 + 2 + 2 * 3)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_bases_in_eight_bits(unet, official, tmp_path, dtype):
    before = single_file(unet, tmp_path / "base.safetensors", dtype)
    after = load_file(merge_resadapter(tmp_path / "base.safetensors", official, tmp_path / "m.safetensors"))
    expected = single_file(unet, tmp_path / "x.safetensors", dtype)
    norms = load_file(official / "diffusion_pytorch_model.safetensors")
    key = "model.diffusion_model.middle_block.0.in_layers.0.weight"
    assert torch.equal(after[key].float(), norms["mid_block.resnets.0.norm1.weight"].to(dtype).float())
    assert {tensor.dtype for name, tensor in after.items() if name in expected and "model." in name} - {dtype} <= {
        torch.float32
    }
    save_file(before | {"scaled_fp8": torch.ones(1)}, tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match="8-bit weights with scales"):
        merge_resadapter(tmp_path / "base.safetensors", official, tmp_path / "n.safetensors")
    with open(tmp_path / "x.safetensors", "rb") as stream:
        found = read_stream(stream, ["mid_block.resnets.0.norm1.weight"], "hub")
    assert found["mid_block.resnets.0.norm1.weight"].dtype == dtype


@pytest.mark.parametrize(
    "name, message",
    [
        ("unet/diffusion_flax_model.msgpack", "form that cannot be merged"),
        ("unet/model.onnx", "form that cannot be merged"),
        ("unet/q4.gguf", "form that cannot be merged"),
        ("unet/diffusion_pytorch_model.bin", "plain tensors are read alone"),
        ("v1.ckpt", "plain tensors are read alone"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "no readable safetensors file"),
        ("unet/diffusion_pytorch_model.safetensors.index.fp16.json", "no index of shards"),
    ],
)
def test_weights_that_would_be_copied_unmerged(unet, official, tmp_path, name, message):
    unet.save_pretrained(tmp_path / "base" / "unet")
    (tmp_path / "base" / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ValueError, match=message) as caught:
        merge_resadapter(tmp_path / "base", official, tmp_path / "merged")
    assert str(tmp_path / "base" / name) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_shards_that_are_missing(unet, official, tmp_path):
    unet.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    next(tmp_path.glob("base/*-00002-of-*")).unlink()
    with pytest.raises(ValueError, match="lacks 1 .diffusion_pytorch_model-00002-of"):
        merge_resadapter(tmp_path / "base", official, tmp_path / "merged")


def test_values_that_a_type_cannot_hold(unet, official, tmp_path):
    single_file(unet, tmp_path / "base.safetensors", torch.float16)
    with pytest.raises(ValueError, match="values that torch.float16 cannot hold"):
        merge_resadapter(tmp_path / "base.safetensors", official, tmp_path / "m.safetensors", scale=1e6)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_hash_that_the_base_states_is_made_anew(unet, official, tmp_path):
    tensors = single_file(unet, tmp_path / "base.safetensors")
    notes = {"modelspec.title": "mine", "modelspec.hash_sha256": "0xold", "ss_sd_model_name": "x"}
    save_file(tensors, tmp_path / "base.safetensors", notes)
    merged = merge_resadapter(tmp_path / "base.safetensors", official, tmp_path / "m.safetensors")
    with safe_open(merged, "pt") as opened:
        stated = opened.metadata()
    data = merged.read_bytes()
    fresh = digest(data[8 + int.from_bytes(data[:8], "little") :])
    assert stated == notes | {"modelspec.hash_sha256": f"0x{fresh}"}


def command(*words) -> int:
    return cli.main([str(word) for word in words])


def test_convert_command(unet, official, tmp_path, capsys):
    unet.save_pretrained(tmp_path / "base" / "unet")
    out = tmp_path / "one.safetensors"
    base = ["--base-model", tmp_path / "base"]
    assert command("convert", "resadapter", official, out, "--to", "comfyui", *base, "--norm-type", "float32") == 0
    assert f"wrote {out} (0.0 MB)" in capsys.readouterr().out
    assert load_file(out)["lora_unet_mid_block_resnets_0_norm1.w_norm"].dtype == torch.float32
    assert command("convert", "resadapter", official, "-o", out, "--to", "comfyui", *base) == 2
    assert "which is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out.safetensors", "--to", "comfui"], "`--to` is 'comfui'"),
        (["out.safetensors", "--to", "comfyui"], "needs --base-model, the model"),
        (["--to", "comfyui"], "DST is missing; say where to write as the last word, or with -o"),
    ],
)
def test_errors_speak_of_options(official, tmp_path, capsys, words, message):
    assert command("convert", "resadapter", official, *words) == 2
    error = capsys.readouterr().err
    assert message in error and "base_model" not in error and "to='" not in error


def test_merge_command(unet, official, tmp_path, capsys):
    single_file(unet, tmp_path / "base.safetensors")
    assert command("merge", tmp_path / "base.safetensors", official, tmp_path / "m.safetensors", "--scale", "0.5") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'm.safetensors'}\n"
