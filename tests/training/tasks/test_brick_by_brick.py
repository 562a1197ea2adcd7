"""Bricks one after another, bricks that stay as they are, stacks that grow, and a pretrained denoiser below."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from brickwork import LegoPipeline, LegoTransformer2DModel
from brickwork.gen.operations import count_operations
from brickwork.training import train_backbone
from brickwork.training.data.buckets import STEP, random_numbers
from brickwork.training.engine.checkpoints import CheckpointFolder
from brickwork.training.engine.loop import compute, train
from brickwork.training.engine.schedule import begin
from brickwork.training.tasks.brick_by_brick import Stage, draw_bricks, stages_of

ONE_BY_ONE = ("objective.brick_images=[16, 16]", "run.checkpoint_images=8", "run.keep_checkpoints=9")
SECOND = "model.config={window_sizes: [8, 4], patch_sizes: [4, 2], num_layers: [1, 1], hidden_sizes: 8}"


def checkpoint(folder, images):
    return CheckpointFolder(folder / "checkpoints")._read(folder / "checkpoints" / f"images-{images:012d}")[0]


def of_brick(tensors, brick):
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"bricks.{brick}.")}


def of_condition(tensors):
    return {name: tensor for name, tensor in tensors.items() if name.startswith("condition.")}


@pytest.fixture
def unet_pipeline(tmp_path):
    """The folder of a pipeline of diffusers without classes."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}
    network = UNet2DModel(
        sample_size=8, block_out_channels=[4, 8], norm_num_groups=2, layers_per_block=1, dropout=0.5, **blocks
    )
    DDPMPipeline(network, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_each_brick_learns_in_its_turn(tiny_run, tmp_path, equal_bits):
    run = tiny_run("run", *ONE_BY_ONE, "objective.brick_dropout=0", "run.sample_images=16", "run.log_images=8")
    fresh = {name: tensor.clone() for name, tensor in run.task.network.state_dict().items()}
    assert train(run) == 32
    early, late, end = (checkpoint(tmp_path / "run", images) for images in (16, 24, 32))
    assert equal_bits(of_brick(early["model"], 1), of_brick(fresh, 1))
    assert not equal_bits(of_brick(early["model"], 0), of_brick(early["ema"], 0))
    # The averages of the first stage are its result, for the second one and for good; so is the condition.
    for tensors in (late, end):
        for part in ("model", "ema"):
            assert equal_bits(of_brick(tensors[part], 0), of_brick(early["ema"], 0))
            assert equal_bits(of_condition(tensors[part]), of_condition(early["ema"]))
    assert not equal_bits(of_brick(end["model"], 1), of_brick(fresh, 1))
    # Each optimiser knows what learns in its stage alone.
    learned = [{".".join(name.split(".")[:2]) for name in tensors["optimizer"]} for tensors in (early, end)]
    assert "bricks.0" in learned[0] and "bricks.1" not in learned[0] and learned[1] == {"bricks.1"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]
    assert rates == pytest.approx([0.0025, 0.005, 0.0025, 0.005])  # the rise begins anew
    scored = [line for line in lines if "held_out/loss" in line]
    assert ["held_out/brick_1" in line for line in scored] == [False, True]


def test_a_run_goes_on_exactly_wherever_it_stopped(tiny_run, tmp_path, final_tensors, equal_bits):
    """Within a stage, at its end, and within the next one; images of a stage need not be whole steps."""
    options = ("objective.brick_images=[12, 20]", "objective.brick_dropout=0.3")
    train(tiny_run("whole", *options))
    for images in (8, 16, 24, 32):
        train(tiny_run("parts", *options, f"run.total_images={images}"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))


def test_only_the_brick_whose_turn_it_is_runs_backward(tiny_run):
    run = tiny_run("run", *ONE_BY_ONE)
    batch = {
        "image": torch.rand(2, 3, 8, 8), "noise": torch.randn(2, 3, 8, 8), "level": torch.randn(2),
        "label": torch.tensor([1, 2]), "label_draw": torch.ones(2),
    }  # fmt: skip
    for parameter in run.task.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    first, second = run.task.phases()
    costs = [2 * brick.operations(8, 8) for brick in run.task.network.bricks]
    counts = {}
    for stage in (first, second):
        model, _ = begin(run.task, run.settings.optimizer, stage, True)
        forward, (losses, _, _) = count_operations(lambda m=model: compute(run, m, batch, 0))
        counts[stage] = forward, count_operations(losses.mean().backward)[0]
    condition = counts[first][0] - costs[0]
    assert counts[second][0] == costs[0] + costs[1] + condition
    assert costs[0] < counts[first][1] <= 2 * (costs[0] + condition)
    assert costs[1] < counts[second][1] <= 2 * costs[1]
    assert all(parameter.grad is not None for parameter in run.task.network.bricks[1].parameters())


def test_brick_dropout_always_leaves_one_that_learns():
    stage = Stage(0, 1, (1, 2), (0, 1, 2))
    drawn = {draw_bricks(random_numbers(0, STEP, step), 1.0, 4, stage) for step in range(200)}
    assert drawn == {(0, 2), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)}
    assert draw_bricks(random_numbers(0, STEP, 0), 0.0, 4, stage) == (0, 1, 2)


