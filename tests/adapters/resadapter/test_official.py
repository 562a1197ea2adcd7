"""The authors' own checkpoints on UNets of full size (without weights), and stand-ins of their layout made here."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from brickwork.adapters.comfyui.names import compvis_path
from brickwork.adapters.comfyui.reading import check_fits, read_adapter
from brickwork.adapters.comfyui.strength import OFFICIAL_RANGES
from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.functions import load_resadapter
from brickwork.adapters.resadapter.inject import adaptable_shapes

OFFICIAL = Path(__file__).parents[4] / "shared" / "data" / "resadapter_official"
NAMES = ("resadapter_v2_sd1.5", "resadapter_v1_sdxl", "resadapter_v1_sdxl_extrapolation")
FULL_SIZE = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
    },
}


def full_unet(family):
    """A UNet of the family's width without weights (depth of attention aside, which no ResAdapter touches)."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, **FULL_SIZE[family])


def base_for(adapter, path):
    """A single-file checkpoint with just the norms of a base, in half precision as most are."""
    levels = 1 + sum(name.startswith("down_blocks") for name in adapter.convs)
    generator = torch.Generator().manual_seed(9)
    tensors = {}
    for key, value in adapter.norms.items():
        name, _, part = key.rpartition(".")
        noise = torch.randn(value.shape, generator=generator) * 0.05
        tensors[f"model.diffusion_model.{compvis_path(name, levels)}.{part}"] = (value + noise).half()
    save_file(tensors, path)
    return path


@pytest.fixture(params=NAMES + ("made sd1", "made sdxl"))
def checkpoint(request, helpers, tmp_path):
    """(folder, family) of an authors' checkpoint, or of a stand-in."""
    if request.param.startswith("made"):
        family = request.param.split()[1]
        return helpers.stand_in(family, tmp_path / "made"), family
    if not (OFFICIAL / request.param).is_dir():
        pytest.skip(f"{OFFICIAL / request.param} is not here")
    return OFFICIAL / request.param, "sdxl" if "sdxl" in request.param else "sd1"


def test_fits_its_family_and_no_other(checkpoint):
    folder, family = checkpoint
    adapter = read_adapter(folder)
    told = family == "sdxl" or folder.name in OFFICIAL_RANGES  # by shapes, or by the authors' name
    assert adapter.families() == ([family] if told else ["sd1", "sd2"])
    assert len(adapter.convs) == (4 if family == "sdxl" else 6)
    assert len(adapter.norms) == 4 * (17 if family == "sdxl" else 22)
    if family == "sd1":
        assert sum(tensor.numel() for tensor in adapter.norms.values()) == 99_840
    check_fits(adapter, adaptable_shapes(full_unet(family)), "the UNet")
    other = "sd1" if family == "sdxl" else "sdxl"
    with pytest.raises(
        ValueError, match=f"it is a ResAdapter for {'SDXL' if family == 'sdxl' else 'Stable Diffusion'}"
    ):
        load_resadapter(full_unet(other), folder)


def test_what_the_files_state(checkpoint):
    folder, _ = checkpoint
    adapter = read_adapter(folder)
    stated = adapter.training_range()
    if folder.name == "resadapter_v2_sd1.5":
        assert (stated.min_size, stated.max_size, stated.max_ratio) == (128, 1024, 3.5)
        assert {pair.factor for pair in adapter.convs.values()} == {0.5}
    elif folder.name == "resadapter_v1_sdxl_extrapolation":
        assert (stated.min_size, stated.max_size) == (1024, 1536)
        assert {pair.factor for pair in adapter.convs.values()} == {0.25}  # rank 32, alpha 8


def test_round_trip_through_every_form_is_exact(checkpoint, tmp_path):
    folder, family = checkpoint
    base = base_for(read_adapter(folder), tmp_path / "base.safetensors")
    (one,) = convert_resadapter(folder, tmp_path / "one.safetensors", to="comfyui", base_model=base)
    assert any("output_blocks" in key for key in load_file(one)) == (family == "sdxl")
    convert_resadapter(one, tmp_path / "two.safetensors", to="diffusers", base_model=base)
    convert_resadapter(tmp_path / "two.safetensors", tmp_path / "back", to="official")
    for name in ("pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors"):
        before, after = load_file(folder / name), load_file(tmp_path / "back" / name)
        assert before.keys() == after.keys()
        for key in before:
            assert before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]), key


def test_sd2_unet_refuses_what_states_sd1(helpers, tmp_path):
    """The two families' adapters have the same shapes: only the file's own word tells them apart."""
    folder = helpers.stand_in("sd1", tmp_path / "made")
    one = tmp_path / "resadapter_v2_sd1.5"
    shutil.copytree(folder, one)
    unet = full_unet("sd2")
    check_fits(read_adapter(one), adaptable_shapes(unet), "the UNet")
    info = {"brickwork.resadapter": '{"family": "sd1"}'}
    lora = one / "pytorch_lora_weights.safetensors"
    tensors = load_file(lora)
    lora.unlink()
    save_file(tensors, lora, info)
    with pytest.raises(ValueError, match="states that it is for sd1, but this UNet is sd2"):
        load_resadapter(unet, one)


def benchmark_loading(folder, repeats: int = 3) -> float:
    """Best seconds of some to load an adapter onto an SD 1.5 UNet whose adapted layers are real and the rest meta."""
    unet = full_unet("sd1")
    for path in {name.removesuffix(".weight").removesuffix(".bias") for name in adaptable_shapes(unet)}:
        unet.get_submodule(path).to_empty(device="cpu")
        torch.nn.init.normal_(unet.get_submodule(path).weight)
        torch.nn.init.zeros_(unet.get_submodule(path).bias)
    seconds = []
    for number in range(repeats):
        start = time.perf_counter()
        load_resadapter(unet, folder, str(number))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_loads_onto_the_full_size_layers(helpers, tmp_path):
    """Loading works at full size; the time is printed, not judged (`pytest -s`)."""
    folder = OFFICIAL / NAMES[0]
    if not folder.is_dir():
        folder = helpers.stand_in("sd1", tmp_path / "made", rank=16)
    print(f"\nloading onto SD 1.5's UNet: {benchmark_loading(folder):.3f} s")
