"""What files say of themselves: handed on, written for other programs, and refused where it is no sense."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from brickwork.adapters.base import kind_of, read_metadata
from brickwork.adapters.comfyui.reading import read_adapter
from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.functions import load_resadapter
from brickwork.files import digest

CONV = "down_blocks.0.downsamplers.0.conv"
LORA, NORMS = "pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors"


def rewrite(path, tensors=None, **metadata):
    """The file with some tensors changed and other metadata."""
    save_file(load_file(path) | (tensors or {}), path, metadata)


@pytest.fixture
def peft(official, tmp_path):
    """The adapter in PEFT's names, with its configuration in the metadata."""
    path, _ = convert_resadapter(official, tmp_path / "peft.safetensors", to="diffusers")
    return path


@pytest.mark.parametrize(
    "alpha", [float("nan"), float("inf"), -float("inf"), -4.0, 0.0, 1e6, 6.5e4], ids=lambda value: f"{value:g}"
)
@pytest.mark.parametrize("form", ["official", "comfyui", "diffusers", "peft config"])
def test_alphas_that_are_no_sense(unet, official, peft, tmp_path, form, alpha):
    key = f"lora_unet_{CONV.replace('.', '_')}.alpha"
    path = official / LORA
    if form == "comfyui":
        (path,) = convert_resadapter(official, tmp_path / "one.safetensors", to="comfyui", base_model=unet)
    if form in ("official", "comfyui"):
        rewrite(path, {key: torch.tensor(alpha)})
    else:
        path = peft
        config = json.loads(read_metadata(peft)["lora_adapter_metadata"])
        config["unet.alpha_pattern"] = {CONV: alpha}
        info = {"alphas": {CONV: [alpha, "float32"]}} if form == "diffusers" else {}
        notes = {} if form == "diffusers" else {"lora_adapter_metadata": json.dumps(config)}
        rewrite(peft, **{"brickwork.resadapter": json.dumps(info)}, **notes)
    attributes = set(vars(unet))
    with pytest.raises(ValueError, match="alpha|NaN"):
        load_resadapter(unet, path)
    assert set(vars(unet)) == attributes


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("r", "three", "need a finite number"),
        ("r", 10**400, "need a finite number"),
        ("r", True, "need a finite number"),
        ("r", 4, "rank 4, its tensors rank 3"),
        ("rank_pattern", {CONV: 5}, "rank 5, its tensors rank 3"),
        ("rank_pattern", [1], "need a table"),
        ("lora_alpha", None, "need a finite number"),
        ("lora_alpha", [[[]]], "as list"),
        ("alpha_pattern", "x", "need a table"),
        ("use_dora", True, "say use_dora"),
        ("use_rslora", 1, "say use_rslora"),
    ],
)
def test_peft_configurations_that_are_no_sense(peft, key, value, message):
    config = json.loads(read_metadata(peft)["lora_adapter_metadata"])
    config = {**config, "unet.alpha_pattern": {}, f"unet.{key}": value}
    rewrite(peft, lora_adapter_metadata=json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_adapter(peft)


@pytest.mark.parametrize("text", ["null", "[]", "{", "[" * 100_000, '{"a": ' * 9000, "x" * 2_000_000, "1e999"])
@pytest.mark.parametrize("key", ["brickwork.resadapter", "lora_adapter_metadata"])
def test_metadata_that_are_no_table(peft, key, text):
    rewrite(peft, **{key: text})
    with pytest.raises(ValueError, match="metadata cannot be read"):
        read_adapter(peft)


@pytest.mark.parametrize(
    "info",
    [
        {"family": ["sd1"]},
        {"kind": 3},
        {"base_norms_sha256": 12},
        {"norm_types": "int8"},
        {"norm_types": {}},
        {"alphas": {CONV: 1.0}},
        {"alphas": {CONV: [1.0, "float32", 2]}},
        {"alphas": {CONV: [True, "float32"]}},
        {"alphas": [1]},
        {"range": [128, 1024, 2]},
        {"range": {"min_size": "a", "max_size": 2, "max_ratio": 1}},
        {"range": {"min_size": 1, "max_size": 10**500, "max_ratio": 1}},
        {"range": {"min_size": 1, "max_size": float("inf"), "max_ratio": 1}},
        {"range": {"min_size": 1}},
    ],
    ids=str,
)
def test_types_that_are_odd(peft, info):
    rewrite(peft, **{"brickwork.resadapter": json.dumps(info)})
    with pytest.raises(ValueError, match="metadata cannot be read"):
        read_adapter(peft)


def test_shapes_that_are_odd(official):
    name = f"lora_unet_{CONV.replace('.', '_')}"
    whole = load_file(official / LORA)
    for tensors, message in (
        ({f"{name}.lora_down.weight": torch.ones(5000, 8, 3, 3), f"{name}.lora_up.weight": torch.ones(8, 5000, 1, 1)},
         "rank 5000; allowed: up to 4096"),
        ({f"{name}.lora_down.weight": torch.ones(0, 8, 3, 3), f"{name}.lora_up.weight": torch.ones(8, 0, 1, 1)},
         "need .rank, in, 3, 3."),
        ({f"{name}.lora_down.weight": torch.tensor(1.0)}, "need .rank, in, 3, 3."),
        ({f"{name}.alpha": torch.ones(0)}, "need a single number"),
        ({f"{name}.lora_up.weight": torch.ones(8, 3, 1, 1, dtype=torch.float8_e4m3fn)}, "16 bits or more"),
        ({f"{name}.lora_up.weight": torch.ones(8, 3, 1, 1, dtype=torch.complex64)}, "16 bits or more"),
    ):  # fmt: skip
        save_file(whole | tensors, official / LORA)
        with pytest.raises(ValueError, match=message):
            read_adapter(official)
    save_file(whole, official / LORA)
    rewrite(official / NORMS, {f"mid_block.resnets.0.norm1.{part}": torch.ones(0) for part in ("weight", "bias")})
    with pytest.raises(ValueError, match="need two of one length"):
        read_adapter(official)


def test_a_peft_lora_of_somebody_else(helpers, tmp_path):
    """Rank and alpha from diffusers' own metadata, by patterns, act as they do in stock diffusers."""
    theirs, ours = helpers.make_unet("two"), helpers.make_unet("two")
    targets = ["downsamplers.0.conv", "upsamplers.0.conv"]
    config = LoraConfig(r=4, lora_alpha=10, target_modules=targets, alpha_pattern={"up_blocks.0.upsamplers.0.conv": 1},
                        rank_pattern={"upsamplers.0.conv": 2}, init_lora_weights=False)  # fmt: skip
    torch.manual_seed(0)
    theirs.add_adapter(config, "theirs")
    theirs.save_lora_adapter(tmp_path, adapter_name="theirs", weight_name="theirs.safetensors")
    adapter = read_adapter(tmp_path / "theirs.safetensors")
    assert [adapter.convs[path].factor for path in sorted(adapter.convs)] == [2.5, 0.5]
    load_resadapter(ours, tmp_path / "theirs.safetensors")
    torch.testing.assert_close(helpers.predict(ours), helpers.predict(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["official", "diffusers", "comfyui"])
def test_notes_of_trainers_survive_and_the_hash_is_new(unet, official, tmp_path, form):
    notes = {"ss_training_comment": "mine", "modelspec.author": "me", "ss_base_model_version": "sd_v1",
             "sshs_model_hash": "of another file", "modelspec.hash_sha256": "0xold"}  # fmt: skip
    rewrite(official / LORA, **notes, other="not kept")
    dst = tmp_path / ("folder" if form == "official" else "new.safetensors")
    path = convert_resadapter(official, dst, to=form, base_model=unet)[0]
    stated = read_metadata(path)
    kept = {key: value for key, value in notes.items() if "hash" not in key}
    assert stated | kept == stated and "other" not in stated
    data = path.read_bytes()
    hashed = digest(data[8 + int.from_bytes(data[:8], "little") :])
    assert stated["sshs_model_hash"] == hashed and stated["modelspec.hash_sha256"] == f"0x{hashed}"
    assert kind_of(path) == "resadapter"


@pytest.mark.parametrize("family, version, v2", [("sdxl", "sdxl_base_v1-0", "False"), ("sd2", "sd_v2", "True")])
def test_programs_can_tell_the_family(family, version, v2, helpers, tmp_path):
    """A1111 takes a file for SDXL by `ss_base_model_version`, for SD 2 by `ss_v2`, for SD 1 by anything else."""
    src = helpers.stand_in(family, tmp_path / "src")
    save_file(load_file(src / LORA), src / LORA, {"brickwork.resadapter": json.dumps({"family": family})})
    (src / NORMS).unlink()
    (path,) = convert_resadapter(src, tmp_path / "one.safetensors", to="comfyui")
    with safe_open(path, "pt") as opened:
        stated = opened.metadata()
    assert stated["ss_base_model_version"] == version and stated["ss_v2"] == v2
    assert stated["modelspec.architecture"].startswith("stable-diffusion-") and stated["ss_network_dim"] == "1"


def test_the_authors_folders_tell_the_family_by_their_names(helpers, tmp_path):
    src = helpers.stand_in("sd1", tmp_path / "resadapter_v2_sd1.5")
    assert read_adapter(src).families() == ["sd1"]
    assert read_adapter(helpers.stand_in("sd1", tmp_path / "any")).families() == ["sd1", "sd2"]


@pytest.mark.parametrize("family, width", [("sd2", 1024), ("sdxl", 2048), ("sd1", 768)])
def test_invokeai_can_tell_the_family_and_nothing_changes(family, width, helpers, tmp_path):
    """InvokeAI's `lora_token_vector_length` reads the width of the text off a key projection's `lora_down`."""
    src = helpers.stand_in(family, tmp_path / "src")
    save_file(load_file(src / LORA), src / LORA, {"brickwork.resadapter": json.dumps({"family": family})})
    (src / NORMS).unlink()
    paths = [tmp_path / "plain.safetensors", tmp_path / "told.safetensors"]
    for path, told in zip(paths, (False, True)):
        convert_resadapter(src, path, to="comfyui", text_width=told)
    plain, told = map(load_file, paths)
    added = {key: tensor for key, tensor in told.items() if key not in plain}
    (down,) = [tensor for key, tensor in added.items() if "_attn2_to_k.lora_down.weight" in key]
    assert down.shape == (1, width) and len(added) == 2 and not any(tensor.any() for tensor in added.values())
    assert all(torch.equal(told[key], tensor) for key, tensor in plain.items())
    first, second = map(read_adapter, paths)
    assert first.convs.keys() == second.convs.keys() and second.families() == [family]
    added = {key: tensor + 1 for key, tensor in added.items()}
    save_file(plain | added, tmp_path / "other.safetensors")  # a layer that does change something
    with pytest.raises(ValueError, match="2 of its .* tensors belong to none"):
        read_adapter(tmp_path / "other.safetensors")


def test_a_family_that_is_not_known_has_no_width_of_text(unet, official, helpers, tmp_path):
    src, dst = helpers.stand_in("sd1", tmp_path / "any"), tmp_path / "no.safetensors"
    (src / NORMS).unlink()
    with pytest.raises(ValueError, match="fits sd1 and sd2: leave it out"):
        convert_resadapter(src, dst, to="comfyui", text_width=True)
    with pytest.raises(ValueError, match="fits none of them"):
        convert_resadapter(official, dst, to="comfyui", base_model=unet, text_width=True)


def test_norms_as_diff_act_alike_and_come_back(unet, official, helpers, tmp_path):
    (path,) = convert_resadapter(
        official, tmp_path / "one.safetensors", to="comfyui", base_model=unet, norm_keys="diff"
    )
    assert {key.rpartition(".")[2] for key in load_file(path)} == {"alpha", "weight", "diff", "diff_b"}
    convert_resadapter(path, tmp_path / "back", to="official", base_model=unet)
    for name in (LORA, NORMS):
        one, other = load_file(official / name), load_file(tmp_path / "back" / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(ValueError, match="`norm_keys` is 'full'; choose one of norm, diff"):
        convert_resadapter(official, tmp_path / "no.safetensors", to="comfyui", base_model=unet, norm_keys="full")
