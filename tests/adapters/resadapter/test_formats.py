"""Every form into every other and back, bit for bit; what stock diffusers makes of ours; and what is refused."""

import json
import struct

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from brickwork import cli
from brickwork.adapters.base import KIND_KEY, KINDS
from brickwork.adapters.comfyui.names import FAMILIES, compvis_path, kohya_name, module_path, parse_key, unet_layout
from brickwork.adapters.comfyui.reading import read_adapter
from brickwork.adapters.resadapter.base_norms import read_base_norms, read_stream
from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.functions import load_resadapter

FORMS = {"official": "folder", "diffusers": "lora.safetensors", "comfyui": "one.safetensors"}
LORA, NORMS = "pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors"


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_names_agree_in_all_their_forms(family):
    convs, norms = unet_layout(family.channels)
    compvis = {path: compvis_path(path, len(family.channels)) for path in [*convs, *norms]}
    assert len(set(compvis.values())) == len(compvis)
    for path, name in compvis.items():
        for spelling in (path, name, path.replace(".", "_"), name.replace(".", "_")):
            assert module_path(spelling) == path
        assert parse_key(kohya_name(name) + (".alpha" if path in convs else ".w_norm"))[0] == path
        assert parse_key(f"model.diffusion_model.{name}.weight") == (None if path in convs else (path, "weight"))


def test_compvis_names_are_those_of_the_original_checkpoints():
    """Spot checks against the published key lists of SD 1.5 and SDXL."""
    assert compvis_path("up_blocks.0.upsamplers.0.conv", 4) == "output_blocks.2.1.conv"
    assert compvis_path("up_blocks.0.upsamplers.0.conv", 3) == "output_blocks.2.2.conv"
    assert compvis_path("up_blocks.1.upsamplers.0.conv", 4) == "output_blocks.5.2.conv"
    assert compvis_path("down_blocks.2.downsamplers.0.conv", 4) == "input_blocks.9.0.op"
    assert compvis_path("down_blocks.1.resnets.0.norm2", 4) == "input_blocks.4.0.out_layers.0"
    assert compvis_path("mid_block.resnets.1.norm1", 3) == "middle_block.2.in_layers.0"
    assert compvis_path("up_blocks.2.resnets.1.norm1", 3) == "output_blocks.7.0.in_layers.0"
    for other in ("input_blocks.0.0", "input_blocks.3.0.in_layers.0", "input_blocks.1.1.norm", "out.0"):
        assert module_path(other) is None


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("alpha", [1.5, None])
def test_round_trips_are_exact(unet, helpers, tmp_path, first, second, alpha):
    src = helpers.write_official(tmp_path / "src", *helpers.random_adapter_tensors(unet, alpha=alpha))
    convert_resadapter(src, tmp_path / "1" / FORMS[first], to=first, base_model=unet)
    convert_resadapter(tmp_path / "1" / FORMS[first], tmp_path / "2" / FORMS[second], to=second, base_model=unet)
    convert_resadapter(tmp_path / "2" / FORMS[second], tmp_path / "back", to="official", base_model=unet)
    for name in (LORA, NORMS):
        assert_same_tensors(load_file(src / name), load_file(tmp_path / "back" / name))


@given(
    st.lists(st.tuples(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32)), min_size=1, max_size=40),
    st.sampled_from([torch.float32, torch.float16]),
)
@settings(max_examples=60)
def test_float64_differences_come_back_exactly(pairs, dtype):
    """For any float32 value whose size is not 2^27 times below the base's, or zero."""
    pairs = [(a, b) for a, b in pairs if a == 0 or abs(b) < abs(a) * 2**27]
    value, base = (torch.tensor(list(column), dtype=torch.float32) for column in (zip(*pairs) if pairs else ([], [])))
    base = base.to(dtype)
    difference = value.double() - base.double()
    assert torch.equal((base.double() + difference).to(torch.float32), value)


def test_every_form_loads_and_acts_alike(unet, official, helpers, tmp_path):
    load_resadapter(twin := helpers.make_unet("two"), official, scale=0.6)
    expected = helpers.predict(twin)
    for form, name in FORMS.items():
        convert_resadapter(official, tmp_path / form / name, to=form, base_model=unet)
        load_resadapter(other := helpers.make_unet("two"), tmp_path / form / name, scale=0.6)
        torch.testing.assert_close(helpers.predict(other), expected, rtol=0, atol=1e-6)


