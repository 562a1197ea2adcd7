"""Pictures as an autoencoder gives them back."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from brickwork import cli


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write(folder, side, count=3):
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for index in range(count):
        pixels = numbers.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


def test_pictures_are_what_diffusers_gives_back(vae, tmp_path, capsys):
    write(tmp_path / "in", 16)
    words = ["evaluate", "reconstruct", str(vae), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(words) == 0
    model, ratios = AutoencoderKL.from_pretrained(vae).eval(), []
    for index in range(3):
        pixels = np.array(Image.open(tmp_path / "in" / f"{index}.png"))
        with torch.no_grad():
            sample = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
            given = model.decode(model.encode(sample).latent_dist.mean).sample[0].permute(1, 2, 0)
        wanted = ((given.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.int32)
        found = np.asarray(Image.open(tmp_path / "out" / f"{index:06d}.png")).astype(np.int32)
        assert np.abs(found - wanted).max() <= 1
        ratios.append(-10 * np.log10(np.square((found - pixels) / 255).mean()))
    assert f"3 pictures, PSNR {np.mean(ratios):.2f} dB" in capsys.readouterr().out
    assert cli.main(words) == 2 and "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [("vae", "no multiples of the autoencoder's 2; give --resolution"), ("pictures", "which holds no AutoencoderKL")],
)
def test_what_cannot_be_coded_is_named(vae, tmp_path, capsys, given, message):
    write(tmp_path / "in", 15)
    source = str(vae) if given == "vae" else str(tmp_path / "in")
    words = ["evaluate", "reconstruct", source, str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
