"""Every backbone trains with the one entry script, and leaves a pipeline that loads.

A new one is tested by its line in `gen/networks/__init__.py`; those made of networks are in `test_made_of_networks`.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from brickwork import LegoTransformer2DModel, pretrained
from brickwork.gen.networks.parts import Parted
from brickwork.training import train_backbone
from brickwork.training.config.config import load_config
from brickwork.training.config.recipes import TINY, list_recipes, recipe
from brickwork.training.tasks.backbones import BACKBONES, TrainedOn, build_model, build_objective

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
NETWORKS = {
    "transformer": (
        "BlockTransformer2DModel",
        "{block_types: dit, patch_size: 4, num_layers: 1, hidden_size: 16, attention_head_dim: 8}",
    ),
    "d-emo": (
        "BlockTransformer2DModel",
        "{block_types: i2rmb, patch_size: 2, num_layers: 1, hidden_size: 16, attention_head_dim: 8}",
    ),
    "unet": (
        "BlockUNet2DModel",
        "{block_types: [resnet, i2rmb], block_out_channels: [8, 16], layers_per_block: 1, attention_head_dim: 8}",
    ),
}
OF_DATA = ("sample_size", "in_channels", "num_classes", "cross_attention_dim")
NETWORKS |= {
    name: (name, json.dumps({key: value for key, value in kind.smallest.items() if key not in OF_DATA}))
    for name, kind in BACKBONES.items()
    if not issubclass(kind, Parted)
}
FITTING = [(name, "edm") for name in NETWORKS] + [
    (name, "flow") for name, (kind, _) in NETWORKS.items() if BACKBONES[kind].pipeline == "ClassToImagePipeline"
]


@pytest.mark.parametrize(("network", "objective"), FITTING)
def test_two_steps_and_a_pipeline(network, objective, tmp_path):
    model_type, config = NETWORKS[network]
    overrides = [
        f"model.type={model_type}", f"model.config={config}", f"objective.type={objective}", f"data.source={SAMPLE}",
        "data.group_column=codepoints", "data.size=16", "data.held_out=0.1", "run.total_images=8", "run.batch_size=4",
        f"run.output_dir={tmp_path / 'run'}", "samples.count=2", "samples.steps=2",
    ]  # fmt: skip
    assert train_backbone.main(overrides) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert type(pipe.transformer).__name__ == model_type
    pipe.set_progress_bar_config(disable=True)
    images = pipe(class_labels=["flags"], num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
    assert images[0].size == (16, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.type=epsilon"], "LEGO's pipeline samples what edm trains"),
        (["objective.options={foo: 1}"], "`objective.options` has 'foo', which edm does not take; edm takes p_mean"),
        (["objective.options={p_std: -1}"], "`p_std`"),
        (["objective.options={p_std: x}"], "`objective.options`"),
        (["optimizer.betas=[a, b]"], "`optimizer.betas`"),
        (["optimizer.betas=[0.9, 1.5]"], "`optimizer.betas`"),
        (["optimizer.learning_rate=.inf"], "`optimizer.learning_rate`"),
        (["optimizer.weight_decay=-1"], "`optimizer.weight_decay`"),
        (["model.config={in_channels: 4}"], "`model.config.in_channels` is 4, but the data have 3"),
        (["model.config={num_classes: 3}"], "`model.config.num_classes` is 3, but the data have 9"),
        (["model.config={window_sizes: 4}"], "`window_sizes` is 4"),
        (
            ["model.type=BlockTransformer2DModel", "model.preset=dit-s-8"],
            "'edm', but the network estimates 6 channels for 3; .* `objective.type=epsilon`, or .*out_channels=3`",
        ),
        (
            ["model.type=BlockUNet2DModel", "objective.type=flow", "model.config={out_channels: 4}"],
            "'flow', but the network estimates 4 channels for 3; build .*out_channels=3`",
        ),
        (["model.config={widow_sizes: 4}"], "did you mean 'window_sizes'"),
    ],
)
def test_a_dry_run_finds_what_is_wrong(overrides, message, capsys):
    words = [f"data.source={SAMPLE}", "data.size=16", "run.output_dir=unused", *overrides, "--dry-run"]
    assert train_backbone.main(words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_saved_weights_must_be_of_the_network_described(tmp_path, capsys):
    stack = {"window_sizes": [16], "patch_sizes": [4], "num_layers": [1], "num_attention_heads": 1}
    LegoTransformer2DModel(num_classes=9, hidden_sizes=8, **stack).save_pretrained(tmp_path)
    words = [f"data.source={SAMPLE}", "data.size=16", "run.output_dir=unused", f"model.init_from={tmp_path}"]
    for width, status in ((8, 0), (16, 2)):
        described = f"model.config={stack | {'hidden_sizes': width}}"
        assert train_backbone.main([*words, described, "--dry-run"]) == status
    assert "holds another network" in capsys.readouterr().err


def test_weights_that_ship_are_begun_with_by_name():
    names = list(
        LegoTransformer2DModel.load_config(pretrained("lego-avatars-64"), subfolder="transformer")["id2label"].values()
    )
    config = load_config("lego_avatars_64_muon", ["model.init_from=lego-avatars-64"])
    model = build_model(config.model, config.objective, TrainedOn(names, config.data.size, 4))
    whole = LegoTransformer2DModel.from_pretrained(pretrained("lego-avatars-64"), subfolder="transformer")
    assert all(torch.equal(ours, other.float()) for ours, other in zip(model.parameters(), whole.parameters()))


@pytest.mark.parametrize("name", list_recipes())
def test_every_preset_has_a_recipe(name):
    path, overrides = recipe(name)
    config = load_config(path, overrides)
    with torch.device("meta"):
        model = build_model(config.model, config.objective, TrainedOn(["a", "b"], config.data.size, 3))
    assert config.run.output_dir == f"runs/{name}" and model.config.num_classes == 2
    learned = model.config.get("out_channels") == 6
    assert learned == (build_objective(config.objective).__class__.__name__ == "EpsilonObjective")
    assert model.config.sample_size == config.data.size


@pytest.mark.parametrize("name", TINY)
def test_recipes_for_a_cpu_pass_a_dry_run(name, capsys):
    words = ["--preset", name, f"data.source={SAMPLE}", "data.classes=null", "--dry-run"]
    assert train_backbone.main(words) == 0
    assert "parameters" in capsys.readouterr().out


def test_two_steps_of_a_recipe(tmp_path, capsys):
    words = ["--preset", "tiny-mixed", f"data.source={SAMPLE}", "data.classes=null", f"run.output_dir={tmp_path}"]
    assert train_backbone.main([*words, "run.batch_size=2", "run.total_images=4", "run.sample_images=0"]) == 0
    assert (tmp_path / "pipeline" / "model_index.json").is_file()
    for wrong, message in ((["--preset", "tiny-maxvti"], "tiny-maxvit"), (["--config", "a.yaml"], "Give one of them")):
        assert train_backbone.main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
