"""The resize filters against Pillow, against TensorFlow's bilinear written out, and pixels out of range."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brickwork.eval.extractors.protocols import PROTOCOLS, get_protocol, resize_tf1_bilinear, to_uint8

DATA = Path(__file__).parents[2] / "data" / "eval"
SIZES = [(7, 5, 13), (5, 9, 4), (16, 16, 16), (64, 48, 31), (1, 1, 3)]


def pictures(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator).float()


def tf1_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """`tf.image.resize_bilinear(align_corners=False)` of TensorFlow 1, pixel by pixel."""
    height, width = image.shape
    result = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y, x = np.float32(row) * np.float32(height / size), np.float32(column) * np.float32(width / size)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            result[row, column] = upper + (lower - upper) * (y - top)
    return result


@pytest.mark.parametrize("height, width, size", SIZES)
def test_adm_resizes_as_tensorflow_1(height, width, size):
    images = pictures(height, width)
    found = PROTOCOLS["adm"].resize(images, size)
    expected = np.stack([[tf1_bilinear(channel.numpy(), size) for channel in image] for image in images])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_adm_resizes_as_torch_fidelity():
    stored = np.load(DATA / "inception.npz")
    found = resize_tf1_bilinear(torch.from_numpy(stored["images"]).float(), 17)
    np.testing.assert_allclose(found.numpy(), stored["resized"], atol=1e-5)


def with_pillow(images: torch.Tensor, size: int, resample: Image.Resampling) -> np.ndarray:
    """Channel by channel on float pictures, so that nothing is rounded."""
    resized = [
        [Image.fromarray(c.numpy(), mode="F").resize((size, size), resample) for c in image] for image in images
    ]
    return np.array([[np.asarray(channel) for channel in image] for image in resized])


@pytest.mark.parametrize("height, width, size", SIZES)
def test_clean_resizes_as_pillow(height, width, size):
    images = pictures(height, width)
    expected = with_pillow(images, size, Image.Resampling.BICUBIC).clip(0, 255)
    np.testing.assert_allclose(PROTOCOLS["clean"].resize(images, size).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("height, width, size", SIZES)
def test_torchmetrics_resizes_as_pillow_with_antialias(height, width, size):
    images = pictures(height, width)
    expected = with_pillow(images, size, Image.Resampling.BILINEAR)
    np.testing.assert_allclose(PROTOCOLS["torchmetrics"].resize(images, size).numpy(), expected, atol=2e-3)


def test_legacy_pytorch_has_half_pixel_centres_and_no_antialias():
    """Down by 4 from a row 0, 1, 2, …: the two pixels at the centre 4k + 1.5 and nothing else."""
    row = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16).contiguous()
    found = PROTOCOLS["legacy-pytorch"].resize(row, 4)[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([1.5, 5.5, 9.5, 13.5]))
    spike = torch.zeros(1, 1, 16, 16)
    spike[..., 0] = 255.0  # out of reach of the two centre pixels, within that of an antialiasing filter
    assert PROTOCOLS["legacy-pytorch"].resize(spike, 4).max() == 0
    assert PROTOCOLS["torchmetrics"].resize(spike, 4).max() > 10


def test_protocols_give_different_pixels():
    images = pictures(40, 40)
    found = [protocol.resize(images, 23) for protocol in PROTOCOLS.values()]
    for i, first in enumerate(found):
        for second in found[i + 1 :]:
            assert (first - second).abs().max() > 1


def test_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="`protocol` is 'cleen'; did you mean 'clean'"):
        get_protocol("cleen")


def test_floats_are_rounded_to_the_nearest_level():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels), levels)
    for error in (-0.0015, 0.0, 0.0015):  # under half a level, up and down
        assert torch.equal(to_uint8((levels.float() / 255 + error).clamp(0, 1)), levels)
    assert torch.equal(to_uint8(levels.double().numpy() / 255), levels)


@pytest.mark.parametrize("value", [1.01, -0.01, 255.0])
def test_values_outside_the_range_are_an_error_and_no_wrap_around(value):
    images = torch.full((2, 3), 0.5)
    images[1, 2] = value
    with pytest.raises(ValueError, match=r"1 pixels lie outside \[0, 1\]"):
        to_uint8(images)


def test_values_that_are_no_pixels_are_an_error():
    with pytest.raises(ValueError, match="1 pixels are not finite"):
        to_uint8(torch.tensor([0.5, torch.nan]))
    with pytest.raises(ValueError, match="int64; need uint8"):
        to_uint8(torch.tensor([1, 2]))
