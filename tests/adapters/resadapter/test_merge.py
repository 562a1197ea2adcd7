"""Baking an adapter into a checkpoint, and the two commands."""

import argparse

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from brickwork.adapters.comfyui.names import compvis_path, module_path
from brickwork.adapters.resadapter import convert, merge
from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.functions import (
    fuse_resadapter,
    load_resadapter,
    set_resadapter_scale,
)
from brickwork.adapters.resadapter.merge import merge_resadapter


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
        ((tmp_path / "gone", official, out), "does not exist"),
        ((tmp_path / "model.ckpt", official, out), "pickles"),
        ((tmp_path / "there", official, out), "has neither"),
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


def command(module, *arguments):
    parser = argparse.ArgumentParser()
    module.configure_parser(parser)
    parsed = parser.parse_args([str(argument) for argument in arguments])
    return parsed.run(parsed)


def test_convert_command(unet, official, tmp_path, capsys):
    unet.save_pretrained(tmp_path / "base" / "unet")
    out = tmp_path / "one.safetensors"
    command(convert, official, out, "--to", "comfyui", "--base-model", tmp_path / "base", "--norm-type", "float32")
    assert f"wrote {out} (0.0 MB)" in capsys.readouterr().out
    assert load_file(out)["lora_unet_mid_block_resnets_0_norm1.w_norm"].dtype == torch.float32
    with pytest.raises(ValueError, match="exists already"):
        command(convert, official, out, "--to", "comfyui", "--base-model", tmp_path / "base")


def test_merge_command(unet, official, tmp_path, capsys):
    single_file(unet, tmp_path / "base.safetensors")
    command(merge, tmp_path / "base.safetensors", official, tmp_path / "m.safetensors", "--scale", "0.5")
    assert capsys.readouterr().out == f"wrote {tmp_path / 'm.safetensors'}\n"


@pytest.mark.parametrize("module", [convert, merge])
def test_help_shows_an_example(module):
    parser = argparse.ArgumentParser()
    module.configure_parser(parser)
    assert "example:\n  brickwork " in parser.format_help()