def test_a_run_cut_short_leaves_the_bricks_trained_so_far(tiny_run, tmp_path):
    options = ("objective.brick_images=[8, 8]", "samples.count=1", "samples.steps=1", "run.sample_images=8")
    train(tiny_run("run", *options, "run.total_images=8"))
    pipe = LegoPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipe([1], num_inference_steps=2).bricks == [(0,), (0,)]
    train(tiny_run("run", *options, "run.total_images=16"))
    pipe = LegoPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipe.brick_schedule is None


def test_compiled_and_checkpointed(tiny_run, tmp_path, final_tensors):
    torch._dynamo.reset()
    options = ("objective.brick_images=[8, 8]", "run.total_images=16", "objective.brick_dropout=0")
    run = tiny_run("compiled", *options, "run.gradient_checkpointing=true")
    run.task.network.compile_repeated_blocks(fullgraph=True, backend="eager")
    train(run)
    train(tiny_run("plain", *options))
    plain, compiled = final_tensors(tmp_path / "plain"), final_tensors(tmp_path / "compiled")
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-4)


def test_two_processes(two_processes, tiny_run, tmp_path, final_tensors, watch):
    """DDP wraps what learns in the stage, so that nothing waits for gradients that never come."""
    options = ("objective.brick_images=[8, 8]", "run.total_images=16", "objective.brick_dropout=0")

    def checked(network, step):
        assert type(network) is torch.nn.parallel.DistributedDataParallel

    def train_both(rank):
        train(watch(tiny_run("two", *options), checked))

    two_processes(train_both)
    train(tiny_run("one", *options))
    one, two = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-3, atol=1e-5)


def test_sharded_networks_are_refused(tiny_run):
    run = tiny_run("run", *ONE_BY_ONE)
    run.task.accelerator = SimpleNamespace(distributed_type="FSDP")
    with pytest.raises(ValueError, match="launch with DDP, or train one brick a run"):
        begin(run.task, run.settings.optimizer, Stage(0, 16, (0,), (0,)), True)


