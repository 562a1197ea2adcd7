"""Two processes give what one gives."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from brickwork.eval.metrics.distances import frechet_distance
from brickwork.eval.sets.pictures import open_image_set

SCRIPT = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from accelerate import PartialState
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from brickwork.eval.metrics.calculate import calculate
from brickwork.eval.metrics.registry import MetricSettings
from brickwork.eval.extractors.features import from_module
from brickwork.eval.metrics.feature_sets import extract_features
from brickwork.eval.sets.pictures import open_image_set
from brickwork.eval.extractors.protocols import PROTOCOLS
from brickwork.eval.metrics.reference import make_reference
from brickwork.eval.sampling.sample_set import SamplingSettings, sample_set

pictures, output, few = map(Path, sys.argv[1:4])
state = PartialState(cpu=True)
torch.manual_seed(0)
class Network(torch.nn.Sequential):
    def forward(self, images):
        features = super().forward(images).flatten(1)
        return {"features": features, "logits": features[:, :4]}
network = Network(torch.nn.Conv2d(3, 6, 5), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1))
extractor = from_module(network, "Small", 16)
unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
                   up_block_types=("UpBlock2D",) * 2, layers_per_block=1, norm_num_groups=2)
sample_set(DDPMPipeline(unet.eval(), DDPMScheduler()), SamplingSettings(7, call={"num_inference_steps": 2}),
           output / "samples", batch_size=2, progress=False)
sample_set(DDPMPipeline(unet.double(), DDPMScheduler()), SamplingSettings(7, call={"num_inference_steps": 2}),
           output / "samples64", batch_size=1 + state.num_processes, progress=False)
for name, source in (("all", pictures), ("few", few)):
    measured = extract_features(open_image_set(source), extractor, PROTOCOLS["clean"], progress=False)
    count, mean, covariance = measured.statistics["features"]
    torch.save({"count": count, "mean": mean, "covariance": covariance, "digests": measured.digests,
                "features": measured.outputs["features"]}, output / f"{name}-{state.process_index}.pt")
reference = make_reference(pictures, extractor, "clean", progress=False)
settings = MetricSettings(("kd", "prdc", "is"), subsets=3, subset_size=4, splits=2, precision_k=2, density_k=2)
result = calculate([few], reference, extractor, settings, progress=False)
whole = calculate([pictures], reference, extractor, MetricSettings(("fd",)), progress=False)
(output / f"metrics-{state.process_index}.json").write_text(json.dumps(result["metrics"] | whole["metrics"]))
(output / f"world-{state.process_index}.json").write_text(json.dumps(
    {"world": state.num_processes, "backend": dist.get_backend() if dist.is_initialized() else None}))
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.fixture
def runs(tmp_path, pixels, write_folder, monkeypatch):
    """The script run here, and by two processes; the folder of each."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folders = {count: tmp_path / f"run-{count}" for count in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
    pictures, few = str(write_folder(pixels)), str(write_folder(pixels[:5], "few"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(script), pictures, str(folders[2]), few]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    monkeypatch.setattr(sys, "argv", ["script.py", pictures, str(folders[1]), few])
    runpy.run_path(str(script))
    return folders


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def metrics(folder: Path, rank: int) -> dict[str, float]:
    entries = json.loads((folder / f"metrics-{rank}.json").read_text())
    return {name: entry["mean"] for name, entry in entries.items()}


def test_two_processes_give_what_one_gives(runs):
    worlds = [json.loads((runs[2] / f"world-{rank}.json").read_text()) for rank in (0, 1)]
    assert worlds == [{"world": 2, "backend": "gloo"}] * 2
    for name in ("all", "few"):  # five pictures are one batch: the second process has none
        one = load(runs[1] / f"{name}-0.pt")
        for rank in (0, 1):
            two = load(runs[2] / f"{name}-{rank}.pt")
            assert two["count"] == one["count"]
            assert torch.equal(two["features"], one["features"]) and torch.equal(two["digests"], one["digests"])
            torch.testing.assert_close(two["mean"], one["mean"], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(two["covariance"], one["covariance"], rtol=1e-9, atol=1e-12)
    one, two, few = load(runs[1] / "all-0.pt"), load(runs[2] / "all-1.pt"), load(runs[1] / "few-0.pt")
    distances = [frechet_distance(few["mean"], few["covariance"], x["mean"], x["covariance"]) for x in (one, two)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-6) and distances[0] > 0
    one, *two = (metrics(runs[count], rank) for count, rank in ((1, 0), (2, 0), (2, 1)))
    assert set(one) == {"FD-Small", "KD-Small", "IS-Small", "precision", "recall", "density", "coverage"}
    for name, value in one.items():
        assert [values[name] for values in two] == pytest.approx([value] * 2, rel=1e-6, abs=1e-9), name
    one = load(runs[1] / "all-0.pt")
    for name in ("samples", "samples64"):  # the latter in float64, and with another batch size
        samples = [runs[count] / name for count in (1, 2)]
        assert len(open_image_set(samples[0])) == 7
        for path in samples[0].iterdir():
            assert path.read_bytes() == (samples[1] / path.name).read_bytes(), path.name
    assert np.array_equal(one["digests"].numpy().any(axis=1), np.ones(70, dtype=bool))
