"""The loop: an interrupted run equals an uninterrupted one bit for bit, and what it leaves behind."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from brickwork.gen.subnets import bricks_of
from brickwork.training.data.buckets import STEP, random_numbers
from brickwork.training.engine.loop import train
from brickwork.training.engine.previews import due
from brickwork.training.tasks.brick_by_brick import draw_bricks


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.horizontal_flip=true", "run.gradient_accumulation_steps=2", "run.mixed_precision=bf16"],
        ["objective.brick_dropout=0", "optimizer.schedule=inverse_sqrt", "optimizer.decay_images=8"],
    ],
)
def test_stopping_and_going_on_changes_no_bit(tiny_run, tmp_path, final_tensors, equal_bits, overrides):
    train(tiny_run("whole", "run.total_images=32", *overrides))
    assert train(tiny_run("parts", "run.total_images=16", *overrides)) == 16
    assert train(tiny_run("parts", "run.total_images=32", "data.num_workers=1", *overrides)) == 32
    whole, parts = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts")
    assert equal_bits(whole, parts)
    assert any(name.startswith("optimizer/") for name in whole)


def test_another_seed_gives_other_weights(tiny_run, tmp_path, final_tensors, equal_bits):
    train(tiny_run("a", "run.total_images=16"))
    train(tiny_run("b", "run.total_images=16", "run.seed=1"))
    assert not equal_bits(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


def test_accumulation_gives_the_gradient_of_the_whole_step(tiny_run, tmp_path, final_tensors):
    for parts in (1, 4):
        train(tiny_run(f"{parts}", "run.total_images=16", f"run.gradient_accumulation_steps={parts}"))
    one, four = (final_tensors(tmp_path / name) for name in "14")
    for name, tensor in one.items():
        torch.testing.assert_close(four[name], tensor, rtol=1e-3, atol=1e-5)


def test_dropout_of_a_network_is_a_function_of_the_step(tiny_run, tmp_path, final_tensors, equal_bits):
    def with_dropout(name, *overrides):
        run = tiny_run(name, *overrides)
        run.task.network.bricks[0].proj_out.register_forward_hook(lambda m, i, o: torch.nn.functional.dropout(o, 0.5))
        return run

    train(with_dropout("whole"))
    train(with_dropout("parts", "run.total_images=16"))
    torch.rand(5)
    train(with_dropout("parts"))
    train(tiny_run("without"))
    whole = final_tensors(tmp_path / "whole")
    assert equal_bits(whole, final_tensors(tmp_path / "parts"))
    assert not equal_bits(whole, final_tensors(tmp_path / "without"))


def test_sampling_on_the_way_changes_no_bit(tiny_run, tmp_path, final_tensors, equal_bits):
    train(tiny_run("plain"))
    train(tiny_run("shown", "samples.count=3", "samples.steps=1", "run.sample_images=8"))
    assert equal_bits(final_tensors(tmp_path / "plain"), final_tensors(tmp_path / "shown"))


def test_a_kill_while_the_averages_are_looked_at_leaves_no_gap(tiny_run, tmp_path, final_tensors, equal_bits):
    every = ["run.sample_images=8", "run.checkpoint_images=8"]
    run = tiny_run("killed", *every)
    preview = run.task.preview

    def killed(images, log):
        preview(images, log)
        if images == 16:  # when all is logged, and not yet noted as done
            raise KeyboardInterrupt

    run.task.preview = killed
    with pytest.raises(KeyboardInterrupt):
        train(run)
    train(tiny_run("killed", *every))
    lines = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines if "held_out/loss" in line] == [8, 16, 24, 32]
    train(tiny_run("whole"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "killed"))


def test_what_a_run_leaves(tiny_run, tmp_path):
    from brickwork.pipelines.lego import LegoPipeline

    train(tiny_run("run", "samples.count=10", "samples.steps=2", "run.sample_images=16"))
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines if "train/loss" in line] == [16, 32]
    assert [line["images"] for line in lines if "held_out/loss" in line] == [16, 32]
    assert len([name for name in lines[0] if name.startswith("loss_at/sigma_")]) > 2
    assert list((folder / "tensorboard").iterdir())
    start = json.loads((folder / "starts.jsonl").read_text())
    assert (start["images"], start["processes"]) == (0, 1)
    assert start["versions"]["torch"] == torch.__version__
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["size"] == 8
    sheets = sorted((folder / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["images-000000000016.png", "images-000000000032.png"]
    assert Image.open(sheets[0]).size == (8 * 8 + 7 * 2, 2 * 8 + 2)
    page = (folder / "index.html").read_text()
    assert "samples/images-000000000032.png" in page
    assert page.count("<img") >= 3
    pipe = LegoPipeline.from_pretrained(folder / "pipeline")
    assert pipe.transformer.config.trained_subsets == "any"
    assert pipe("Smileys & Emotion", num_inference_steps=1).images[0].size == (8, 8)
    manifest = json.loads(next((folder / "checkpoints").glob("*32/manifest.json")).read_text())
    assert manifest["config"] == (folder / "config.yaml").read_text()
    assert manifest["versions"]["python"]


def test_the_exported_weights_are_the_averages(tiny_run, tmp_path, final_tensors):
    from brickwork.gen.networks.lego import LegoTransformer2DModel

    train(tiny_run("run"))
    saved = LegoTransformer2DModel.from_pretrained(tmp_path / "run" / "pipeline" / "transformer").state_dict()
    tensors = final_tensors(tmp_path / "run")
    assert all(torch.equal(tensor, tensors[f"ema/{name}"]) for name, tensor in saved.items())
    assert any(not torch.equal(tensor, tensors[f"model/{name}"]) for name, tensor in saved.items())


def test_a_finished_run_started_again_exports_again_and_trains_nothing(tiny_run, tmp_path, final_tensors, equal_bits):
    import shutil

    train(tiny_run("run"))
    before = final_tensors(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "pipeline")
    (tmp_path / "run" / ".pipeline.new").mkdir()  # a kill during the export
    assert train(tiny_run("run")) == 32
    assert (tmp_path / "run" / "pipeline" / "model_index.json").exists()
    assert not (tmp_path / "run" / ".pipeline.new").exists()
    assert equal_bits(before, final_tensors(tmp_path / "run"))


def test_what_was_logged_beyond_the_checkpoint_is_forgotten(tiny_run, tmp_path):
    train(tiny_run("run", "run.total_images=16"))
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text() + '{"images": 24, "train/loss": 9}\n{"images": 2')
    train(tiny_run("run"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["images"] for line in lines] == [16, 32]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_leave(tiny_run, tmp_path, final_tensors, equal_bits, watch, number):
    run = tiny_run("stopped", "run.checkpoint_images=1000")
    handler = signal.getsignal(number)

    def signalled(network, step):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)

    calls = []
    assert train(watch(run, signalled)) == 16
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "stopped" / "pipeline").exists()
    train(tiny_run("stopped", "run.checkpoint_images=1000"))
    train(tiny_run("whole"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "stopped"))


def test_gradients_that_are_not_finite_are_counted_and_leave_the_weights_alone(
    tiny_run, tmp_path, final_tensors, with_losses
):
    run = tiny_run("run", "run.max_nonfinite_steps=2", "run.checkpoint_images=8", "run.log_images=8")
    calls = []

    def second_is_none(losses):
        calls.append(1)
        return losses * float("nan") if len(calls) == 2 else losses

    train(with_losses(run, second_is_none))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["train/nonfinite_steps"] for line in lines] == [0, 1, 1, 1]
    tensors = final_tensors(tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert tensors[_a_step(tensors)].item() == 3


def _a_step(tensors):
    return next(name for name in tensors if name.startswith("optimizer/condition") and name.endswith("|step"))


def test_training_stops_where_gradients_stay_non_finite(tiny_run, with_losses):
    run = with_losses(tiny_run("run", "run.max_nonfinite_steps=1"), lambda losses: losses * float("inf"))
    with pytest.raises(ValueError, match=r"max_nonfinite_steps` is 1.*2 steps in a row"):
        train(run)


def test_brick_dropout():
    draws, again = ([draw_bricks(random_numbers(0, STEP, n), 0.5, 3) for n in range(600)] for _ in range(2))
    assert draws == again
    assert 0.4 < sum(draw is None for draw in draws) / 600 < 0.6
    assert {draw for draw in draws if draw is not None} == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}
    assert all(draw_bricks(random_numbers(0, STEP, step), 0.0, 3) is None for step in range(50))


def test_the_bricks_of_a_step_are_the_ones_that_run(tiny_run):
    run = tiny_run("run", "objective.brick_dropout=1", "run.total_images=64")
    seen, counts, call = [], [], run.task.call
    for brick in run.task.network.bricks:
        brick.register_forward_hook(lambda *a: counts.append(1))

    def counted(network, step):
        counts.clear()
        outputs = call(network, step)
        seen.append((len(bricks_of(step.subnet, 2)), len(counts)))
        return outputs

    run.task.call = counted
    train(run)
    assert {1, 2} == {expected for expected, _ in seen}
    assert all(expected == ran for expected, ran in seen)


def test_label_dropout_hides_the_share_of_labels(tiny_run):
    run = tiny_run("run", "objective.label_dropout=0.25")
    draws = (torch.arange(8) + 0.5) / 8
    batch = {
        "image": torch.zeros(8, 3, 8, 8),
        "noise": torch.zeros(8, 3, 8, 8),
        "level": torch.zeros(8),
        "label": torch.arange(8),
        "label_draw": draws,
    }
    assert run.task.step(batch, 0).conditions["class_labels"].tolist() == [9, 9, 2, 3, 4, 5, 6, 7]


def test_an_unconditional_network(tiny_run, tmp_path):
    run = tiny_run("run", "data.label_column=null", "samples.count=2", "samples.steps=1", "run.sample_images=32")
    assert run.task.network.config.num_classes is None
    train(run)
    assert (tmp_path / "run" / "samples").exists()


def test_frozen_parameters_are_neither_trained_nor_saved(tiny_run, tmp_path, final_tensors):
    run = tiny_run("run")
    run.task.network.bricks[0].requires_grad_(False)
    run.task.export = lambda weights, folder: exported.append(set(weights))
    exported, before = [], run.task.network.bricks[0].patch_embed.weight.clone()
    train(run)
    assert torch.equal(run.task.network.bricks[0].patch_embed.weight, before)
    tensors = final_tensors(tmp_path / "run")
    assert not any(".bricks.0." in name or "/bricks.0." in name for name in tensors)
    assert exported[0] == {name.removeprefix("ema/") for name in tensors if name.startswith("ema/")}


def test_samples_have_the_same_noise_every_time(tiny_run, tmp_path):
    run = tiny_run("run", "samples.count=9", "samples.steps=1", "run.sample_images=8", "optimizer.learning_rate=1e-12")
    train(run)
    sheets = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "run" / "samples").iterdir())]
    assert len(sheets) == 4
    assert all((sheet == sheets[0]).all() for sheet in sheets)
    assert sheets[0].std() > 0


def test_an_interval_is_due_when_a_step_passes_a_multiple_and_at_the_end():
    settings = SimpleNamespace(batch_size=7, total_images=46)
    passed = [images for images in range(7, 50, 7) if due(images, 10, settings)]
    assert passed == [14, 21, 35, 42, 49]
    assert not any(due(images, 0, settings) for images in range(7, 50, 7))


def test_an_fp16_scaler_lowers_its_scale_and_is_saved(tiny_run, tmp_path, final_tensors, equal_bits, with_losses):
    """As with fp16 on a GPU: the first scales overflow, those steps are left out, and a stop changes nothing."""

    def with_scaler(name, *overrides):
        run = tiny_run(name, "run.total_images=96", *overrides)
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
        train(with_losses(run, lambda losses: 2.0**12 * losses))
        newest = max((tmp_path / name / "checkpoints").iterdir()) / "manifest.json"
        return json.loads(newest.read_text())["scaler"]

    whole = with_scaler("whole")
    assert with_scaler("parts", "run.total_images=16")["scale"] == 2.0**125
    assert with_scaler("parts") == whole
    assert whole["scale"] < 2.0**125
    tensors = final_tensors(tmp_path / "whole")
    assert equal_bits(tensors, final_tensors(tmp_path / "parts"))
    assert 0 < tensors[_a_step(tensors)].item() < 10
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_weights_and_biases_if_asked(tiny_run, tmp_path, monkeypatch):
    import sys
    from types import SimpleNamespace

    logged, started = [], []
    run = SimpleNamespace(log=lambda values, step: logged.append(step), finish=lambda: logged.append("finished"))
    fake = SimpleNamespace(init=lambda **options: started.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(tiny_run("run", "run.wandb_project=bricks"))
    assert logged == [16, 32, "finished"]
    assert (started[0]["project"], started[0]["id"], started[0]["resume"]) == ("bricks", "run", "allow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="needs wandb"):
        train(tiny_run("other", "run.wandb_project=bricks"))
