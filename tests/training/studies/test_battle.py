"""A battle of tiny networks: from the plan to the report, refusals, and going on after a stop.

Cells run in forked processes here, which have everything imported already.
"""

import json
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from brickwork.cli import main
from brickwork.eval.extractors.features import from_module
from brickwork.eval.studies.core import StudyFolder
from brickwork.eval.studies.core import processes as core_processes
from brickwork.training.config.config import load_config
from brickwork.training.engine.runlog import Diverged
from brickwork.training.studies import battle as battle_module
from brickwork.training.studies import timed, trained
from brickwork.training.studies.battle import CONFIG, BattleConfig, battle, build_networks

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
NETWORKS = {
    "lego": {
        "label": "LEGO",
        "colour": "C0",
        "type": "LegoTransformer2DModel",
        "config": {
            "window_sizes": [8, 4], "patch_sizes": [4, 2], "num_layers": [1, 1], "hidden_sizes": 8,
            "num_attention_heads": 2,
        },
    },
    "unet": {
        "label": "UNet2DModel",
        "colour": "C1",
        "type": "UNet2DModel",
        "config": {
            "block_out_channels": [4, 8], "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 2,
        },
    },
}  # fmt: skip
SHORT = {
    "networks": NETWORKS,
    "battle": {
        "networks": None, "parameters": 8000, "tolerance": 0.9, "seeds": [0, 1], "learning_rates": [1e-2, 1e-3],
        "sweep_images": 16, "timing_rounds": 1,
    },
    "scores": {
        "extractor": None, "protocol": "clean", "samples": 12, "steps": 2, "guidance_scale": 1.0, "batch_size": 8,
    },
    "data": {"source": str(SAMPLE), "size": 8, "group_column": "codepoints", "held_out": 0.1},
    "optimizer": {"warmup_images": 8},
    "run": {"total_images": 32, "batch_size": 8, "log_images": 16, "sample_images": 16, "checkpoint_images": 16},
}  # fmt: skip


@pytest.fixture
def in_forks(monkeypatch, forked_cells):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # CUDA does not survive a fork
    monkeypatch.setattr(timed, "peak_during", lambda function, device: function() or {"peak": 2**20})
    return forked_cells


@pytest.fixture
def configured(tmp_path):
    def load(*overrides: str) -> BattleConfig:
        path = tmp_path / "battle.yaml"
        path.write_text(yaml.safe_dump(SHORT))
        return load_config(path, list(overrides), BattleConfig)

    return load


