"""Multi-granularity distillation: equal to the authors' expressions; one teacher or two, of any kind and width."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from brickwork.training.config.config import load_config
from brickwork.training.engine.loop import prepare, train
from brickwork.training.objectives.mgd import (
    MultiGranularityObjective,
    as_map,
    deepest,
    image_level,
    pixel_level,
    region_level,
    self_similarity,
)
from brickwork.training.tasks.backbone import BackboneTask

# What the authors' `CriterionCosineSimilarity` and the lines around it give for the same random numbers
# (exp.city/city8.resnet18_deeplabv3plus/criterion.py and train.py of JayQine/MGD-SSSS at 9309105).
EXPECTED = Path(__file__).parents[2] / "data" / "mgd.json"
UNET = {"block_out_channels": [8, 8], "block_types": "resnet", "layers_per_block": 1}
DIT = {"num_layers": 2, "hidden_size": 24, "attention_head_dim": 12, "patch_size": 2}
NETWORKS = {"BlockUNet2DModel": UNET, "BlockTransformer2DModel": DIT}


def test_equal_to_the_authors_expressions():
    random = np.random.RandomState(0)
    outputs = [torch.from_numpy(random.standard_normal((2, 3, 16, 24))) for _ in range(2)]
    features = [torch.from_numpy(random.standard_normal(shape)) for shape in ((2, 8, 14, 21), (2, 12, 9, 16))]
    expected = json.loads(EXPECTED.read_text())
    assert image_level(*outputs).item() == pytest.approx(expected["image"] / 2, rel=1e-5)  # a mean over images
    assert region_level(*features).item() == pytest.approx(expected["region"], rel=1e-5)
    assert pixel_level(*outputs).item() == pytest.approx(expected["pixel"], rel=1e-5)
    assert self_similarity(features[0])[0, 0, :5].tolist() == pytest.approx(expected["similarity"], abs=1e-5)


def test_tokens_are_maps():
    sample, tokens = torch.zeros(1, 3, 8, 16), torch.arange(32.0).view(1, 32, 1)
    assert torch.equal(as_map(tokens, sample, "a"), torch.arange(32.0).view(1, 1, 4, 8))
    with pytest.raises(ValueError, match=r"`taps` has 'a', whose output is \(1, 2, 3, 4, 5\)"):
        as_map(torch.zeros(1, 2, 3, 4, 5), sample, "a")
    with pytest.raises(ValueError, match="no features of a Linear are known; name modules"):
        deepest(torch.nn.Linear(1, 1))


@pytest.fixture
def make(tiny_yaml, tmp_path, tiny_run):
    """`make("name", "BlockUNet2DModel", "section.key=value", …)` => a run of a tiny network without bricks."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def build(name, model, *overrides, objectives=()):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        values = yaml.safe_load(tiny_yaml.read_text())
        values |= {
            "model": {"type": model, "config": NETWORKS[model]},
            "objective": {},
            "objectives": list(objectives),
        }
        path = tmp_path / "network.yaml"
        path.write_text(yaml.safe_dump(values))
        return prepare(BackboneTask, load_config(path, [f"run.output_dir={tmp_path / name}", *overrides]))

    return build


def test_one_teacher_or_two_of_other_kinds(make, tmp_path):
    """A transformer teaches a UNet regions, a wider UNet images; features are found by themselves."""
    train(make("deep", "BlockTransformer2DModel", "run.total_images=8"))
    train(make("wide", "BlockUNet2DModel", "run.total_images=8", "model.config.block_out_channels=[8, 12]"))
    deep, wide = (str(tmp_path / name / "pipeline") for name in ("deep", "wide"))
    run = make("two", "BlockUNet2DModel", objectives=[{"type": "mgd", "teacher": [deep, wide], "weight": 0.5}])
    (objective,) = run.further.objectives
    assert objective.pairs == {"mid_block.0": "blocks.1"} and list(objective.teachers) == [deep, wide]
    assert train(run) == 32
    line = json.loads((tmp_path / "two" / "log.jsonl").read_text().splitlines()[-1])
    assert {"objective/mgd_image", "objective/mgd_region", "objective/mgd_pixel"} <= line.keys()
    one = make("one", "BlockUNet2DModel", objectives=[{"type": "mgd", "teacher": deep, "image": 0, "region": 0}])
    assert train(one) == 32
    line = json.loads((tmp_path / "one" / "log.jsonl").read_text().splitlines()[-1])
    assert "objective/mgd_pixel" in line and "objective/mgd_region" not in line


def test_bad_input(make, tmp_path):
    for options, message in (
        ({"teacher": []}, "give one or two different pipelines"),
        ({"teacher": ["a", "a"]}, "give one or two different pipelines"),
        ({"teacher": "a", "region": -1}, "give 0 or more, and not all 0"),
        ({"teacher": "a", "image": 0, "region": 0, "pixel": 0}, "not all 0"),
        ({"teacher": "a", "taps": {}}, "give modules of network and teacher"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiGranularityObjective(**options)
    train(make("other", "BlockUNet2DModel", "run.total_images=8", "data.classes=[Flags, Objects]"))
    other = str(tmp_path / "other" / "pipeline")
    with pytest.raises(ValueError, match="a network of 2 classes; this one has"):
        make("run", "BlockUNet2DModel", objectives=[{"type": "mgd", "teacher": other}])
