"""Figures of motion: a square that moves as it is told has no error, one that stands still the way it did not go."""

import io
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from brickwork import BlockUNet2DModel, ClassToImagePipeline, VideoPipeline, inflate
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.studies.motion import flicker, main, middle, motion_error, video_pipeline


def walking(frames=5, size=16):
    clip = np.full((frames, size, size, 3), 240, np.uint8)
    for frame in range(frames):
        clip[frame, 6:10, 2 + 2 * frame : 6 + 2 * frame] = (200, 30, 30)
    return clip


def test_the_error_is_the_way_that_was_not_gone():
    clip = walking()
    truth = np.stack([np.arange(5) * 2 / 16, np.zeros(5)], axis=1)[None]
    assert middle(clip)[:, 0].tolist() == [3.5, 5.5, 7.5, 9.5, 11.5] and set(middle(clip)[:, 1]) == {7.5}
    assert motion_error(clip[None], truth).tolist() == [0]
    still = np.repeat(clip[:1], 5, axis=0)[None]
    assert motion_error(still, truth)[0] == pytest.approx(np.sqrt(np.mean(np.square([2, 4, 6, 8]))))
    assert flicker(still) == 0 and flicker(clip[None]) > 1


def test_the_command_compares_clips_with_frames_alone(tmp_path, capsys):
    from datasets import ClassLabel, Dataset, Features, Value

    frames, file = [Image.fromarray(frame) for frame in walking(6, 8)[:, :8, :8]], io.BytesIO()
    frames = [Image.fromarray(np.roll(np.asarray(frames[0]), k, axis=1)) for k in range(6)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True, duration=100)
    truth = json.dumps({"dx": [k / 8 for k in range(6)], "dy": [0.0] * 6})
    rows = {"clip": [{"bytes": file.getvalue(), "path": "a"}] * 2, "label": [1, 1], "truth": [truth] * 2}
    names = ["blink", "walk"]
    kinds = {"clip": {"bytes": Value("binary"), "path": Value("string")}, "label": ClassLabel(names=names)}
    features = Features(kinds | {"truth": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "clips.parquet")
    Dataset.from_dict(rows | {"label": [0, 0]}, features=features).to_parquet(tmp_path / "still.parquet")
    image = BlockUNet2DModel(
        sample_size=8, num_classes=2, block_out_channels=(8,), layers_per_block=1, id2label={0: "blink", 1: "walk"}
    )
    torch.nn.init.normal_(image.conv_out.weight, std=0.1)
    ClassToImagePipeline.from_objective(image, EDMObjective()).save_pretrained(tmp_path / "image")
    VideoPipeline.from_objective(inflate(image), EDMObjective()).save_pretrained(tmp_path / "video")
    words = [str(tmp_path / "video"), str(tmp_path / "image"), "--data", str(tmp_path / "clips.parquet")]
    assert main([*words, "--frames", "3", "--steps", "2"]) == 0
    first, _, _, *table = capsys.readouterr().out.splitlines()
    assert first.startswith("2 clips, 2 of them moving; standing still 3.16 px")
    # An inflated network is the image network until it is trained.
    assert len(table) == 3 and "frame by frame" in table[2]
    assert table[0].split("|")[2:] == table[1].split("|")[2:] == table[2].split("|")[2:]
    assert isinstance(video_pipeline(str(tmp_path / "image"), 3), VideoPipeline)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8, latent_channels=3)
    ClassToImagePipeline.from_objective(image, EDMObjective(), vae).save_pretrained(tmp_path / "latents")
    assert video_pipeline(str(tmp_path / "latents"), 3).vae is not None
    gif = tmp_path / "motion.gif"
    words = [f"two={tmp_path / 'image'},{tmp_path / 'latents'}", *words[2:], "--frames", "3", "--steps", "1"]
    assert main([*words, "--gif", str(gif)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].count("±") == 3
    with Image.open(gif) as shown:
        assert shown.n_frames == 3 and shown.size == (2 * 8, 2 * 8)  # two clips, and below them what was drawn
    words = [str(tmp_path / "image"), "--data", str(tmp_path / "still.parquet"), "--frames", "3", "--steps", "1"]
    assert main(words) == 0
    first, *_, row = capsys.readouterr().out.splitlines()
    assert first.startswith("2 clips, 0 of them moving; their flicker") and row.split("|")[3].strip() == "–"
