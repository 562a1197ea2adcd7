"""Sweeps over sizes, ratios and strengths: what is drawn, resumed, shown and refused."""

import json
import string

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from brickwork import cli, load_resadapter, set_resadapter_scale, unload_resadapter
from brickwork.eval.extractors import features as extractors
from brickwork.eval.metrics.reference import make_reference
from brickwork.eval.report.pictures import labelled_sheet
from brickwork.eval.sampling import pipelines
from brickwork.eval.sampling.pipelines import load_pipeline
from brickwork.eval.sampling.sample_set import PipelineCall, SamplingSettings
from brickwork.eval.sets.pictures import Preparation
from brickwork.eval.studies.sweep import Variant, parse_ratio, plan_variants, sweep, table


@pytest.fixture(scope="module")
def diffusion():
    """A real Stable Diffusion pipeline with random weights, that can be saved: 16 px, a VAE of factor 2."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), cross_attention_dim=16, layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *string.ascii_lowercase,
        *(f"{c}</w>" for c in string.ascii_lowercase),
    ]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae.eval(), CLIPTextModel(text).eval(), tokenizer, unet.eval(), DDIMScheduler(clip_sample=False), None, None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def adapter(diffusion, tmp_path_factory):
    """An authors' folder that fits the pipeline and changes a lot."""
    generator, lora, norms = torch.Generator().manual_seed(1), {}, {}
    for name, module in diffusion.unet.named_modules():
        if name.endswith("samplers.0.conv"):
            key = "lora_unet_" + name.replace(".", "_")
            lora[f"{key}.lora_down.weight"] = torch.randn(2, module.in_channels, 3, 3, generator=generator)
            lora[f"{key}.lora_up.weight"] = torch.randn(module.out_channels, 2, 1, 1, generator=generator)
        elif ".resnets." in name and name.rpartition(".")[2] in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                norms[f"{name}.{part}"] = torch.randn(getattr(module, part).shape, generator=generator)
    folder = tmp_path_factory.mktemp("adapter")
    save_file(lora, str(folder / "pytorch_lora_weights.safetensors"))
    save_file(norms, str(folder / "diffusion_pytorch_model.safetensors"))
    return folder


SETTINGS = SamplingSettings(2, seed=3, prompts=("red", "an apple"), call={"num_inference_steps": 2})


def picture(folder, cell, i=0):
    return np.asarray(Image.open(folder / "cells" / cell.name / f"{i:06d}.png"))


def test_sizes_keep_their_area_and_fit_the_pipeline(diffusion):
    cells = plan_variants(diffusion, [16, 24], [parse_ratio("1:1"), parse_ratio("2:1")], [0.0, "auto"])
    shapes = [(16, 16), (24, 24), (8, 24), (16, 32)]  # a VAE of factor 2, two levels; the pipeline wants 8
    assert cells == [Variant(*shape, strength) for strength in (0.0, "auto") for shape in shapes]
    assert [cell.height for cell in plan_variants(diffusion, None)] == [8, 16, 32]
    assert plan_variants(diffusion, [16, 16])[0].name == "16x16" and cells[4].name == "16x16-strength-auto"


def test_strengths_are_those_of_the_adapter_with_the_same_seeds(diffusion, adapter, tmp_path):
    cells = plan_variants(diffusion, [16, 24], strengths=[0.0, 0.5, 1.0])
    result = sweep(diffusion, cells, SETTINGS, tmp_path / "out", adapter=adapter, batch_size=2)
    assert [(row["height"], row["strength"]) for row in result["cells"]] == [(c.height, c.strength) for c in cells]
    assert all(row["seconds"] > 0 for row in result["cells"])
    call = PipelineCall(diffusion, SamplingSettings(2, 3, prompts=SETTINGS.prompts, call={
        "num_inference_steps": 2, "height": 24, "width": 24}))  # fmt: skip
    base = call([0, 1])  # the adapter is gone again
    np.testing.assert_array_equal(picture(tmp_path / "out", Variant(24, 24, 0.0), 1), base[1])
    load_resadapter(diffusion, adapter)
    try:
        set_resadapter_scale(diffusion, 0.5)
        half = call([0, 1])
    finally:
        unload_resadapter(diffusion)
    np.testing.assert_array_equal(picture(tmp_path / "out", Variant(24, 24, 0.5), 1), half[1])
    assert not np.array_equal(half, base)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 2 * 160 and sheet.height > 6 * 160  # two sizes; three strengths of two pictures
    assert "0.5" in table(result).text()
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["cells"] == result["cells"]


