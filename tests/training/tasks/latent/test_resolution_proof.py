"""The resolution proof: every cell once, what it says of itself, and its parts against their definitions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brickwork.eval.extractors.features import from_module
from brickwork.pipelines.stable_diffusion import load_pipeline
from brickwork.training.engine.checkpoints import load_tensors, trained_tensors
from brickwork.training.engine.loop import train
from brickwork.training.studies import resolution_proof
from brickwork.training.studies.resolution_proof import StyleProbe, loss_cell, main
from brickwork.training.tasks.latent.text_to_image import add_unet_lora, save_unet_lora

SAMPLE = Path(__file__).parents[3] / "data" / "emoji" / "sample.parquet"


@pytest.fixture
def arguments(tiny_run, bases, tmp_path, monkeypatch):
    """Of a proof with tiny networks, adapters that do something, and pixels for features."""
    train(tiny_run("res", "run.total_images=4"))
    pipeline = load_pipeline(str(bases["sd1"]))
    add_unet_lora(pipeline.unet, 1, 1.0)
    weights = {name: torch.full_like(p, 0.1) for name, p in pipeline.unet.named_parameters() if p.requires_grad}
    load_tensors(trained_tensors(pipeline.unet), weights)
    save_unet_lora(pipeline, tmp_path / "lora")
    pixels = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    monkeypatch.setattr(resolution_proof, "_extractor", lambda: from_module(pixels, "pixels", 8))
    variants = {"general": ["base", "resadapter", "lora"], "personal": ["base", "resadapter_delta"]}
    monkeypatch.setattr(resolution_proof.Proof, "variants", staticmethod(variants.get))
    model, data = str(bases["sd1"]), str(SAMPLE)
    return [
        "--general", model, "--general-data", data, "--personal", model, "--personal-data", data,
        "--adapter", str(tmp_path / "res" / "adapter" / "official"), "--lora", str(tmp_path / "lora"),
        "--output", str(tmp_path / "proof"), "--samples", "4", "--steps", "1",
        "--sizes", "8x16", "--held-out", "0.05", "--extremes", "8x16", "--prompts", "red apple",
    ]  # fmt: skip


def test_every_cell_is_computed_once_and_told(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    proof = tmp_path / "proof"
    text = (proof / "proof.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| held-out paired loss | 8 × 16 |" in text
    assert "KD-EffNetLite0 8x16" in text and "base + ResAdapter (norms as differences)" in text
    values = json.loads((proof / "proof.json").read_text())
    base, adapted = (values["losses"]["general"][name]["8x16"] for name in ("base", "resadapter"))
    assert len(base) == len(adapted) > 0 and base != adapted
    assert base == values["losses"]["personal"]["base"]["8x16"]  # nothing of an adapter stays behind
    assert base != values["losses"]["general"]["lora"]["8x16"]
    assert Image.open(proof / "proof.png").height > 5 * 8

    times = {path: path.stat().st_mtime_ns for path in proof.rglob("cell.json")}
    gone = proof / "fit" / "general" / "lora" / "8x16" / "cell.json"
    kept = json.loads(gone.read_text())["result"]
    gone.unlink()
    assert main(arguments) == 0
    assert json.loads(gone.read_text())["result"] == kept
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {gone}

    assert main([*arguments, "--samples", "5"]) == 2
    assert "holds another proof: samples was 4 and is 5" in capsys.readouterr().err
    assert main([*arguments, "--lora", str(tmp_path)]) == 2
    assert "holds no weights there" in capsys.readouterr().err


def test_a_probe_tells_two_clouds_apart_and_nothing_from_nothing():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 400, 8, generator=generator)
    second = second + 2
    probe = StyleProbe.fit(first[:200], second[:200])
    assert probe.share(first[200:]) < 0.05 and probe.share(second[200:]) > 0.95
    assert 0.2 < StyleProbe.fit(first[:200], first[200:]).share(torch.randn(400, 8, generator=generator)) < 0.8


def test_a_cell_gives_the_paired_difference_and_its_error():
    base, other = [1.0, 2.0, 3.0], [0.8, 1.6, 2.4]
    assert loss_cell(base, base) == "2.0000"
    differences = (np.array(other) - np.array(base)) / 2
    error = differences.std(ddof=1) / 3**0.5
    assert loss_cell(other, base) == f"1.6000 (-20.0 ± {100 * error:.1f}%)"
