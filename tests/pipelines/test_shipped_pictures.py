"""The pictures of the weights that ship, as they were when they were published.

`python tests/pipelines/test_shipped_pictures.py` draws them anew; do so only for other weights.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import brickwork

PICTURES = Path(__file__).parents[1] / "data" / "shipped" / "lego_avatars_64.npz"
CALLS = {
    "plain": {"class_labels": [0, 1]},
    "fast": {"class_labels": [2], "brick_schedule": "fast"},
    "guided": {"class_labels": [1, None], "guidance_scale": 2.0},
    "wide": {"class_labels": [0], "height": 64, "width": 160, "num_inference_steps": 2},
    "four-steps": {"class_labels": [4, 7], "num_inference_steps": None, "guidance_scale": None},
}
WEIGHTS = {"four-steps": "lego-avatars-64-4-steps"}


def draw(pipe, brick_schedule=None, **call) -> np.ndarray:
    """Pictures `(B, H, W, 3)`, uint8."""
    schedule = brickwork.BrickSchedule.fast(pipe.transformer) if brick_schedule else None
    # One generator an image, of these seeds since the pictures were published.
    source, count = torch.Generator().manual_seed(1), len(call["class_labels"])
    seeds = [torch.randint(2**63 - 1, (), generator=source).item() for _ in range(count)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    call = {"num_inference_steps": 3, "guidance_scale": 1.0, "generator": generators} | call
    images = pipe(**call, brick_schedule=schedule, output_type="np").images
    return (images * 255).round().astype(np.uint8)


def load_pipe(case):
    pipe = brickwork.LegoPipeline.from_pretrained(brickwork.pretrained(WEIGHTS.get(case, "lego-avatars-64")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("case", CALLS)
def test_pictures_have_not_changed(case):
    found, expected = draw(load_pipe(case), **CALLS[case]), np.load(PICTURES)[case]
    assert found.shape == expected.shape
    # Processors round differently, by less than half of the last of 255 steps.
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 0.01


if __name__ == "__main__":
    np.savez_compressed(PICTURES, **{case: draw(load_pipe(case), **call) for case, call in CALLS.items()})