def test_older_file_names(official, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (official / LORA).rename(old / "resolution_lora.safetensors")
    (official / NORMS).rename(old / "resolution_normalization.safetensors")
    adapter = read_adapter(old)
    assert len(adapter.convs) == 2 and len(adapter.norms) == 4 * (2 * 2 + 2 + 2 * 3)
    assert read_adapter(old / "resolution_lora.safetensors").norms.keys() == adapter.norms.keys()


def test_stock_diffusers_takes_the_diffusers_form(pipelines, helpers, tmp_path):
    import copy

    pipe, theirs = copy.deepcopy(pipelines["sd"]), copy.deepcopy(pipelines["sd"])
    lora, _ = helpers.random_adapter_tensors(pipe.unet)
    src = helpers.write_official(tmp_path / "src", lora, {})
    (written,) = convert_resadapter(src, tmp_path / "lora.safetensors", to="diffusers")
    theirs.load_lora_weights(written)
    load_resadapter(pipe, src)
    torch.testing.assert_close(helpers.predict(theirs.unet), helpers.predict(pipe.unet), rtol=0, atol=1e-5)


def test_stock_diffusers_honours_alpha_and_rank_of_each_layer(pipelines, helpers, tmp_path):
    import copy

    pipe, theirs = copy.deepcopy(pipelines["sd"]), copy.deepcopy(pipelines["sd"])
    lora, _ = helpers.random_adapter_tensors(pipe.unet, rank=4, alpha=2.0)
    name = "lora_unet_up_blocks_1_upsamplers_0_conv"
    lora[f"{name}.lora_down.weight"] = lora[f"{name}.lora_down.weight"][:2].clone()
    lora[f"{name}.lora_up.weight"] = lora[f"{name}.lora_up.weight"][:, :2].clone()
    lora["lora_unet_down_blocks_0_downsamplers_0_conv.alpha"] = torch.tensor(7.0)
    src = helpers.write_official(tmp_path / "src", lora, {})
    (written,) = convert_resadapter(src, tmp_path / "lora.safetensors", to="diffusers")
    theirs.load_lora_weights(written)
    load_resadapter(pipe, src)
    torch.testing.assert_close(helpers.predict(theirs.unet), helpers.predict(pipe.unet), rtol=0, atol=1e-5)


def test_the_single_file(unet, official, tmp_path):
    (path,) = convert_resadapter(official, tmp_path / "one.safetensors", to="comfyui", base_model=unet)
    tensors, own = load_file(path), unet.state_dict()
    norms = load_file(official / NORMS)
    key = "down_blocks.1.resnets.0.norm1"
    weight = tensors["lora_unet_down_blocks_1_resnets_0_norm1.w_norm"]
    assert weight.dtype == torch.float64
    assert torch.equal(weight, norms[f"{key}.weight"].double() - own[f"{key}.weight"].double())
    assert tensors.keys() > load_file(official / LORA).keys()
    (path,) = convert_resadapter(
        official, tmp_path / "32.safetensors", to="comfyui", base_model=unet, norm_type="float32"
    )
    assert load_file(path)["lora_unet_down_blocks_1_resnets_0_norm1.b_norm"].dtype == torch.float32
    (again,) = convert_resadapter(
        tmp_path / "one.safetensors", tmp_path / "again.safetensors", to="comfyui", norm_type="float32"
    )
    assert_same_tensors(load_file(again), load_file(path))


def test_sdxl_is_written_in_compvis_names(helpers, tmp_path):
    convs, norms = unet_layout((320, 640, 1280))
    lora, absolute = {}, {}
    for path, (out, inside) in convs.items():
        lora |= {
            f"{kohya_name(path)}.lora_down.weight": torch.ones(1, inside, 3, 3).half(),
            f"{kohya_name(path)}.lora_up.weight": torch.ones(out, 1, 1, 1).half(),
        }
    for path, width in norms.items():
        absolute |= {f"{path}.{part}": torch.ones(width) for part in ("weight", "bias")}
    src = helpers.write_official(tmp_path / "resadapter_v2_sdxl", lora, absolute)
    base = tmp_path / "base.safetensors"
    save_file(
        {
            f"model.diffusion_model.{compvis_path(k.rpartition('.')[0], 3)}.{k.rpartition('.')[2]}": v * 0.5
            for k, v in absolute.items()
        },
        base,
    )
    (path,) = convert_resadapter(src, tmp_path / "one.safetensors", to="comfyui", base_model=base)
    names = load_file(path).keys()
    assert "lora_unet_output_blocks_2_2_conv.lora_up.weight" in names
    assert "lora_unet_output_blocks_8_0_out_layers_0.b_norm" in names
    with safe_open(path, "pt") as opened:
        info = json.loads(opened.metadata()["brickwork.resadapter"])
    assert info["family"] == "sdxl" and info["rank"] == 1
    assert info["range"] == {"min_size": 256, "max_size": 1536, "max_ratio": 3.5}
    convert_resadapter(path, tmp_path / "back", to="official", base_model=base)
    assert_same_tensors(load_file(tmp_path / "back" / NORMS), absolute)


def base_forms(unet, folder):
    """The base model in every form `base_model` may have."""
    unet.save_pretrained(folder / "pipe" / "unet")
    unet.save_pretrained(folder / "sharded", max_shard_size="30KB")
    unet.save_pretrained(folder / "half", variant="fp16")
    unet.save_pretrained(folder / "half shards", variant="fp16", max_shard_size="30KB")
    single = {}
    for key, value in unet.state_dict().items():
        path, _, part = key.rpartition(".")
        name = compvis_path(path, 3) if module_path(path) else path
        single[f"model.diffusion_model.{name}.{part}"] = value
    save_file(single, folder / "single.safetensors")
    plain = {key: value.clone() for key, value in unet.state_dict().items()}
    save_file(plain, folder / "diffusers.safetensors")
    names = ("pipe", "pipe/unet", "sharded", "half", "half shards", "single.safetensors", "diffusers.safetensors")
    return [unet, *(folder / name for name in names), str(folder / "pipe")]


def test_base_model_in_every_form(unet, official, tmp_path):
    keys = list(load_file(official / NORMS))
    assert len(list(base_forms(unet, tmp_path)[3].glob("*.safetensors"))) > 1  # sharded indeed
    expected = {key: unet.state_dict()[key] for key in keys}
    for form in base_forms(unet, tmp_path / "again"):
        assert_same_tensors(read_base_norms(form, keys), expected)


def test_base_model_as_a_pipeline(pipelines, helpers):
    keys = list(helpers.random_adapter_tensors(pipelines["xl"].unet)[1])
    expected = {key: pipelines["xl"].unet.state_dict()[key] for key in keys}
    assert_same_tensors(read_base_norms(pipelines["xl"], keys), expected)


def test_only_the_bytes_asked_for_are_read(tmp_path):
    """The Hub's files are read by ranges: a stream must not be read through."""
    tensors = {"unet.mid_block.resnets.0.norm1.weight": torch.arange(4.0), "big": torch.zeros(100_000)}
    save_file(tensors, tmp_path / "file.safetensors")

    class Counting:
        def __init__(self, stream):
            self.stream, self.count = stream, 0

        def read(self, size):
            self.count += size
            return self.stream.read(size)

        def seek(self, place):
            return self.stream.seek(place)

    key = "mid_block.resnets.0.norm1.weight"
    with open(tmp_path / "file.safetensors", "rb") as stream:
        counting = Counting(stream)
        found = read_stream(counting, [key], "here")
    assert torch.equal(found[key], torch.arange(4.0))
    assert counting.count < 1000
    with open(tmp_path / "file.safetensors", "rb") as stream, pytest.raises(ValueError, match="has no 'up_blocks"):
        read_stream(stream, ["up_blocks.0.resnets.0.norm1.weight"], "here")


def test_base_models_that_are_none(unet, official, tmp_path):
    keys = list(load_file(official / NORMS))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    (tmp_path / "cut.safetensors").write_bytes(struct.pack("<Q", 1000) + b"{}")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": [1]}')
    for name, message in {
        "index": "has no 'weight_map'",
        "pickled": "Pickled weights",
        "model.ckpt": "pickles",
        "cut.safetensors": "no readable",
        "other.safetensors": "no UNet that this adapter fits",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_base_norms(tmp_path / name, keys)
    with pytest.raises(ValueError, match="is no file, no folder"):
        read_base_norms("/nowhere/at/all", keys)


def test_differences_remember_their_base(unet, official, helpers, tmp_path):
    (path,) = convert_resadapter(official, tmp_path / "one.safetensors", to="comfyui", base_model=unet)
    other = helpers.make_unet("two")
    with torch.no_grad():
        other.mid_block.resnets[0].norm1.weight[0] += 0.5
    with pytest.raises(ValueError, match="differences from another base"):
        convert_resadapter(path, tmp_path / "back", to="official", base_model=other)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"to": "a1111"}, "`to` is 'a1111'; choose one of official, diffusers, comfyui"),
        ({"to": "comfyui"}, "needs base_model"),
        ({"to": "diffusers", "dst": "folder"}, "needs a .safetensors path"),
        ({"to": "official", "dst": "file.safetensors"}, "needs a folder"),
        ({"to": "diffusers", "naming": "compvis"}, "goes with to='comfyui' only"),
        ({"to": "comfyui", "norm_type": "int8"}, "`norm_type` is 'int8'"),
    ],
)
def test_convert_refuses(official, tmp_path, arguments, message):
    arguments = dict(arguments)
    dst = tmp_path / arguments.pop("dst", "out.safetensors")
    with pytest.raises(ValueError, match=message):
        convert_resadapter(official, dst, **arguments)
    assert not dst.exists()