def test_a_stack_grows(tiny_run, tmp_path, final_tensors):
    lower = "model.config={window_sizes: [8], patch_sizes: [4], num_layers: [1], hidden_sizes: 8}"
    heads = "model.config.num_attention_heads=2"
    train(tiny_run("lower", lower, heads, "objective.brick_dropout=0", "run.total_images=8"))
    saved = LegoTransformer2DModel.from_pretrained(tmp_path / "lower" / "pipeline" / "transformer")
    start = f"model.init_from={tmp_path / 'lower' / 'pipeline'}"
    run = tiny_run("both", SECOND, heads, start, "objective.train_bricks=[1]", "run.total_images=8")
    inputs = torch.randn(2, 3, 8, 8), torch.randn(2), torch.tensor([0, 9])
    estimate = saved(*inputs).sample
    assert torch.equal(run.task.network(*inputs, bricks=[0]).sample, estimate)
    train(run)
    assert torch.equal(run.task.network(*inputs, bricks=[0]).sample, estimate)
    assert {name.split(".")[1] for name in final_tensors(tmp_path / "both") if name.startswith("ema/")} == {"1"}
    pipe = LegoPipeline.from_pretrained(tmp_path / "both" / "pipeline")
    assert torch.equal(pipe.transformer(*inputs, bricks=[0]).sample, estimate)
    assert not torch.equal(pipe.transformer(*inputs).sample, estimate)
    assert all(
        parameter.requires_grad for parameter in tiny_run("all", SECOND, heads, start).task.network.parameters()
    )


def test_a_pretrained_denoiser_below(tiny_run, tmp_path, unet_pipeline, final_tensors):
    top = "model.config={window_sizes: [4], patch_sizes: [2], num_layers: [1], hidden_sizes: 8}"
    options = (f"model.wrap={unet_pipeline}", top, "model.config.num_attention_heads=2", "run.total_images=8")
    run = tiny_run("run", *options)
    assert not any(parameter.requires_grad for parameter in run.task.network.bricks[0].parameters())
    before = {name: tensor.clone() for name, tensor in run.task.network.bricks[0].state_dict().items()}
    train(run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.task.network.bricks[0].state_dict().items())
    assert not run.task.network.bricks[0].model.training  # its dropout sleeps
    assert not any("bricks.0." in name for name in final_tensors(tmp_path / "run"))
    pipe = LegoPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    saved = UNet2DModel.from_pretrained(unet_pipeline, subfolder="unet")
    assert torch.equal(pipe.transformer.bricks[0].model.conv_in.weight, saved.conv_in.weight)
    assert pipe.transformer.config.pretrained_brick["prediction_type"] == "v_prediction"
    both = tiny_run("both", *options, "objective.train_bricks=[0, 1]")
    assert all(parameter.requires_grad for parameter in both.task.network.parameters())
    # What came trained stays as it is in a stack that grows on it, too.
    grown = "model.config={window_sizes: [8, 4, 4], patch_sizes: [2, 2, 2], num_layers: [0, 1, 1], hidden_sizes: 8}"
    init = f"model.init_from={tmp_path / 'run' / 'pipeline'}"
    model = tiny_run("more", grown, "model.config.num_attention_heads=2", init).task.network
    assert [any(p.requires_grad for p in brick.parameters()) for brick in model.bricks] == [False, True, True]


def test_a_denoiser_of_ones_own(tiny_run, tmp_path):
    """Fresh weights learn, with the trainer's objective; dropout and all."""
    config = {
        "class_name": "UNet2DModel",
        "prediction_type": "v_prediction",
        "config": {
            "sample_size": 8, "block_out_channels": [4, 8], "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"], "norm_num_groups": 2, "layers_per_block": 1,
        },
    }  # fmt: skip
    stack = {"window_sizes": [8], "patch_sizes": [2], "num_layers": [0], "num_attention_heads": 1}
    described = json.dumps(stack | {"pretrained_brick": config, "hidden_sizes": 8})
    run = tiny_run("run", f"model.config={described}", "run.total_images=8")
    assert run.task.network.condition is None and all(
        parameter.requires_grad for parameter in run.task.network.parameters()
    )
    train(run)
    assert LegoPipeline.from_pretrained(tmp_path / "run" / "pipeline")([1], num_inference_steps=1).bricks == [(0,)]


