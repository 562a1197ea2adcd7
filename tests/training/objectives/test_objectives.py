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
    for name in set(REGISTRY.classes) - set(known):
        del REGISTRY.classes[name]


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


@pytest.fixture
def vision_encoder(tmp_path):
    """The folder of a small vision transformer."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(3)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_repa_aligns_a_layer_with_a_frozen_encoder(vision_encoder, tiny_run, tmp_path, final_tensors, equal_bits):
    """The loss falls, what is learned is saved and resumed to the bit, and the encoder is no part of it."""
    aligned = named({"type": "repa", "encoder": str(vision_encoder), "tap": "bricks.1", "width": 32, "weight": 0.5})
    run = tiny_run("repa", ALL_BRICKS, aligned)
    frozen = [tensor.clone() for tensor in run.further.objectives[0].frozen[0].state_dict().values()]
    train(run)
    assert all(map(torch.equal, run.further.objectives[0].frozen[0].state_dict().values(), frozen))
    tensors = final_tensors(tmp_path / "repa")
    own = [name for name in tensors if name.startswith("objectives/")]
    assert own and all("projector" in name for name in own)
    train(tiny_run("halves", ALL_BRICKS, aligned, "run.total_images=16"))
    train(tiny_run("halves", ALL_BRICKS, aligned))
    assert equal_bits(final_tensors(tmp_path / "halves"), tensors)
    logged = [json.loads(line) for line in (tmp_path / "repa" / "log.jsonl").read_text().splitlines()]
    losses = [value for line in logged for name, value in line.items() if "repa" in name]
    assert losses and all(-1 <= value <= 1 for value in losses)


def test_repa_refuses(vision_encoder, tiny_run):
    for options, message in (
        ({"tap": "bricks.1", "size": 30}, "`size` is 30; give a multiple of the encoder's patch of 7"),
        ({"tap": "bricks.1", "width": 0}, "`width` is 0"),
        ({"tap": "bricks.1.blocks.0"}, "whose output has the shape"),
        ({"tap": "bricks.1", "encoder": "/nowhere"}, "cannot be loaded"),
    ):
        entry = {"type": "repa", "encoder": str(vision_encoder)} | options
        with pytest.raises(ValueError, match=message):
            tiny_run("refused", ALL_BRICKS, named(entry))


def test_repa_equals_the_authors_formula(vision_encoder):
    """`mean_flat(-(z * z_tilde).sum(-1))` of normalised tokens, as in sihyun-yu/REPA's `loss.py`."""
    from brickwork.training.objectives.repa import RepaObjective
    from brickwork.training.task import Step

    torch.manual_seed(0)
    objective = RepaObjective(str(vision_encoder), "layer", width=8)
    pixels, hidden = torch.rand(2, 3, 28, 28) * 2 - 1, torch.randn(2, 5, 4, 4)
    step = Step(pixels, None, torch.zeros(2), pixels, torch.zeros(2), pixels=pixels, taps={"layer": hidden})
    objective.prepare(step, None)
    found = objective(step, step.taps, None)["repa"]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (objective.mean, objective.std))
    seen = objective.frozen[0](pixel_values=((pixels + 1) / 2 - mean) / std).last_hidden_state[:, 1:]
    said = objective.projector(hidden.flatten(2).transpose(1, 2))
    normalise = torch.nn.functional.normalize
    expected = -(normalise(seen, dim=-1) * normalise(said, dim=-1)).sum(-1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
