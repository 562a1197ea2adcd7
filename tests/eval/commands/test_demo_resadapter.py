"""`brickwork demo resadapter` with the weights that ship."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import brickwork
from brickwork import cli
from brickwork.adapters.resadapter.functions import load_resadapter
from brickwork.eval.commands.demo_resadapter import SIZES, WEIGHTS
from brickwork.eval.sampling.pipelines import load_pipeline


def test_one_picture_of_every_size_before_and_after(tmp_path, capsys):
    path = tmp_path / "both.png"
    arguments = ["demo", "resadapter", "--steps", "1", "--prompts", "red apple", "--output", str(path)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for height, width in SIZES:
        assert f"{height} x {width}, without ResAdapter" in printed
        assert f"{height} x {width}, with ResAdapter" in printed
    assert Image.open(path).height > 4 * sum(height for height, _ in SIZES)


def test_the_adapter_that_ships_acts_and_all_of_it_is_small():
    folder = brickwork.pretrained(WEIGHTS)
    pipeline = load_pipeline(str(folder))
    sample, prompt = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 32, 128)
    with torch.no_grad():
        before = pipeline.unet(sample, 500, prompt).sample
        load_resadapter(pipeline, folder / "resadapter")
        assert not torch.allclose(pipeline.unet(sample, 500, prompt).sample, before, atol=1e-3)
    assert sum(file.stat().st_size for file in Path(folder).rglob("*")) <= 12 * 2**20
    assert "CC BY 4.0" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "both.jpg"], "ends in .png"),
        (["--steps", "0"], "give a whole number from 1 up"),
        (["--weights", "avatar-sd"], "did you mean 'avatars-sd-64'?"),
        (["--weights", "lego-avatars-64"], "a Stable Diffusion folder with the two files"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert cli.main(["demo", "resadapter", *arguments]) == 2
    assert message in capsys.readouterr().err
