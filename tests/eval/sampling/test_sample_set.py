"""A sampled set depends on seed and count alone: batches, interruptions and formats change nothing."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from PIL import Image

from brickwork.adapters.base import denoiser_of
from brickwork.eval.report.results import generation_of
from brickwork.eval.sampling.pipelines import load_pipeline
from brickwork.eval.sampling.sample_set import SamplingSettings, image_label, image_seed, sample_set
from brickwork.eval.sets.pictures import Preparation, decode, open_image_set
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.parameterization import EpsilonObjective, FlowObjective
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.lego import LegoPipeline
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler


@pytest.fixture
def ddpm():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return DDPMPipeline(unet.eval(), DDPMScheduler())


@pytest.fixture
def lego():
    torch.manual_seed(0)
    sizes = {"window_sizes": (4, 8), "patch_sizes": (2, 2), "num_layers": (1, 1), "hidden_sizes": 8}
    network = LegoTransformer2DModel(8, num_classes=3, num_attention_heads=2, **sizes)
    return LegoPipeline(network.eval(), EDMHeunScheduler())


def settings(count=10, **options) -> SamplingSettings:
    return SamplingSettings(count, call={"num_inference_steps": 2}, **options)


def decode_all(output) -> np.ndarray:
    images = open_image_set(output)
    return decode(images, range(len(images)), Preparation(), (8, 8)).pixels.numpy()


@pytest.fixture
def whole(ddpm, tmp_path):
    return sample_set(ddpm, settings(), tmp_path / "whole", batch_size=4, progress=False)


def test_pictures_differ_from_one_another(whole):
    pixels = decode_all(whole)
    assert pixels.shape == (10, 3, 8, 8)
    assert len({picture.tobytes() for picture in pixels}) == 10


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_changes_pictures_by_no_more_than_rounding(ddpm, whole, tmp_path, batch_size):
    other = sample_set(ddpm, settings(), tmp_path / "other", batch_size=batch_size, progress=False)
    difference = np.abs(decode_all(whole).astype(int) - decode_all(other).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize("kind", ["ddpm", "lego", "dit", "unet"])
def test_in_float64_every_batch_size_gives_the_same_bytes(request, tmp_path, kind):
    torch.manual_seed(0)
    if kind in ("ddpm", "lego"):
        pipeline = request.getfixturevalue(kind)
    elif kind == "dit":
        sizes = {"num_layers": 1, "hidden_size": 16, "attention_head_dim": 8}
        network = BlockTransformer2DModel(8, in_channels=3, num_classes=3, **sizes)
        pipeline = ClassToImagePipeline.from_objective(network.eval(), FlowObjective())
    else:
        sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "attention_head_dim": 8, "window_size": 4}
        network = BlockUNet2DModel(8, in_channels=3, num_classes=3, block_types=("maxvit", "i2rmb"), **sizes)
        pipeline = ClassToImagePipeline.from_objective(network.eval(), EpsilonObjective())
    network = denoiser_of(pipeline)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipeline.to(torch.float64)
    wanted = settings(5, labels="none" if kind == "ddpm" else "balanced")
    one, five = (
        sample_set(pipeline, wanted, tmp_path / str(size), batch_size=size, progress=False) for size in (1, 5)
    )
    assert generation_of(one)["dtype"] == "float64"
    assert len({path.read_bytes() for path in one.glob("*.png")}) == 5
    for path in one.iterdir():
        assert path.read_bytes() == (five / path.name).read_bytes(), path.name


def test_a_smaller_set_is_the_beginning_of_a_larger_one(ddpm, whole, tmp_path):
    part = sample_set(ddpm, settings(8), tmp_path / "part", batch_size=4, progress=False)
    np.testing.assert_array_equal(decode_all(part), decode_all(whole)[:8])


def test_an_interrupted_run_goes_on_to_the_same_bytes(ddpm, whole, tmp_path, monkeypatch):
    calls, run = [], DDPMPipeline.__call__

    def interrupted(self, *args, **kwargs):
        calls.append(len(kwargs["generator"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    interrupted.__signature__ = __import__("inspect").signature(run)
    monkeypatch.setattr(DDPMPipeline, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample_set(ddpm, settings(), tmp_path / "again", batch_size=4, progress=False)
    assert len(list((tmp_path / "again").glob("*.png"))) == 8
    (tmp_path / "again" / "000001.png").unlink()  # as if it had stopped in the middle of a batch
    again = sample_set(ddpm, settings(), tmp_path / "again", batch_size=4, progress=False)
    assert calls == [4, 4, 2, 4, 2]  # the second batch was not drawn again
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name


def test_a_finished_set_is_not_drawn_again_and_another_is_not_overwritten(ddpm, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "brickwork.eval.sampling.sample_set.PipelineCall.__call__", lambda *a: pytest.fail("drawn again")
    )
    sample_set(ddpm, settings(), whole, batch_size=4, progress=False)
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 there, 1 now\)"):
        sample_set(ddpm, settings(seed=1), whole, progress=False)
    with torch.no_grad():
        next(ddpm.unet.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="other settings .weights_sha256"):
        sample_set(ddpm, settings(), whole, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="exists and is no sampled set"):
        sample_set(ddpm, settings(), tmp_path / "mine", progress=False)


def test_formats_hold_the_same_pictures(ddpm, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("brickwork.eval.sampling.sample_set.SHARD_PICTURES", 4)
    for format, name in (("npz", "set.npz"), ("webdataset", "shards")):
        output = sample_set(ddpm, settings(), tmp_path / name, format=format, batch_size=4, progress=False)
        np.testing.assert_array_equal(decode_all(output), decode_all(whole))
        assert generation_of(output)["count"] == 10 and generation_of(output)["format"] == format
        assert not (tmp_path / f"{name}.parts").exists()
        sample_set(ddpm, settings(), output, format=format, progress=False)  # finished, so nothing happens
    assert sorted(path.name for path in (tmp_path / "shards").glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]


def test_lego_set_is_what_the_pipeline_draws_for_its_seeds_and_labels(lego, tmp_path):
    output = sample_set(lego, settings(5, labels="balanced"), tmp_path / "lego", batch_size=2, progress=False)
    rows = [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [0, 1, 2, 0, 1]
    for i in (0, 3, 4):
        generator = torch.Generator().manual_seed(rows[i]["seed"])
        alone = lego(class_labels=[rows[i]["label"]], num_inference_steps=2, generator=[generator]).images[0]
        difference = np.abs(np.asarray(alone).astype(int) - np.asarray(Image.open(output / rows[i]["file_name"])))
        assert difference.max() <= 1
    assert generation_of(output)["num_classes"] == 3 and generation_of(output)["recommended"] is None
    lego.register_to_config(guidance_scale=2.0)  # pictures drawn with it are others
    with pytest.raises(ValueError, match="recommended: None there, .* now"):
        sample_set(lego, settings(5, labels="balanced"), tmp_path / "lego", progress=False)
    sized = SamplingSettings(2, call={"num_inference_steps": 1, "height": 12, "width": 20})
    assert decode_all(sample_set(lego, sized, tmp_path / "wide", progress=False)).shape == (2, 3, 12, 20)


def test_a_pipeline_of_diffusers_that_needs_labels(tmp_path):
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=4
    )
    pipeline = DiTPipeline(network.eval(), AutoencoderKL(block_out_channels=(8,), norm_num_groups=2), DDIMScheduler())
    with pytest.raises(ValueError, match="DiTPipeline needs class labels; pass --labels balanced"):
        sample_set(pipeline, settings(3), tmp_path / "dit", progress=False)
    output = sample_set(pipeline, settings(3, labels="drawn"), tmp_path / "dit", batch_size=2, progress=False)
    rows = [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]
    assert len({row["label"] for row in rows}) == 3 and max(row["label"] for row in rows) < 1000
    assert len({picture.tobytes() for picture in decode_all(output)}) == 3


def test_prompts_are_used_in_turn_with_the_pictures_own_seeds(ddpm, tmp_path):
    calls = []

    class TextToImage:
        def __init__(self):
            self.unet, self.scheduler, self.config = ddpm.unet, ddpm.scheduler, {}

        def set_progress_bar_config(self, **options): ...

        def __call__(self, prompt, generator, output_type):
            calls.append((prompt, [g.initial_seed() for g in generator], output_type))
            return type("Output", (), {"images": np.zeros((len(prompt), 8, 8, 3))})

    with pytest.raises(ValueError, match="TextToImage needs prompts"):
        sample_set(TextToImage(), SamplingSettings(5), tmp_path / "texts", progress=False)
    prompted = SamplingSettings(5, prompts=("a", "b"))
    output = sample_set(TextToImage(), prompted, tmp_path / "texts", batch_size=3, progress=False)
    seeds = [image_seed(0, i) for i in range(5)]
    assert calls == [(["a", "b", "a"], seeds[:3], "np"), (["b", "a"], seeds[3:], "np")]
    assert list(open_image_set(output).texts) == ["a", "b", "a", "b", "a"]


def test_labels_are_a_matter_of_seed_and_number():
    drawn = SamplingSettings(1000, labels="drawn")
    labels = [image_label(drawn, 4, i) for i in range(1000)]
    assert np.bincount(labels).min() > 200 and labels[:500] != labels[500:]
    assert labels == [image_label(drawn, 4, i) for i in range(1000)]
    seeds = {image_seed(seed, i) for seed in range(10) for i in range(100)}
    assert len(seeds) == 1000 and max(seeds) < 2**63


def test_values_outside_the_range_are_an_error(ddpm, tmp_path, monkeypatch):
    class Output:
        images = np.full((2, 8, 8, 3), 1.2)

    class Wild:
        def __init__(self, pipeline):
            self.unet, self.scheduler, self.config = pipeline.unet, pipeline.scheduler, {}

        def set_progress_bar_config(self, **options): ...

        def __call__(self, batch_size, generator, output_type):
            return Output()

    with pytest.raises(ValueError, match="outside"):
        sample_set(Wild(ddpm), SamplingSettings(2), tmp_path / "wild", progress=False)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"count": 0}, "count: got 0"),
        ({"count": 1, "seed": -1}, "seed: got -1"),
        ({"count": 1, "labels": "balancd"}, "did you mean 'balanced'"),
        ({"count": 1, "labels": "drawn", "prompts": ("a",)}, "prompts and labels at once"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**options)


def test_arguments_the_pipeline_does_not_take_are_refused(ddpm, lego, tmp_path):
    def sample(pipeline, output="x", **options):
        sample_set(pipeline, SamplingSettings(2, **options), tmp_path / output, progress=False)

    with pytest.raises(
        ValueError, match="`call` has 'num_inference_step', which DDPMPipeline does not take; .*_steps'"
    ):
        sample(ddpm, call={"num_inference_step": 2})
    with pytest.raises(ValueError, match="takes no class labels"):
        sample(ddpm, labels="balanced")
    with pytest.raises(ValueError, match="takes no prompt"):
        sample(ddpm, prompts=("a cat",))
    with pytest.raises(ValueError, match="num_classes: got 4, the network has 3"):
        sample(lego, labels="balanced", num_classes=4)
    with pytest.raises(ValueError, match="did you mean 'webdataset'"):
        sample_set(ddpm, settings(), tmp_path / "x", format="webdatset")
    with pytest.raises(ValueError, match="ends in .npz"):
        sample_set(ddpm, settings(), tmp_path / "x", format="npz")
    assert not (tmp_path / "x").exists()


def test_a_scheduler_with_an_infinity_in_its_settings_is_recorded(tmp_path):
    """`DPMSolverMultistepScheduler` clips at -inf by default, and JSON has no infinity."""
    pipeline = load_pipeline("avatars-sd-64", device="cpu")
    assert pipeline.scheduler.config.lambda_min_clipped == float("-inf")
    one = SamplingSettings(1, prompts=("red apple",), call={"num_inference_steps": 1, "height": 16, "width": 16})
    for _ in range(2):  # the second finds the first
        sample_set(pipeline, one, tmp_path / "set", progress=False)
    record = json.loads((tmp_path / "set" / "generation.json").read_text())
    assert record["scheduler"]["lambda_min_clipped"] == "-Infinity"