def test_convert_overwrites_only_when_told(official, tmp_path):
    convert_resadapter(official, tmp_path / "out.safetensors", to="diffusers")
    with pytest.raises(ValueError, match="which is there already"):
        convert_resadapter(official, tmp_path / "out.safetensors", to="diffusers")
    convert_resadapter(official, tmp_path / "out.safetensors", to="diffusers", overwrite=True)
    names = sorted(path.name for path in tmp_path.glob("*"))
    assert names == ["adapter", "out.safetensors", "out_norms.safetensors"]  # nothing temporary is left


@pytest.mark.parametrize("name", ["out.safetensors", "out_norms.safetensors"])
def test_convert_never_overwrites_what_is_not_its_own(official, tmp_path, name):
    """A LoRA of somebody, or norms that belong to something else, beside what would be written."""
    save_file({"a.lora_A.weight": torch.ones(1)}, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match="holds something else and is not touched"):
        convert_resadapter(official, tmp_path / "out.safetensors", to="diffusers", overwrite=True)
    assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", name]


def damage(tensors, key, value):
    return {**tensors, key: value} if value is not None else {k: v for k, v in tensors.items() if k != key}


LORA_KEY = "lora_unet_down_blocks_0_downsamplers_0_conv"
BAD_LORA = {
    "half a pair": (f"{LORA_KEY}.lora_up.weight", None, "has no lora_up weight"),
    "ranks differ": (f"{LORA_KEY}.lora_up.weight", torch.ones(8, 2, 1, 1), r"need \(rank, in, 3, 3\)"),
    "no kernel": (f"{LORA_KEY}.lora_down.weight", torch.ones(3, 8), r"need \(rank, in, 3, 3\)"),
    "not a number": (
        f"{LORA_KEY}.lora_down.weight",
        torch.full((3, 8, 3, 3), float("nan")),
        "216 values that are NaN",
    ),
    "integers": (f"{LORA_KEY}.alpha", torch.tensor(4), "need a floating-point type"),
    "many alphas": (f"{LORA_KEY}.alpha", torch.ones(2), "need a single number"),
    "another LoRA": ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", torch.ones(1), "is no ResAdapter"),
    "a second time": ("unet.down_blocks.0.downsamplers.0.conv.lora_B.weight", torch.ones(1), "a second time"),
    "one more": ("lora_unet_up_blocks_5_upsamplers_0_conv.lora_up.weight", torch.ones(8, 3, 1, 1), "no lora_down"),
}
BAD_NORMS = {
    "one missing": ("down_blocks.0.resnets.0.norm1.bias", None, "lacks its bias"),
    "other width": ("down_blocks.0.resnets.0.norm1.bias", torch.ones(9), "need two of one length"),
    "infinite": ("down_blocks.0.resnets.0.norm1.bias", torch.full((8,), float("inf")), "8 values that are NaN or inf"),
    "both kinds": ("lora_unet_mid_block_resnets_0_norm1.w_norm", torch.ones(16), "absolute values and as differences"),
}