def test_goes_on_cell_by_cell(diffusion, tmp_path, monkeypatch):
    cells, calls = plan_variants(diffusion, [16, 24]), []
    sweep(diffusion, cells[:1], SETTINGS, tmp_path)
    first = (tmp_path / "cells" / "16x16" / "cell.json").read_text()
    floats = PipelineCall.floats
    monkeypatch.setattr(PipelineCall, "floats", lambda self, i: calls.append(self.settings.call) or floats(self, i))
    whole = sweep(diffusion, cells, SETTINGS, tmp_path)
    assert {call["height"] for call in calls} == {24}  # the first cell was not drawn again
    assert json.loads(first)["result"] == whole["cells"][0] and len(whole["cells"]) == 2
    other = SamplingSettings(2, seed=4, prompts=SETTINGS.prompts, call=SETTINGS.call)
    with pytest.raises(ValueError, match="another sweep: seed was 3 and is 4"):
        sweep(diffusion, cells, other, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        sweep(diffusion, cells, SETTINGS, tmp_path / "mine")


def test_a_reference_adds_the_kernel_distance(diffusion, extractor, write_folder, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(extractors, "load_extractor", lambda name: extractor)
    real = write_folder(pixels[:6])
    reference = make_reference(real, extractor, "clean", Preparation(12), progress=False)
    cells = plan_variants(diffusion, [16, 24])
    result = sweep(diffusion, cells, SETTINGS, tmp_path / "out", reference=reference)
    values = [row["KD-Small"] for row in result["cells"]]
    assert len(set(values)) == 2 and "KD-Small" in table(result).text()
    one = SamplingSettings(1, prompts=("red",), call=SETTINGS.call)
    with pytest.raises(ValueError, match="at least 2 pictures"):
        sweep(diffusion, cells, one, tmp_path / "one", reference=reference)


@pytest.mark.parametrize(
    ("sizes", "ratios", "message"),
    [
        ([16, 15, 0], ["1:1"], r"`--sizes` has 15 \(near it: 16\), 0 \(near it: 8\); StableDiffusionPipeline .* of 8"),
        ([8], ["40:1"], "at 40:1 comes to 0 x 48 pixels"),
        ([16], ["wide"], "`--ratios` has 'wide'; give width:height"),
        ([16], ["1:0"], "`--ratios` has '1:0'"),
    ],
)
def test_refuses_sizes_before_anything_runs(diffusion, sizes, ratios, message):
    with pytest.raises(ValueError, match=message):
        plan_variants(diffusion, sizes, [parse_ratio(ratio) for ratio in ratios])


def test_refuses_pipelines_of_one_size():
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="DDIMPipeline, which draws one size only"):
        plan_variants(DDIMPipeline(unet, DDIMScheduler()), [8])


def test_the_command_with_stable_diffusion(diffusion, adapter, tmp_path, capsys):
    diffusion.save_pretrained(tmp_path / "sd", safe_serialization=True)
    arguments = ["sweep", str(tmp_path / "sd"), "--prompt", "red", "--steps", "1", "--sizes", "16"]
    output = ["-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*arguments, *output, "--adapter", str(adapter), "--strengths", "0", "auto"]) == 0
    assert "auto" in capsys.readouterr().out
    assert (tmp_path / "out" / "sheet.png").is_file()
    for wrong, message in [
        (["--strengths", "1"], "name it with --adapter"),
        (["--adapter", str(adapter), "--strengths", "strong"], "`--strengths` has 'strong'"),
        (["--classes", "cat"], "takes none; leave --classes out"),
        (["--call", "[]"], "give a JSON object"),
        (["--call", '{"height": 8}'], "'height'; give a JSON object without sizes"),
        (["--dtype", "float8"], "`--dtype` is 'float8'"),
        (["--device", "cpuu"], "`--device` is 'cpuu', which torch cannot use here"),
        (["--adapter", str(tmp_path / "none")], "give a ResAdapter's folder"),
    ]:
        assert cli.main([*arguments, "-o", str(tmp_path / "wrong"), *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_pipelines_are_loaded_in_the_type_asked_for(caplog, recwarn):
    """The weights that ship are float16, of which diffusers warns on a CPU."""
    logging.enable_propagation()
    try:
        for dtype in (torch.float32, torch.float64):
            pipeline = load_pipeline("avatars-sd-64", dtype, device="cpu")
            assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {dtype}
    finally:
        logging.disable_propagation()
    assert (
        "float16" not in caplog.text
        and "Casting" not in caplog.text
        and not [w for w in recwarn if "dtype" in str(w.message)]
    )


def test_the_command_with_the_weights_that_ship(tmp_path, capsys):
    arguments = ["sweep", "lego-avatars-64", "--sizes", "16", "--ratios", "1:1", "2:1", "-n", "2", "--steps", "1"]
    arguments += ["--classes", "micah", "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(arguments) == 0
    assert "12     24" in capsys.readouterr().out
    assert picture(tmp_path / "out", Variant(12, 24)).shape == (12, 24, 3)
    assert cli.main([*arguments, "--sizes", "3"]) == 2
    assert "3 (near it: 8)" in capsys.readouterr().err


def test_every_ratio_of_the_miniature_is_a_size_that_it_draws(tmp_path, capsys):
    """Its VAE has a factor of 4 and its UNet two levels."""
    arguments = [
        "sweep",
        "avatars-sd-64",
        "--ratios",
        "16:9",
        "2:3",
        "--sizes",
        "32",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    assert cli.main([*arguments, "--prompt", "red apple", "-o", str(tmp_path / "out")]) == 0
    shapes = {path.name for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(shapes) == 2 and all(int(side) % 8 == 0 for shape in shapes for side in shape.split("x"))


def test_the_prompt_is_looked_at_before_the_pipeline_is_loaded(tmp_path, monkeypatch, capsys):
    def load(*arguments):
        raise AssertionError("loaded")

    monkeypatch.setattr(pipelines, "load_pipeline", load)
    assert cli.main(["sweep", "avatars-sd-64", "-o", str(tmp_path / "out")]) == 2
    assert "draws from text; say what with --prompt" in capsys.readouterr().err
    assert cli.main(["sweep", "lego-avatars-64", "--prompt", "a cat", "-o", str(tmp_path / "out")]) == 2
    assert "leave --prompt out" in capsys.readouterr().err
    for option in ("--count", "--batch-size", "--side"):
        assert cli.main(["sweep", "lego-avatars-64", option, "0", "-o", str(tmp_path / "out")]) == 2
        assert f"`{option}` is 0" in capsys.readouterr().err


def test_a_sheet_shows_sizes_at_one_scale():
    small, wide = Image.new("RGB", (4, 6), "red"), Image.new("L", (16, 8), 0)
    sheet = np.asarray(labelled_sheet([[small, wide]], ["a\nb"], ["6 x 4", "8 x 16"], side=64))
    red = (sheet == (255, 0, 0)).all(axis=2)
    assert red.sum() == 16 * 4 * 6 and red.any(axis=0).sum() == 4 * 4  # four times as large, as the widest allows
    large = np.asarray(labelled_sheet([[Image.new("RGB", (40, 20), "red")]], ["a"], ["b"], side=10))
    assert (large == (255, 0, 0)).all(axis=2).sum() == 50
