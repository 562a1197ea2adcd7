"""The study of ConvBN modes: what is compared, what is written, and that it goes on where it was."""

import copy
import json
from pathlib import Path

import pytest
import torch

import brickwork
from brickwork import BlockTransformer2DModel
from brickwork.cli import main
from brickwork.eval.benchmark import networks as benchmark_networks
from brickwork.eval.held_out.paired_loss import PairedSet
from brickwork.gen import convbn
from brickwork.gen.blocks.norms import BatchNorm
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.studies import convbn as study
from brickwork.training.studies.convbn_report import apart, ending, report, smoothed

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
SMALL = {"num_layers": 1, "hidden_size": 16, "attention_head_dim": 8, "window_size": 2}
ABOUT = {"parameters": 1000, "pairs": 2, "scales": [0.5, 1.0, 2.0], "losses": [0.5, 0.5, 0.5, 0.6], "held_out": 0.25}


def network(num_classes: int | None = 1) -> BlockTransformer2DModel:
    torch.manual_seed(0)
    model = BlockTransformer2DModel(
        sample_size=8, in_channels=3, num_classes=num_classes, block_types="i2rmb", **SMALL
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.05, 0.1)  # σ far from |γ|: there folded weights learn otherwise
            module.weight.data.uniform_(0.5, 1.5)
    return model


def task(steps: int = 3) -> study.Task:
    images = torch.rand(5, 3, 9, 7, generator=torch.Generator().manual_seed(1)) * 2 - 1
    held_out = PairedSet.from_images(images[:2], torch.tensor([0, 0]), num_levels=2)
    return study.Task(images, held_out, EDMObjective(), 3, steps)