@pytest.mark.parametrize("case", BAD_LORA | BAD_NORMS)
def test_damaged_adapters_are_refused(unet, helpers, tmp_path, case):
    lora, norms = helpers.random_adapter_tensors(unet)
    key, value, message = (BAD_LORA | BAD_NORMS)[case]
    if case in BAD_LORA:
        lora = damage(lora, key, value)
    else:
        norms = damage(norms, key, value)
    folder = helpers.write_official(tmp_path / "bad", lora, norms)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_resadapter(unet, folder)
    assert str(folder) in str(caught.value)
    assert_same_tensors(unet.state_dict(), before)


def test_whole_layers_missing_or_left_over(unet, helpers, tmp_path):
    lora, norms = helpers.random_adapter_tensors(unet)
    few = {key: value for key, value in norms.items() if "mid_block" not in key}
    with pytest.raises(ValueError, match="it lacks 'mid_block.resnets.0.norm1.bias'.* and 4 more"):
        load_resadapter(unet, helpers.write_official(tmp_path / "few", lora, few))
    many = norms | {f"up_blocks.7.resnets.0.norm1.{part}": torch.ones(4) for part in ("weight", "bias")}
    with pytest.raises(ValueError, match="the model has no 'up_blocks.7.resnets.0.norm1.bias'"):
        load_resadapter(unet, helpers.write_official(tmp_path / "many", lora, many))
    few = {key: value for key, value in lora.items() if "down_blocks" not in key}
    with pytest.raises(ValueError, match="it lacks 'down_blocks.0.downsamplers.0.conv'"):
        load_resadapter(unet, helpers.write_official(tmp_path / "lora", few, norms))