def test_bricks_that_do_not_learn_must_stay_the_same(tiny_run, unet_pipeline):
    top = "model.config={window_sizes: [4], patch_sizes: [2], num_layers: [1], hidden_sizes: 8}"
    options = (f"model.wrap={unet_pipeline}", top, "model.config.num_attention_heads=2")
    train(tiny_run("run", *options, "run.total_images=8"))
    network = UNet2DModel.from_pretrained(unet_pipeline, subfolder="unet")
    torch.nn.init.normal_(network.conv_out.bias)
    network.save_pretrained(unet_pipeline / "unet")
    with pytest.raises(ValueError, match="began with other weights in the parts that do not learn"):
        train(tiny_run("run", *options, "run.total_images=16"))
    assert train(tiny_run("run", *options, "run.total_images=16", accept_changes=True)) == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.train_bricks=[2]"], "this stack has the bricks 0 to 1"),
        (["objective.train_bricks=[1]"], "the bricks [0] would stay as they were drawn at random"),
        (["objective.train_bricks=[1, 0]"], "rising"),
        (["objective.train_bricks=[]"], "rising"),
        (["objective.brick_images=[32]"], "the bricks [0, 1] learn; give one number for each"),
        (["objective.brick_images=[16, 0]"], "give one number a brick"),
        (["objective.brick_images=[8, 16]"], "`run.total_images` is 32, but `objective.brick_images` add up to 24"),
        (["model.wrap=nowhere", "model.init_from=x"], "leave out `model.preset` and `model.init_from`"),
        (["model.wrap=tests"], "`model.wrap` is 'tests': 'tests' is no pipeline of diffusers"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(overrides, message, tiny_yaml, tmp_path, capsys):
    words = [f"run.output_dir={tmp_path / 'run'}", *overrides, "--config", str(tiny_yaml), "--dry-run"]
    assert train_backbone.main(words) == 2
    assert message in capsys.readouterr().err


def test_networks_without_bricks():
    objective = SimpleNamespace(train_bricks=None, brick_images=[8])
    with pytest.raises(ValueError, match="`objective.brick_images` is given, but a Linear has no bricks"):
        stages_of(objective, torch.nn.Linear(1, 1))


def test_stacks_that_do_not_fit_the_one_they_grow_from(tiny_run, tmp_path):
    lower = "model.config={window_sizes: [8], patch_sizes: [4], num_layers: [1], hidden_sizes: 8}"
    train(tiny_run("lower", lower, "model.config.num_attention_heads=2", "run.total_images=8"))
    start = f"model.init_from={tmp_path / 'lower' / 'pipeline'}"
    with pytest.raises(ValueError, match=r"`model.config.window_sizes` is \[4, 8\].*has \[8\]; a stack grows on top"):
        tiny_run("x", start, "model.config.window_sizes=[4, 8]", "model.config.patch_sizes=[4, 2]")
    with pytest.raises(ValueError, match="a brick on top may not be wider than those below"):
        tiny_run("y", start, "model.config.hidden_sizes=[8, 16]")
    with pytest.raises(ValueError, match="describe them as they are"):
        tiny_run("z", start, "model.config.num_layers=[2, 1]")


def test_sigma_data_of_objective_and_pretrained_brick(tiny_run, tmp_path, unet_pipeline):
    options = (f"model.wrap={unet_pipeline}", "model.config={window_sizes: [4], patch_sizes: [2], num_layers: [1]}",
               "model.config.hidden_sizes=8", "model.config.num_attention_heads=2", "run.total_images=8")  # fmt: skip
    train(tiny_run("run", *options, "objective.options={sigma_data: 0.4}"))
    init = f"model.init_from={tmp_path / 'run' / 'pipeline'}"
    same = "model.config={window_sizes: [8, 4], patch_sizes: [2, 2], num_layers: [0, 1]}"
    with pytest.raises(ValueError, match="`objective.options.sigma_data` is 0.5, but .* translated for 0.4"):
        tiny_run("again", init, same, "model.config.hidden_sizes=8", "model.config.num_attention_heads=[0, 2]")