@pytest.fixture
def small_extractor(monkeypatch):
    """An extractor of four features in place of EfficientNet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1)
        )
    for module in (battle_module, trained):
        monkeypatch.setattr(module, "load_extractor", lambda name: from_module(network, "Small", 16, name="small"))


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_whole_battle_and_again(configured, tmp_path, in_forks, small_extractor, capsys):
    config, folder = configured("scores.extractor=small"), tmp_path / "out"
    assert battle(config, folder, jobs=2)
    report = read(folder / "battle.json")
    sweep, timing = report["sweep"], report["timing"]
    assert set(sweep) == {"lego", "unet"} and all(set(losses) == {"0.01", "0.001"} for losses in sweep.values())
    for network, losses in sweep.items():
        best = float(min(losses, key=losses.get))
        for seed in (0, 1):
            cell = read(folder / "cells" / f"{network}-seed{seed}" / "cell.json")["result"]
            assert (cell["network"], cell["seed"], cell["images"], cell["batch_size"]) == (network, seed, 32, 8)
            assert cell["label"] == NETWORKS[network]["label"] and cell["learning_rate"] == best
            assert [images for images, _ in cell["curve"]] == [16, 32] and cell["curve"][-1][1] == cell["final_loss"]
            assert (cell["kd"]["samples"], cell["kd"]["steps"], cell["kd"]["name"]) == (12, 2, "KD-Small")
            assert (folder / "cells" / f"{network}-seed{seed}" / cell["samples_png"]).is_file()
    losses = [read(path)["result"]["final_loss"] for path in sorted(folder.glob("cells/lego-*/cell.json"))]
    assert losses[0] != losses[1]  # the seed matters
    for cost in timing["networks"].values():
        assert cost["seconds_spread"][0] <= cost["seconds_per_image"] <= cost["seconds_spread"][1]
        assert cost["training_operations"] > 2 * cost["forward_operations"] > 0 and cost["peak_memory"] > 0
    assert {name: entry["samples"] for name, entry in report["fd"].items()} == {"lego": 24, "unet": 24}
    assert (folder / "index.html").is_file()

    # Nothing of it is done again, but a cell that is gone is.
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/cell.json")}
    gone = folder / "cells" / "unet-seed1" / "cell.json"
    kept = read(gone)
    gone.unlink()
    capsys.readouterr()
    assert battle(config, folder)
    assert capsys.readouterr().out.count("held-out loss") == 1
    after = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/cell.json")}
    assert read(gone)["result"] == kept["result"]
    assert {path for path in after if after[path] != before[path]} == {gone}


def test_a_stopped_battle_goes_on_to_the_same_end(configured, tmp_path, in_forks, monkeypatch, capsys):
    values = ["battle.networks=[unet]", "battle.seeds=[0]", "battle.learning_rates=[1.0e-3]", "run.total_images=320"]
    config = configured(*values, "run.sample_images=160", "run.checkpoint_images=40")
    assert battle(config, tmp_path / "whole")

    class StoppedProcess(in_forks):
        def poll(self):
            """Looking at the cell, once it has a checkpoint, asks the battle to stop."""
            if list((tmp_path / "out").rglob("images-*")) and super().poll() is None:
                signal.raise_signal(signal.SIGTERM)
            return super().poll()

    monkeypatch.setattr(core_processes, "Popen", StoppedProcess)
    capsys.readouterr()
    assert not battle(config, tmp_path / "out")
    assert "the same command goes on" in capsys.readouterr().out
    assert not list((tmp_path / "out" / "cells").rglob("cell.json"))
    monkeypatch.setattr(core_processes, "Popen", in_forks)
    assert battle(config, tmp_path / "out")
    cell = Path("cells", "unet-seed0")
    assert "Going on from" in (tmp_path / "out" / cell / "log.txt").read_text()
    first, second = (read(tmp_path / name / cell / "cell.json") for name in ("out", "whole"))
    assert first["result"] == second["result"] and first["digest"] == second["digest"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(configured, tmp_path):
    """Processes of their own, as a user has them."""
    assert battle(configured("battle.seeds=[0]", "run.mixed_precision=bf16"), tmp_path / "out", jobs=2)
    timing = read(tmp_path / "out" / "battle.json")["timing"]
    assert timing["unit"] == "GPU s" and timing["device"] == torch.cuda.get_device_name()
    assert all(10**4 < cost["peak_memory"] < 10**9 for cost in timing["networks"].values())
    assert len(list((tmp_path / "out").glob("cells/*/cell.json"))) == 2


def test_a_cell_that_fails_stops_the_battle_with_its_reason(configured, tmp_path, in_forks, monkeypatch):
    def fail(config):
        raise ValueError("the disk is on fire")

    monkeypatch.setattr(trained, "run_training", fail)
    with pytest.raises(ValueError, match=r"sweep.lego-0\.001 ended with status 2: error: the disk is on fire"):
        battle(configured(), tmp_path / "out")


def test_what_diverges_is_a_result(configured, tmp_path, in_forks, monkeypatch, capsys, small_extractor):
    real_train, out = trained.run_training, tmp_path / "out"

    def train(settings):
        if settings.optimizer.learning_rate == 0.01 or (
            settings.run.seed and settings.model.config["num_layers"] == [0]
        ):
            raise Diverged("gradients were not finite")
        return real_train(settings)

    monkeypatch.setattr(trained, "run_training", train)
    assert battle(configured("scores.extractor=small"), out)
    assert capsys.readouterr().out.count(": diverged (") == 3
    assert all(
        losses["0.01"] is None and losses["0.001"] > 0 for losses in read(out / "battle.json")["sweep"].values()
    )
    cells = {path.parent.name: read(path)["result"] for path in out.glob("cells/*/cell.json")}
    assert cells["unet-seed1"]["curve"] == [[32, None]] and {cell["learning_rate"] for cell in cells.values()} == {
        1e-3
    }
    assert {name: entry["samples"] for name, entry in read(out / "battle.json")["fd"].items()} == {
        "lego": 24,
        "unet": 12,
    }
    report = (out / "battle.md").read_text()
    assert "UNet2DModel, seed 1, is left out" in report and "diverged" in report


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(configured, tmp_path, capsys):
    assert not battle(configured(), tmp_path / "out", dry_run=True)
    said = capsys.readouterr().out
    assert "4 cells of 16 images to choose from the rates 0.001, 0.01; 4 cells of 32 images; 192 in all" in said
    assert "102 pictures of 8x8 in 9 classes to train on, 6 held out" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["battle.parameters=100000"], r"`networks.lego` has 6,492 parameters, .* to within `battle.tolerance`=0.9"),
        (["data.size=9"], "`networks.unet` does not fit: .*takes multiples of 2"),
        (["networks.unet.config.num_class_embeds=4"], "`networks.unet` does not fit: `num_classes` is 9"),
        (["networks.lego.config.width=8"], "`networks.lego` does not fit: .*width"),
        (["networks.lego.type=LegoTransformer"], "did you mean 'LegoTransformer2DModel'"),
        (["networks.lego.size=3"], "`networks.lego` is .*give a mapping with label, colour, type, config"),
        (["battle.networks=[leg]"], "did you mean 'lego'"),
        (["battle.seeds=[1, 1]"], "give different whole numbers"),
        (["battle.learning_rates=[0.0]"], "give different positive numbers"),
        (["objective.type=flow"], "fought with 'edm'"),
        (["data.held_out=0.0"], "leaves 108 pictures to train on and 0 to compare by"),
        (["scores.extractor=inception-v4"], "`scores.extractor`: .*or set it to null"),
        (["scores.samples=2"], "give at least 4"),
        (["networks.unet.colour=sky"], "`networks.unet.colour` is 'sky'; give a colour"),
        (["data.crop_share=0.5"], "`data.crop_share` is 0.5; leave it out"),
        (["objective.brick_dropout=0.2"], "`objective.brick_dropout` is 0.2; leave it out"),
    ],
)
def test_what_cannot_be_fought_is_refused_before_anything_is_written(configured, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        battle(configured(*overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(battle_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'brickwork\[report\]'"):
        battle(configured(), tmp_path / "out")


def conditions(config) -> dict:
    return yaml.safe_load(config.to_yaml())


def test_folders_of_another_battle_and_of_something_else(configured, tmp_path):
    StudyFolder(tmp_path / "other", "battle", conditions(configured("run.total_images=64")))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds another battle: run.total_images was 64 and is 32"):
        battle(configured(), tmp_path / "other")
    with pytest.raises(ValueError, match="holds something else and no battle"):
        battle(configured(), tmp_path / "strange")


def test_what_may_change_in_a_battle_under_way(configured, tmp_path):
    for changes in ([], ["run.output_dir=elsewhere", "data.source=moved", "data.num_workers=2"]):
        StudyFolder(tmp_path / "out", "battle", conditions(configured(*changes)), trained.FREE)
    changed = conditions(configured("networks.unet.config.layers_per_block=2", "battle.seeds=[0]"))
    with pytest.raises(ValueError) as error:
        StudyFolder(tmp_path / "out", "battle", changed, trained.FREE)
    listed = "battle.seeds was [0, 1] and is [0]; networks.unet.config.layers_per_block was 1 and is 2."
    assert listed in str(error.value)


def test_the_networks_of_the_shipped_battle_are_of_one_size():
    config = load_config(CONFIG, [], BattleConfig)
    with torch.device("meta"):
        networks = build_networks(config, [str(number) for number in range(9)])
    assert list(networks) == [
        "lego", "dit", "d-emo", "u-emo", "maxvit-u", "resnet-u", "osa-u", "resnet-rs-u", "pvt-u", "ffnet", "giraffe",
        "diffusers-unet", "diffusers-dit",
    ]  # fmt: skip
    for name in ("diffusers-unet", "diffusers-dit"):
        brick = networks[name].bricks[0]
        assert brick.prediction_type == "edm" and brick.class_rows == 10


def test_operations_count_the_backward_pass_of_depthwise_convolutions():
    network = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    sample = torch.zeros(2, 6, 8, 8, requires_grad=True)
    count = partial(timed.count_operations, lambda: network(sample).sum().backward())
    forward = 2 * 2 * 6 * 9 * 64
    assert count()[0] == 3 * forward
    sample.requires_grad_(False)  # there is one gradient less to find
    assert count()[0] == 2 * forward


def test_the_command(configured, tmp_path, capsys):
    configured()
    arguments = ["battle", "--config", str(tmp_path / "battle.yaml")]
    assert main([*arguments, "--dry-run"]) == 2
    assert "`--output` was not given" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "-o", str(tmp_path / "out"), "--report-only", str(tmp_path)])
    assert "not allowed with" in capsys.readouterr().err
    assert main([*arguments, "-o", str(tmp_path / "out"), "--jobs", "0"]) == 2
    assert "`--jobs` is 0" in capsys.readouterr().err
    assert main([*arguments, "-o", str(tmp_path / "out"), "--dry-run", "battle.seeds=[3]"]) == 0
    assert "2 cells of 32 images" in capsys.readouterr().out
