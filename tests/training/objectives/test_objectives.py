"""Further objectives: named in YAML, seen by the loss, trained, saved and resumed with the run."""

import json

import pytest
import torch

from brickwork.gen.subnets import bricks_of
from brickwork.training.engine.checkpoints import CheckpointFolder
from brickwork.training.engine.loop import train
from brickwork.training.objectives import Objective, build_objectives, list_objectives, register_objective
from brickwork.training.objectives.features import channel_axis
from brickwork.training.objectives.registry import REGISTRY

ALL_BRICKS = "objective.brick_dropout=0"


@pytest.fixture
def new_objective():
    """`new_objective("name")` registers a class for the test alone."""
    known = list_objectives()
    yield register_objective
    for name in set(REGISTRY) - set(known):
        del REGISTRY[name]


@pytest.fixture
def teacher(tiny_run, tmp_path):
    """The folder of a trained pipeline, of wider bricks."""
    train(tiny_run("teacher", ALL_BRICKS, "model.config.hidden_sizes=[12, 12]", "run.total_images=8"))
    return tmp_path / "teacher" / "pipeline"


def named(*objectives: dict) -> str:
    return f"objectives={json.dumps(objectives)}"


def features(teacher, **options) -> dict:
    taps = {"bricks.0.patch_embed": "bricks.0.patch_embed", "bricks.1": "bricks.1"}
    return {"type": "features", "teacher": str(teacher), "taps": taps} | options


def test_names():
    assert {"adversarial", "features", "kl", "output"} <= set(list_objectives())


def test_they_see_taps_and_add_up(new_objective, tiny_run, tmp_path, final_tensors, equal_bits):
    shapes = []

    @new_objective("quiet")
    class Quiet(Objective):
        taps = ("bricks.1",)

        def forward(self, step, taps, teacher):
            shapes.append({name: tuple(tap.shape) for name, tap in taps.items()})
            assert taps["bricks.1"] is step.outputs[-1] and len(step.outputs) == 2
            return {"quiet": taps["bricks.1"].square().mean()}

    run = tiny_run("with", ALL_BRICKS, named({"type": "quiet", "weight": 0.5}))
    train(run)
    train(tiny_run("without", ALL_BRICKS))
    train(tiny_run("weightless", ALL_BRICKS, named({"type": "quiet", "weight": 0.0})))
    assert shapes[0] == {"bricks.1": (8, 3, 8, 8)}
    found = {name: final_tensors(tmp_path / name) for name in ("with", "without", "weightless")}
    assert not equal_bits(found["with"], found["without"])
    assert equal_bits(found["weightless"], found["without"])
    assert '"objective/quiet"' in (tmp_path / "with" / "log.jsonl").read_text()
    assert not run.task.network.bricks[1]._forward_hooks


def test_one_whose_tap_does_not_run_sits_the_step_out(new_objective, tiny_run):
    calls = []

    @new_objective("local")
    class Local(Objective):
        taps = ("bricks.0",)

        def forward(self, step, taps, teacher):
            calls.append(step.subnet)
            return {"local": taps["bricks.0"].mean()}

    train(tiny_run("run", "objective.brick_dropout=1", "run.total_images=128", named({"type": "local"})))
    assert 0 < len(calls) < 16 and all(0 in bricks_of(subnet) for subnet in calls)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_what_they_train_is_resumed_bit_for_bit(tiny_run, teacher, tmp_path, final_tensors, equal_bits, accumulated):
    """Projections and their moments too; samples on the way change nothing."""
    options = [named(features(teacher, weight=0.5, rate=2.0), {"type": "output", "teacher": str(teacher)})]
    options += [f"run.gradient_accumulation_steps={accumulated}", "objective.brick_dropout=0.3"]
    train(tiny_run("whole", *options))
    train(tiny_run("parts", *options, "run.total_images=16", "run.sample_images=16"))
    half = final_tensors(tmp_path / "parts")
    train(tiny_run("parts", *options))
    whole = final_tensors(tmp_path / "whole")
    assert equal_bits(whole, final_tensors(tmp_path / "parts"))
    own = [name for name in whole if name.startswith("objectives/features.projections")]
    assert len(own) == 4 and not any(torch.equal(whole[name], half[name]) for name in own)
    assert f"objectives_optimizer/{own[0].removeprefix('objectives/')}|exp_avg" in whole
    line = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert {"objective/features", "objective/output"} <= line.keys()


