"""The study of stitched networks: its ways to draw, and that it goes through."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from brickwork import StitchedDenoiser
from brickwork.adapters.base import denoiser_of
from brickwork.eval.sampling.pipelines import load_pipeline
from brickwork.training.config.config import load_config
from brickwork.training.studies import stitching

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
VALUES = {
    "stitching": {
        "anchors": {
            "small": {"num_layers": 2, "hidden_size": 16},
            "large": {"num_layers": 3, "hidden_size": 32},
        },
        "tuning_images": 4, "tuning_rate": 1e-3, "shown": 2, "fewer_steps": [2], "switches": [0.5], "calibration": 8,
    },
    "scores": {
        "extractor": None, "protocol": "clean", "samples": 4, "steps": 3, "guidance_scale": 1.0, "batch_size": 4,
    },
    "model": {
        "type": "BlockTransformer2DModel", "config": {"block_types": "dit", "patch_size": 4, "attention_head_dim": 8},
    },
    "data": {"source": str(SAMPLE), "size": 8, "group_column": "codepoints", "held_out": 0.1},
    "run": {"batch_size": 4, "total_images": 8, "mixed_precision": "no"},
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(VALUES, sort_keys=False))
    return path


def test_the_study_goes_through(path, tmp_path, forked_cells):
    out = tmp_path / "out"
    assert stitching.main([str(path), "-o", str(out)]) == 0
    rows = json.loads((out / "stitching.json").read_text())["rows"]
    names, costs = [row["subnet"] for row in rows], [row["operations"] for row in rows]
    assert names[0] == "anchor-0" and names[-1] == "anchor-1" and costs == sorted(costs) and len(rows) > 2
    untuned = [(row["least squares, untuned"], row["random, untuned"]) for row in rows]
    assert untuned[0][0] == untuned[0][1] and untuned[-1][0] == untuned[-1][1]  # anchors do not depend on the start
    study = stitching.Stitching(load_config(path, kind=stitching.StitchingConfig), out)
    models = {name: denoiser_of(load_pipeline(str(folder))) for name, folder in study.networks().items()}
    assert all(isinstance(model, StitchedDenoiser) for model in models.values())
    starts = [models[f"{start}, untuned"] for start in stitching.STARTS]
    assert all(torch.equal(a, b) for a, b in zip(*(model.networks.parameters() for model in starts)))
    assert not torch.equal(*(next(model.stitching.parameters()) for model in starts))
    results = {"stitched/least-squares": dict(zip(names, costs))}
    ways = study.ways(results)
    assert ways["anchor-0 for 50%, then anchor-1"]["schedule"] == [[0.5, "anchor-0"], [1.0, "anchor-1"]]
    assert ways["anchor-1, 2 steps"]["steps"] == 2 and len([name for name in ways if name.endswith(", tuned")]) == 2