def test_files_that_cannot_be_read(official, tmp_path):
    whole = (official / LORA).read_bytes()
    (official / LORA).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="perhaps cut short"):
        read_adapter(official)
    (official / LORA).write_bytes(struct.pack("<Q", 2**63) + whole[8:])
    with pytest.raises(ValueError, match=LORA):
        read_adapter(official)
    (tmp_path / "evil.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ValueError, match="is a pickle"):
        read_adapter(tmp_path / "evil.bin")
    with pytest.raises(ValueError, match="does not exist; did you mean adapter"):
        read_adapter(tmp_path / "adaptor")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found nothing"):
        read_adapter(tmp_path / "empty")


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"alphas": 3}', '{"alphas": {"a": [1.0, "load"]}}', '{"range": {"x": 1}}']
)
def test_hostile_metadata_is_refused(official, tmp_path, text):
    tensors = load_file(official / LORA)
    save_file(tensors, tmp_path / "x.safetensors", {"brickwork.resadapter": text})
    with pytest.raises(ValueError, match="metadata cannot be read"):
        read_adapter(tmp_path / "x.safetensors")


def test_norms_in_a_lora_file_are_why_there_are_two(pipelines, official, unet, tmp_path):
    """Stock diffusers refuses norm keys: the reason for the second file."""
    (path,) = convert_resadapter(official, tmp_path / "one.safetensors", to="comfyui", base_model=unet)
    with pytest.raises(ValueError):
        StableDiffusionPipeline.lora_state_dict(str(path))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"resadapter"}))
def test_other_kinds_are_refused_by_name(kind, tmp_path, capsys):
    """`docs/comfyui.md` says which adapters ComfyUI takes as files."""
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(1)}, file, {KIND_KEY: kind})
    words = ["convert", "resadapter", str(file), str(tmp_path / "o.safetensors"), "--to", "comfyui"]
    assert cli.main([*words, "--base-model", "avatars-sd-64"]) == 2
    assert f"is a {kind!r} adapter, no ResAdapter" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"is a '{kind}' adapter"):
        read_adapter(file)
