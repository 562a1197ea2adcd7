"""Distances to a reference while training: the figures of `gen` and `calc`, shared by processes, harming nothing."""

import json
import math
import os
import signal

import pytest
import torch

from brickwork.eval.extractors.features import from_module
from brickwork.eval.metrics.calculate import calculate
from brickwork.eval.metrics.reference import make_reference
from brickwork.eval.metrics.registry import MetricSettings
from brickwork.eval.sampling.sample_set import PipelineCall, SamplingSettings, sample_set
from brickwork.eval.sets.pictures import Preparation
from brickwork.pipelines.objective_file import saved_objective
from brickwork.training.engine import previews
from brickwork.training.engine.loop import train


@pytest.fixture
def extractor(monkeypatch):
    """Six features of a picture, in the place of the extractor that a reference names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1))
    small = from_module(network, "Small", 16, name="small")
    monkeypatch.setattr(previews, "load_extractor", lambda name, weights, digest: small)
    return small


@pytest.fixture
def reference(extractor, request, tmp_path):
    """Of the pictures that the tiny runs train on."""

    def make(resolution: int = 8, **options):
        sample = request.path.parents[2] / "data" / "emoji" / "sample.parquet"
        path = tmp_path / f"reference-{resolution}-{len(options)}.safetensors"
        preparation = Preparation(resolution, convert=True)
        make_reference(sample, extractor, "clean", preparation, progress=False, **options).save(path)
        return path

    return make


def measured(folder) -> dict[str, dict[int, float]]:
    """`log.jsonl` => `{name: {images: value}}` of the distances."""
    found: dict[str, dict[int, float]] = {}
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        for name, value in line.items():
            if name.startswith("metrics/"):
                found.setdefault(name, {})[line["images"]] = value
    return found


OPTIONS = ["metrics.every_images=16", "metrics.count=13", "metrics.batch_size=4", "metrics.steps=2"]


def test_a_run_is_measured_as_its_pictures_are_and_not_changed(
    tiny_run, reference, extractor, tmp_path, final_tensors, equal_bits
):
    train(tiny_run("plain"))
    path = reference()
    run = tiny_run("measured", *OPTIONS, f"metrics.reference={path}")
    train(run)
    assert equal_bits(final_tensors(tmp_path / "plain"), final_tensors(tmp_path / "measured"))
    found = measured(tmp_path / "measured")
    assert sorted(found) == [
        f"metrics/{name}-Small.clean.N13.{run.task.metrics.reference.identity[:8]}" for name in ("FD", "KD")
    ]
    assert all(list(values) == [16, 32] and values[16] != values[32] for values in found.values())
    assert all(name in (tmp_path / "measured" / "index.html").read_text() for name in found)

    from brickwork.pipelines.lego import LegoPipeline

    pipeline = LegoPipeline.from_pretrained(tmp_path / "measured" / "pipeline")
    assert saved_objective(tmp_path / "measured" / "pipeline") == ("edm", {})
    settings = SamplingSettings(13, labels="balanced", call={"num_inference_steps": 2})
    samples = sample_set(pipeline, settings, tmp_path / "samples", batch_size=4, progress=False)
    expected = calculate(
        [samples], run.task.metrics.reference, extractor, MetricSettings(("fd", "kd")), progress=False
    )
    for name, entry in expected["metrics"].items():
        (value,) = (values[32] for key, values in found.items() if name in key)
        assert value == pytest.approx(entry["mean"], rel=1e-6)


def test_two_processes_share_the_drawing_and_agree_with_one(two_processes, tiny_run, reference, tmp_path):
    options = [*OPTIONS, f"metrics.reference={reference()}"]

    def measure(name):
        run = tiny_run(name, *options)
        torch.manual_seed(0)
        for parameter in run.task.network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        drawn, floats = [], PipelineCall.floats
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PipelineCall, "floats", lambda self, batch: drawn.append(len(batch)) or floats(self, batch))
            return drawn, run.task.metrics.measure(run.task.pipeline(run.task.network))

    def both(rank):
        drawn, values = measure("two")
        assert torch.distributed.get_world_size() == 2
        # 13 pictures in batches of 4: rank 1 draws the last one
        assert drawn == ([4, 4] if rank == 0 else [4, 1])
        (tmp_path / f"values-{rank}.json").write_text(json.dumps(values))
        train(tiny_run("two", *options))

    two_processes(both)
    two = [json.loads((tmp_path / f"values-{rank}.json").read_text()) for rank in range(2)]
    drawn, one = measure("one")
    assert drawn == [4, 4, 4, 1]
    assert two[0] == two[1] == pytest.approx(one, rel=1e-9)
    assert all(list(values) == [16, 32] for values in measured(tmp_path / "two").values())


def test_a_process_without_a_batch_draws_along(two_processes, tiny_run, reference, tmp_path):
    """Sharded networks run in all processes at once."""
    options = [*OPTIONS, f"metrics.reference={reference()}", "metrics.count=10"]

    def both(rank):
        run = tiny_run("two", *options)
        drawn, floats = [], PipelineCall.floats
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PipelineCall, "floats", lambda self, batch: drawn.append(len(batch)) or floats(self, batch))
            run.task.metrics.measure(run.task.pipeline(run.task.network))
        assert drawn == ([4, 2] if rank == 0 else [4, 4])

    two_processes(both)


def test_what_does_not_fit_is_refused_before_the_first_step(tiny_run, reference, extractor, tmp_path):
    def refused(match, *overrides):
        with pytest.raises(ValueError, match=match):
            tiny_run("run", "metrics.every_images=8", *overrides)
        assert not (tmp_path / "run").exists()

    refused("`metrics.reference` is null")
    refused("cannot be read as a reference file", f"metrics.reference={tmp_path / 'nothing'}")
    refused("pictures of 16x16, but `data.size` is 8", f"metrics.reference={reference(16)}")
    few = f"metrics.reference={reference(keep_features=False)}"
    refused("allow none of fd, kd: samples: 6 images for a Fréchet distance of 6 features", few, "metrics.count=6")
    refused("`metrics.count` is 1", "metrics.count=1")
    path = reference()
    with torch.no_grad():
        extractor.network[0].bias += 1
    object.__setattr__(extractor, "digest", "0" * 64)
    refused("the reference was made with small", f"metrics.reference={path}")


def test_too_few_samples_for_a_frechet_distance_leave_the_kernel_distance(tiny_run, reference):
    run = tiny_run("run", "metrics.every_images=8", "metrics.count=6", f"metrics.reference={reference()}")
    assert run.task.metrics.names == ("kd",)


def test_weights_that_diverged_give_no_number_and_no_end(tiny_run, reference, tmp_path):
    run = tiny_run("run", *OPTIONS, f"metrics.reference={reference()}")
    make = run.task.pipeline

    def diverged(network):
        with torch.no_grad():
            next(network.parameters()).fill_(float("nan"))
        return make(network)

    run.task.pipeline = diverged
    assert all(math.isnan(value) for value in run.task.metrics.measure(run.task.pipeline(run.task.network)).values())


def test_a_run_that_is_asked_to_stop_does_not_draw_on(tiny_run, reference):
    run = tiny_run("run", *OPTIONS, f"metrics.reference={reference()}")
    asked = []
    assert (
        run.task.metrics.measure(run.task.pipeline(run.task.network), lambda: asked.append(1) or len(asked) == 3)
        is None
    )
    assert len(asked) == 3


def test_what_a_stop_cancelled_is_measured_when_the_run_goes_on(
    tiny_run, reference, tmp_path, monkeypatch, final_tensors, equal_bits
):
    options = [*OPTIONS, f"metrics.reference={reference()}", "run.sample_images=16"]
    train(tiny_run("whole", *options))
    floats = PipelineCall.floats

    def stopped(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return floats(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PipelineCall, "floats", stopped)
        for _ in range(2):  # and when it is stopped again at once
            assert train(tiny_run("parts", *options)) == 16
            assert measured(tmp_path / "parts") == {}
    train(tiny_run("parts", *options))
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert (tmp_path / "parts" / "log.jsonl").read_text().count("held_out/loss") == 2
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
