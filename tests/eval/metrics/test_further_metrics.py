"""CLIP score and paired loss: the numbers of the result against the models called by hand."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import brickwork
from brickwork.eval.commands import evaluate
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.held_out.pictures import measure_paired_loss
from brickwork.eval.metrics import registry
from brickwork.eval.metrics.calculate import calculate
from brickwork.eval.metrics.live import LiveMetrics
from brickwork.eval.metrics.reference import make_reference
from brickwork.eval.metrics.registry import MetricSettings
from brickwork.eval.report.results import Score
from brickwork.eval.sampling.sample_set import SamplingSettings
from brickwork.eval.sets.pictures import Preparation, from_arrays, open_image_set
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.parameterization import EDMObjective
from brickwork.pipelines.lego import LegoPipeline
from brickwork.pipelines.objective_file import save_objective, saved_objective
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler


def test_clip_score_is_the_mean_cosine_of_pictures_and_captions(clip_folder, extractor, pixels, write_folder):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    folder = write_folder(pixels[:5])
    texts = ["a cat", "dog", "the moon", "x", "sun set"]
    rows = [{"file_name": f"{i:04d}.png", "text": text} for i, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings, reference = MetricSettings(("clip",)), make_reference(folder, extractor, "clean", progress=False)
    result = calculate([folder], reference, extractor, settings, clip=str(clip_folder), progress=False)
    (found,) = (result["metrics"][name] for name in ["CLIP score"])

    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizerFast.from_pretrained(clip_folder)
    images = CLIPImageProcessor.from_pretrained(clip_folder)(
        [Image.fromarray(p) for p in pixels[:5]], return_tensors="pt"
    )
    cosines = []
    for i, text in enumerate(texts):
        output = model(pixel_values=images["pixel_values"][i : i + 1], **tokenizer(text, return_tensors="pt"))
        cosines.append(torch.cosine_similarity(output.image_embeds, output.text_embeds).item())
    assert len({round(c, 4) for c in cosines}) == 5
    assert found["mean"] == pytest.approx(max(0.0, 100 * np.mean(cosines)), rel=1e-4)
    assert abs(found["mean"]) > 1e-3 and len(found["settings"]["weights_sha256"]) == 64


def test_what_a_metric_needs_is_said_before_features_are_made(extractor, pixels, write_folder):
    reference = make_reference(write_folder(pixels[:9]), extractor, "clean", progress=False)

    def refused(match, metric, **further):
        with pytest.raises(ValueError, match=match):
            calculate([folder], reference, replace(extractor, network=None), MetricSettings((metric,)), **further)

    folder = write_folder(pixels[:3], "few")
    refused("`metrics` has 'clip', which needs captions, and the set has no captions", "clip", clip="anything")
    refused("`metrics` has 'paired', which needs held_out, .* pass --paired", "paired")
    refused("samples: 3 images for a Fréchet distance of 8 features", "fd")
    (folder / "metadata.jsonl").write_text("".join(f'{{"file_name": "000{i}.png", "text": "a"}}\n' for i in range(3)))
    refused("`metrics` has 'clip', which needs clip, .* pass --clip MODEL", "clip")


def test_a_metric_is_one_registration(extractor, pixels, write_folder, monkeypatch):
    monkeypatch.setattr(registry, "METRICS", dict(registry.METRICS))
    monkeypatch.setattr("brickwork.eval.metrics.calculate.METRICS", registry.METRICS)
    monkeypatch.setattr("brickwork.eval.metrics.live.METRICS", registry.METRICS)

    @registry.register_metric("length", needs=("features",), higher_is_better=True, results=("length", "length-*"))
    def measure(given):
        return {"length-Small": Score(given.outputs["features"].norm(dim=1).mean().item(), settings={"order": 2})}

    folder = write_folder(pixels[:9])
    reference = make_reference(folder, extractor, "clean", progress=False)
    entry = calculate([folder], reference, extractor, MetricSettings(("length",)), progress=False)["metrics"]
    assert entry["length-Small"]["mean"] > 0 and entry["length-Small"]["settings"] == {"order": 2}
    assert registry.is_higher_better("length-Small") and registry.is_higher_better("KD-Small") is False
    assert registry.is_higher_better("nobody's") is None
    live = LiveMetrics(reference, extractor, SamplingSettings(4), names=("length",))
    assert live.titles == ["length-Small"]
    with pytest.raises(ValueError, match="is registered already"):
        registry.register_metric("length")(measure)
    with pytest.raises(ValueError, match="did you mean 'logits'"):
        registry.register_metric("other", needs=("logit",))(measure)


@pytest.fixture
def lego():
    torch.manual_seed(0)
    sizes = {"window_sizes": (4, 8), "patch_sizes": (2, 2), "num_layers": (1, 1), "hidden_sizes": 8}
    network = LegoTransformer2DModel(8, num_classes=3, num_attention_heads=2, **sizes)
    for parameter in network.parameters():  # an untrained network gives zeros, for every label the same loss
        torch.nn.init.normal_(parameter, std=0.2)
    return LegoPipeline(network, EDMHeunScheduler())


def test_paired_loss_of_a_pipeline_is_that_of_its_network(lego, pixels, write_folder):
    folder = write_folder(pixels[:6])
    rows = [{"file_name": f"{i:04d}.png", "label": i % 3} for i in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = open_image_set(folder)
    found = measure_paired_loss(lego, images, Preparation(8), num_levels=2)
    by_hand = [np.asarray(Preparation(8)(images.open(i))) for i in range(6)]
    batch = torch.from_numpy(np.stack(by_hand)).permute(0, 3, 1, 2) / 127.5 - 1
    pairs = PairedSet.from_images(batch, torch.tensor([0, 1, 2] * 2), num_levels=2)
    expected = paired_loss(lego.transformer, pairs, EDMObjective())
    assert found.value == expected["loss"] and found.details["per_estimate"] == expected["per_estimate"]
    unlabelled = measure_paired_loss(lego, from_arrays(np.stack(by_hand)), Preparation(), num_levels=2)
    assert unlabelled.value != found.value
    assert unlabelled.settings == found.settings  # the same pictures, however they are stored


def test_paired_loss_refuses_what_it_cannot_score(lego, pixels):
    images = from_arrays(pixels[:2])
    with pytest.raises(ValueError, match="`objective` is 'edn'; did you mean 'edm'"):
        measure_paired_loss(lego, images, Preparation(8), objective="edn")
    labelled = type(images)(images.names, images.open, images.source, labels=[0, 7])
    with pytest.raises(ValueError, match="labels of array do not fit the network: .* has 7; allowed are 0 to 2"):
        measure_paired_loss(lego, labelled, Preparation(8))


def test_paired_loss_knows_the_noise_levels_that_a_network_was_trained_for(lego, pixels):
    images = from_arrays(pixels[:3, :, :12])
    found = measure_paired_loss(lego, images, Preparation(8), num_levels=2, options={"p_mean": -0.4})
    usual = measure_paired_loss(lego, images, Preparation(8), num_levels=2)
    assert list(found.details["per_level"]) != list(usual.details["per_level"]) and found.value != usual.value
    assert found.settings == usual.settings | {"options": {"p_mean": -0.4}}  # not comparable
    with pytest.raises(ValueError, match="has 'pmean', which edm does not take; did you mean 'p_mean'"):
        measure_paired_loss(lego, images, Preparation(8), options={"pmean": 1})
    with pytest.raises(ValueError, match="a value is of the wrong kind"):
        measure_paired_loss(lego, images, Preparation(8), options={"p_std": "wide"})


def test_paired_loss_of_a_latent_network_is_that_of_its_latents(pixels):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, norm_num_groups=2, scaling_factor=0.5,
    )  # fmt: skip
    sizes = {"window_sizes": (4,), "patch_sizes": (2,), "num_layers": (1,), "hidden_sizes": 8}
    network = LegoTransformer2DModel(4, in_channels=2, num_classes=None, num_attention_heads=2, **sizes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipeline = LegoPipeline(network, EDMHeunScheduler(), vae.eval())
    images = from_arrays(pixels[:20, :8, :8])
    found = measure_paired_loss(pipeline, images, Preparation(), num_levels=2)
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(pixels[:20, :8, :8]).permute(0, 3, 1, 2) / 127.5 - 1)
    pairs = PairedSet.from_images(latents.latent_dist.mean * 0.5, None, num_levels=2)
    expected = paired_loss(network, pairs, EDMObjective())
    assert found.value == pytest.approx(expected["loss"], rel=1e-5)
    assert len(found.settings["vae"]) == 64
    with pytest.raises(ValueError, match="pictures of 20x11 for a VAE that shrinks by 2"):
        measure_paired_loss(pipeline, from_arrays(pixels[:1, :11]), Preparation())


def test_calc_scores_a_pipeline_on_what_its_folder_says(lego, tmp_path):
    def trained_for(*words):
        parser = argparse.ArgumentParser()
        evaluate.configure_calc(parser)
        required = ["samples", "--reference", "r", "-o", "o.json", "--paired", str(tmp_path), "data"]
        return evaluate._trained_for(parser.parse_args([*required, *words]), str(tmp_path))

    assert trained_for() == ("edm", {})  # folders of before
    save_objective(tmp_path, "flow", {"shift": 3.0})
    assert trained_for() == ("flow", {"shift": 3.0})
    assert trained_for("--objective", "edm") == ("edm", {})
    assert trained_for("--objective", "edm", "--objective-options", '{"p_mean": -1}') == ("edm", {"p_mean": -1})
    with pytest.raises(ValueError, match="pass --objective too"):
        trained_for("--objective-options", "{}")
    (tmp_path / "objective.json").write_text("[]")
    with pytest.raises(ValueError, match="is no objective"):
        trained_for()
    assert saved_objective(brickwork.pretrained("lego-avatars-64")) == (
        "edm",
        {"p_mean": -0.3, "p_std": 1.2, "sigma_data": 1.0},
    )