def test_features_come_nearer(tiny_run, teacher, tmp_path):
    options = [ALL_BRICKS, named(features(teacher)), "run.total_images=480", "run.log_images=80"]
    train(tiny_run("run", *options, "optimizer.learning_rate=0.02"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    errors = [line["objective/features"] for line in lines if "objective/features" in line]
    assert errors[-1] < 0.5 * errors[0]


def test_two_processes_share_their_gradients(two_processes, tiny_run, teacher, tmp_path, final_tensors):
    options = [ALL_BRICKS, named(features(teacher)), "run.total_images=16"]
    two_processes(lambda rank: train(tiny_run("two", *options)))
    train(tiny_run("one", *options))
    one, two = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "two")
    assert set(one) == set(two)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-3, atol=1e-5)


def test_a_run_whose_objectives_changed_is_refused(tiny_run, teacher, tmp_path):
    output = {"type": "output", "teacher": str(teacher)}
    train(tiny_run("run", named(output), "run.total_images=16"))
    for changed in (named(), named(output | {"weight": 2.0}), named(output, features(teacher))):
        with pytest.raises(ValueError, match="began with another configuration: objectives was .*Put"):
            train(tiny_run("run", changed))
    assert train(tiny_run("run", named(output, features(teacher)), accept_changes=True)) == 32
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").newest()[0]["objectives"]


def test_the_parts_of_an_objective_have_a_rate_of_their_own(new_objective, tiny_run, tmp_path):
    @new_objective("still")
    class Still(Objective):
        part = "bricks.1."

        def forward(self, step, taps, teacher):
            return {}

    run = tiny_run("run", ALL_BRICKS, "optimizer.weight_decay=0", named({"type": "still", "rate": 0.0}))
    before = {name: tensor.clone() for name, tensor in run.task.network.state_dict().items()}
    train(run)
    moved = {name for name, tensor in run.task.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and not any(name.startswith("bricks.1.") for name in moved)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"type": "outpt"}], r"`objectives\[0\].type` is 'outpt'; did you mean 'output'\?"),
        ([{"type": "output", "teachr": "x"}], r"`objectives\[0\]` has 'teachr', .*did you mean 'teacher'"),
        ([{"type": "output"}], r"`objectives\[0\]` \(output\): .*teacher"),
        ([{"type": "output", "teacher": "x", "weight": -1}], r"`weight` is -1; give 0 or a positive number"),
        ([{"type": "features", "teacher": "x", "taps": []}], r"`taps` is \[\]; give modules"),
    ],
)
def test_what_does_not_fit_is_named(entries, message):
    with pytest.raises(ValueError, match=message):
        build_objectives(entries)


def test_what_does_not_fit_the_run_is_named(tiny_run, teacher, tmp_path):
    def refused(match, *overrides):
        with pytest.raises(ValueError, match=match):
            tiny_run("run", *overrides)
        assert not (tmp_path / "run").exists()

    output = {"type": "output", "teacher": str(teacher)}
    refused("twice", named(output, output))
    refused(
        "'adversarial', which trains 'discriminator.', and a LegoTransformer2DModel has no such part",
        named({"type": "adversarial"}),
    )
    refused("`objectives.features.taps` is 'bricks.9'", named(features(teacher, taps={"bricks.9": "bricks.1"})))
    refused("an image; pair modules", named(features(teacher, taps={"bricks.0.patch_embed": "bricks.1"})))
    refused("`teacher` is .* which cannot be loaded", named(output | {"teacher": str(tmp_path / "nowhere")}))
    refused("trained to predict something else", named(output), "objective.options={sigma_data: 0.3}")
    refused("a network of 9 classes; this one has 1", named(output), "data.classes=[Flags]")


def test_the_axis_of_channels():
    size = torch.Size
    assert channel_axis(size([1, 8, 4, 4]), size([1, 12, 4, 4]), "a", "b") == 1
    assert channel_axis(size([1, 8, 5, 4, 4]), size([1, 8, 5, 4, 4]), "a", "b") == 1
    assert channel_axis(size([1, 16, 8]), size([1, 16, 12]), "a", "b") == 2
    assert channel_axis(size([1, 16, 8]), size([1, 16, 8]), "a", "b") == 2
    with pytest.raises(ValueError, match="differ in their channels alone"):
        channel_axis(size([1, 8, 4, 4]), size([1, 8, 8, 8]), "a", "b")
