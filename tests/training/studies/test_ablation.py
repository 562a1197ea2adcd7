"""An ablation trains its variants alike, hands their weights on, and compares them seed by seed."""

import json
import re
from pathlib import Path

import pytest
import yaml

from brickwork.cli import main
from brickwork.training.config.config import load_config
from brickwork.training.studies.ablation import Ablation, AblationConfig

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
VARIANTS = {
    "longer": {"start": "first"},
    "first": {"label": "the start"},
    "grown": {"start": "first", "grow": {"k": 2}},
    "taught": {
        "set": {"objectives": [{"type": "output", "teacher": "run:first"}], "model.config.layers_per_block": 2},
    },
}
VALUES = {
    "ablation": {"seeds": [0, 1], "equal": "seconds", "timing_rounds": 1},
    "model": {
        "type": "BlockUNet2DModel",
        "config": {"block_types": "resnet", "block_out_channels": [8, 16], "layers_per_block": 1},
    },
    "data": {"source": str(SAMPLE), "size": 8, "group_column": "codepoints", "held_out": 0.1},
    "run": {"batch_size": 4, "total_images": 8, "mixed_precision": "no"},
}


def written(tmp_path: Path, **values) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"variants": VARIANTS} | VALUES | values, sort_keys=False))
    return path


def test_an_ablation_goes_through_and_does_not_train_twice(tmp_path, capsys, forked_cells):
    path = written(tmp_path)
    assert main(["ablation", str(path), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows) == ["longer", "first", "grown", "taught"]
    assert rows["first"]["images"] == rows["longer"]["images"] == 8
    assert rows["grown"]["parameters"] > 2 * rows["first"]["parameters"]
    assert all(row["seeds"] == 2 and row["images"] % 4 == 0 and row["loss"] > 0 for row in rows.values())
    grown = json.loads((tmp_path / "out" / "grown" / "grown-seed1" / "config.json").read_text())
    assert grown["_class_name"] == "CompositeDenoiser"
    capsys.readouterr()
    assert main(["ablation", str(path), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert "cells/" not in capsys.readouterr().out


def test_a_variant_trains_with_its_own_values_and_those_that_it_uses(tmp_path):
    config = load_config(written(tmp_path), kind=AblationConfig)
    ablation = Ablation(config, tmp_path / "out")
    taught = ablation.run("taught", 1)
    assert taught.objectives[0]["teacher"].endswith("cells/first-seed1/run/pipeline")
    assert taught.model.config["layers_per_block"] == 2 and taught.run.seed == 1
    assert ablation.run("longer", 0).model.init_from.endswith("cells/first-seed0/run/pipeline")
    assert ablation.run("first", 0).model.init_from is None
    shorter = ablation.run("first", 0, images=4)
    assert shorter.run.total_images == 4 and shorter.optimizer.warmup_images == config.optimizer.warmup_images // 2


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a": {"strat": "b"}, "b": None}, r"`variants.a`.*strat.*start"),
        ({"a": {"start": "c"}, "b": None}, r"`variants.a` is 'c'"),
        (
            {"a": {"set": {"objectives": [{"type": "output", "teacher": "run:ab"}]}}, "b": None},
            r"`variants.a` is 'ab'",
        ),
        ({"a": {"grow": {"k": 2}}}, r"`variants.a.grow`.*name its `start`"),
        ({"a": {"start": "b"}, "b": {"start": "c"}, "c": None}, r"`variants.a` is 'b'.*only one may stand behind"),
        ({"a": {"set": {"model.config.layers_per_blok": 3}}}, r"`variants.a`: .*layers_per_blok"),
        ({"a": {"once": True}}, r"`variants` .*give one that is not"),
        ({"a": {"set": {"run.totalimages": 3}}}, r"`variants.a`: Unknown key `run.totalimages`"),
        ({"a": {"once": True, "start": "b"}, "b": None}, r"`variants.a.once`"),
    ],
)
def test_wrong_variants_are_named(tmp_path, capsys, variants, message):
    assert main(["ablation", str(written(tmp_path, variants=variants)), "-o", str(tmp_path / "out"), "--dry-run"]) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "out").exists()
