import pytest
import torch

from brickwork.gen.blocks.windows import pad_to_multiple, window_mask, window_partition, window_reverse


@pytest.mark.parametrize("mode", ["block", "grid"])
@pytest.mark.parametrize(("size", "patch"), [(2, 1), (6, 2), ((2, 3), 1), ((1, 3), 2), (12, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_partition_and_reverse_are_inverse(mode, size, patch, batch):
    sample = torch.randn(batch, 5, 24, 36)
    windows = window_partition(sample, size, mode, patch)
    rows, columns = (size, size) if isinstance(size, int) else size
    count = (24 // (rows * patch)) * (36 // (columns * patch))
    assert windows.shape == (batch, count, rows * columns, 5 * patch**2)
    assert torch.equal(window_reverse(windows, size, 24, 36, mode, patch), sample)


def test_block_windows_hold_neighbours_and_grid_windows_hold_distant_tokens():
    places = torch.arange(4 * 6).view(1, 1, 4, 6)
    block = window_partition(places, 2, "block")[0, :, :, 0]
    grid = window_partition(places, 2, "grid")[0, :, :, 0]
    assert block[0].tolist() == [0, 1, 6, 7]
    assert block[1].tolist() == [2, 3, 8, 9]
    assert grid[0].tolist() == [0, 3, 12, 15]
    assert grid[1].tolist() == [1, 4, 13, 16]


def test_a_patch_is_laid_out_like_a_convolution_kernel():
    sample, kernel = torch.randn(2, 3, 8, 8), torch.randn(7, 3, 2, 2)
    windows = window_partition(sample, 4, patch_size=2) @ kernel.flatten(1).T
    expected = torch.nn.functional.conv2d(sample, kernel, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(windows[:, 0], expected)


def test_padding_goes_below_and_to_the_right():
    padded = pad_to_multiple(torch.ones(1, 2, 5, 7), (4, 3))
    assert padded.shape == (1, 2, 8, 9)
    assert padded[..., :5, :7].min() == 1 and padded[..., 5:, :].max() == 0 and padded[..., 7:].max() == 0
    sample = torch.ones(1, 2, 8, 9)
    assert pad_to_multiple(sample, (4, 3)) is sample


@pytest.mark.parametrize("mode", ["block", "grid"])
@pytest.mark.parametrize(("height", "width", "patch"), [(5, 8, 1), (9, 17, 2), (8, 19, 2)])
def test_mask_marks_tokens_that_show_any_of_the_image(mode, height, width, patch):
    ones = pad_to_multiple(torch.ones(1, 1, height, width), 4 * patch)
    expected = window_partition(ones, 4, mode, patch)[0].amax(-1) > 0
    mask = window_mask(height, width, 4, mode, patch)
    assert torch.equal(mask, expected)
    assert 0 < mask.sum() < mask.numel()


def test_no_mask_where_nothing_is_padded():
    assert window_mask(16, 8, (4, 2), patch_size=2) is None
    assert window_mask(15, 7, (4, 2), patch_size=2) is None  # every token shows some of the image


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`mode` is 'dilated'; choose one of block, grid"):
        window_partition(torch.ones(1, 1, 4, 4), 2, "dilated")
    with pytest.raises(ValueError, match=r"\(5, 4\).*pad_to_multiple"):
        window_partition(torch.ones(1, 1, 5, 4), 2)