@pytest.mark.parametrize("num_classes", [None, 1])
def test_tune_lies_on_evals_curve_and_deploy_only_begins_there(num_classes):
    model, rate = network(num_classes), 0.05
    before = copy.deepcopy(model.state_dict())
    runs = {
        mode: study.fine_tune(model, mode, "sgd", rate, task(), torch.device("cpu")) for mode in convbn.CONVBN_MODES
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(len(run["losses"]) == 3 for run in runs.values())
    evaluated = runs["eval"]["losses"]
    assert runs["tune"]["losses"] == pytest.approx(evaluated, rel=1e-5)
    assert runs["tune"]["held_out"] == pytest.approx(runs["eval"]["held_out"], rel=1e-5)
    assert runs["deploy"]["losses"][0] == pytest.approx(evaluated[0], rel=1e-5)
    assert runs["deploy"]["losses"][2] != pytest.approx(evaluated[2], rel=1e-4)
    assert runs["train"]["losses"][0] != pytest.approx(evaluated[0], rel=1e-4)
    assert evaluated[2] != evaluated[0]


def test_convolutions_alone_learn_where_that_is_asked_for():
    fresh = BlockTransformer2DModel(sample_size=8, in_channels=3, block_types="i2rmb", **SMALL)
    untouched = study.describe(fresh, task(), torch.device("cpu"))["losses"]
    # A fresh network ends in zeros, so that no gradient reaches its convolutions.
    convs, whole = (
        study.fine_tune(fresh, "eval", optimizer, 0.1, task(), torch.device("cpu"))["losses"]
        for optimizer in ("sgd-convs", "sgd")
    )
    assert convs == untouched and whole[1] != untouched[1]


def test_what_is_no_number_is_none():
    run = study.fine_tune(network(), "eval", "sgd", 1e20, task(), torch.device("cpu"))
    assert run["losses"][0] is not None and run["losses"][2] is None and run["held_out"] is None


def test_every_run_sees_the_same():
    first, second = list(task().batches()), list(task().batches())
    assert all(torch.equal(a, b) for one, other in zip(first, second) for a, b in zip(one, other))
    assert not torch.equal(first[0][1], first[1][1])
    images, noise, sigma = first[0]
    assert images.shape == noise.shape == (3, 3, 9, 7)
    torch.testing.assert_close(sigma.log().mean(), torch.tensor(-1.2))
    assert sigma[0] < sigma[1] < sigma[2]


def test_scales_are_what_folding_multiplies_by():
    model = network()
    about = study.describe(model, task(), torch.device("cpu"))
    conv, norm = (model.get_submodule(name) for name in convbn.find_convbn_pairs(model)[0])
    before = conv.weight.detach().flatten(1).norm(dim=1)
    names = convbn.set_convbn_mode(model, "deploy")
    after = model.get_submodule(names[0]).weight.detach().flatten(1).norm(dim=1)
    assert about["scales"][1] == pytest.approx((after / before).quantile(0.5).item(), rel=1e-5)
    assert about["pairs"] == 1 and about["held_out"] > 0
    run = study.fine_tune(network(), "eval", "sgd", 1e-12, task(), torch.device("cpu"))
    assert about["losses"] == pytest.approx(run["losses"], rel=1e-5)


def test_turned_scales_are_the_same_function():
    model = network()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
    about = study.describe(model, task(), torch.device("cpu"))
    study.turn_scales(model)
    turned = study.describe(model, task(), torch.device("cpu"))
    assert turned["losses"] == pytest.approx(about["losses"], rel=1e-5)
    assert turned["scales"][1] == pytest.approx(1 / about["scales"][1], rel=0.1) and about["scales"][1] > 2


@pytest.mark.parametrize(("optimizer", "faster"), [("sgd-convs", "eval"), ("sgd-convs-turned", "deploy")])
def test_how_far_a_step_goes_is_a_matter_of_scale(optimizer, faster):
    """Where |γ|/σ is above 1, a step in eval mode moves the function further, where it is below 1 one in deploy."""
    first, moved = study.describe(network(), task(), torch.device("cpu"))["losses"], {}
    for mode in ("eval", "deploy"):
        run = study.fine_tune(network(), mode, optimizer, 1e-3, task(2), torch.device("cpu"))
        moved[mode] = abs(run["losses"][1] - first[1])
    assert max(moved, key=moved.get) == faster


@pytest.fixture
def tiny_preset(monkeypatch):
    monkeypatch.setitem(benchmark_networks.TRANSFORMER_PRESETS, "d-emo-test", SMALL | {"block_types": "i2rmb"})
    return "d-emo-test", {"batch": 3, "size": 8, "device": "cpu", "dtype": "float32", "threads": 1}


def test_memory_is_that_of_the_mode(tiny_preset, monkeypatch):
    asked = []
    monkeypatch.setattr(study, "measure_in_child", lambda given: asked.append(given) or {"peak": 7})
    rows = {mode: study.memory_of(tiny_preset[0], mode, tiny_preset[1]) for mode in convbn.CONVBN_MODES}
    assert rows["tune"]["derived"] < rows["eval"]["derived"]
    assert rows["deploy"]["fixed"] < rows["eval"]["fixed"] == rows["tune"]["fixed"]
    assert [row["measured"] for row in rows.values()] == [7] * 4
    for given in asked:  # what the other process builds
        model, step = benchmark_networks.training_step(json.loads(json.dumps(given)))
        step()
        conv, norm = (module for name, module in model.named_modules() if name.endswith((".conv", ".conv_norm")))
        kinds = {
            "train": (torch.nn.Conv2d, BatchNorm),
            "eval": (torch.nn.Conv2d, convbn._FrozenBatchNorm),
            "tune": (convbn._FoldingConv2d, convbn._FoldedBatchNorm),
            "deploy": (torch.nn.Conv2d, torch.nn.Identity),
        }
        assert (type(conv), type(norm)) == kinds[given["convbn_mode"]]


def test_times_are_compared_within_a_round(tiny_preset):
    times = study.time_modes(*tiny_preset, rounds=3)
    assert list(times) == list(convbn.CONVBN_MODES)
    assert times["eval"]["ratio"] == {"median": 1.0, "lower": 1.0, "upper": 1.0}
    ratios = [a / b for a, b in zip(times["tune"]["seconds"], times["eval"]["seconds"])]
    assert len(ratios) == 3 and times["tune"]["ratio"]["median"] == pytest.approx(sorted(ratios)[1])


CURVES = [f"data.source={SAMPLE}", "data.size=8", "data.held_out=0.4", f"model.config={json.dumps(SMALL)}"]
CURVES += ["run.total_images=16", "run.batch_size=8", "samples.count=0", "run.sample_images=0"]
CURVES += ["--only", "curves", "--steps", "2", "--device", "cpu"]


def test_the_command_writes_and_goes_on(tmp_path, monkeypatch, capsys):
    plain = ["convbn", *CURVES, "-o", str(tmp_path)]
    command = [*plain, "--rates", "sgd", "0.1", "--rates", "adamw", "0.01"]
    assert main(command) == 0
    assert "| 0.1 |" in capsys.readouterr().out
    written = json.loads((tmp_path / "convbn.json").read_text())
    runs = written["curves"]["tiny-d-emo"]["runs"]
    assert {optimizer: list(rates) for optimizer, rates in runs.items()} == {"sgd": ["0.1"], "adamw": ["0.01"]}
    assert list(runs["sgd"]["0.1"]) == list(convbn.CONVBN_MODES)
    assert (tmp_path / "convbn.png").stat().st_size > 1000

    def not_again(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(study, "pretrain", not_again)
    monkeypatch.setattr(study, "fine_tune", not_again)
    assert main(command) == 0
    assert json.loads((tmp_path / "convbn.json").read_text())["curves"] == written["curves"]
    assert main([*command, "--steps", "3"]) == 2
    assert "was computed otherwise: --steps was 2 and is 3" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*plain, "--rates", "sgd", "0.02", "--rates", "sgd", "0.03"]) == 0
    joined = json.loads((tmp_path / "convbn.json").read_text())["curves"]["tiny-d-emo"]["runs"]
    assert list(joined["sgd"]) == ["0.02", "0.03", "0.1"] and joined["adamw"] == runs["adamw"]
    folder = tmp_path / "pretrained" / "tiny-d-emo" / "pipeline"
    command[len(plain) - 1] = str(tmp_path / "second")
    assert main([*command, "--pretrained", str(folder)]) == 0
    again = json.loads((tmp_path / "second" / "convbn.json").read_text())
    assert again["curves"] == written["curves"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "dit-s-2"], "`--networks` is 'dit-s-2'; "),
        (["--curves", "tiny-d-em"], "did you mean 'tiny-d-emo'?"),
        (
            ["--rates", "adam", "0.1"],
            "`--rates` is 'adam'; did you mean 'adamw'?",
        ),
        (["--rates", "sgd", "0.1", "-1"], "`--rates sgd` is"),
        (["--rates", "sgd"], "positive numbers behind the optimiser"),
        (["--rounds", "0"], "`--rounds` is 0"),
        (["--dtype", "float8"], "`--dtype` is 'float8'"),
        (["--pretrained", "nothing"], "`--pretrained` is 'nothing': 'nothing' holds no network"),
        (["--pretrained", str(brickwork.pretrained("lego-avatars-64"))], "a LegoTransformer2DModel without BatchNorm"),
        (["--target", "Animals"], "`--target` has ['Animals']"),
        (["--device", "gpu"], "`--device` is 'gpu'"),
    ],
)
def test_bad_input_is_named_before_anything_is_measured(arguments, message, tmp_path, capsys):
    assert main(["convbn", f"data.source={SAMPLE}", *arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_tables_and_the_figure(tmp_path):
    run = {"losses": [0.5, 0.4, 0.3, 0.2], "held_out": 0.22}
    runs = {
        "train": {"losses": [0.6, 0.6, 0.6, 0.7], "held_out": 0.71},
        "eval": run,
        "tune": run | {"losses": [0.5, 0.4, 0.3001, 0.2]},
        "deploy": {"losses": [0.5, 30.0, None, None], "held_out": None},
    }
    spread = {"median": 0.9, "lower": 0.8, "upper": 1.0}
    row = {"fixed": 2**20, "derived": 3 * 2**20, "measured": 4 * 2**20, "seconds": [1.0, 3.0, 2.0], "ratio": spread}
    cost = {mode: dict(row) for mode in convbn.CONVBN_MODES}
    cost["tune"] |= {"derived": 2 * 2**20, "measured": 3 * 2**20}
    values = {"cost": {"d-emo": cost}, "curves": {"tiny": {"about": ABOUT, "runs": {"sgd": {"0.1": runs}}}}}
    text = report(values).markdown()
    assert "| tune | 2 | 0.90 (0.80–1.00) | 2 | 0.67 | 3 | 0.75 |" in text
    assert "| 0.1 | 0.7000 (0.7100) ↑ | 0.2000 (0.2200) | 0.2000 (0.2200) | no number | 30 | 3.3e-04 |" in text
    report(values).write(tmp_path)
    assert {"convbn.png", "convbn-cost.png"} <= {path.name for path in tmp_path.iterdir()}
    for row in cost.values():
        row["derived"] = None  # as on a GPU
    assert "| tune | 2 | 0.90 (0.80–1.00) | 3 | 0.75 |" in report(values).markdown()
    report(values).write(tmp_path)


def test_curves_end_where_there_is_no_number():
    assert ending([1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 4.0, 2.0]) == 3.0
    assert ending([1.0, None, 1.0, None]) is None
    assert apart([2.0, 2.0, None], [3.0, 2.0, 9.0]) == 0.5
    steps, losses = smoothed([1.0] * 10 + [4.0] + [None] * 3)
    assert steps == [4.0, 5.0, 6.0] and losses == pytest.approx([1.0, 1.0, 12 / 9])
    assert smoothed([2.0, None]) == ([0.0], [2.0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(tiny_preset):
    settings = tiny_preset[1] | {"device": "cuda", "dtype": "bfloat16", "batch": 64}
    rows = {mode: study.memory_of(tiny_preset[0], mode, settings) for mode in ("deploy", "eval", "tune")}
    assert rows["eval"]["derived"] is None and rows["tune"]["measured"] < rows["eval"]["measured"]
    assert study.time_modes(tiny_preset[0], settings, 1)["deploy"]["ratio"]["median"] > 0
    run = study.fine_tune(network(), "tune", "adamw", 1e-3, task(), torch.device("cuda"))
    assert run["losses"][2] is not None
