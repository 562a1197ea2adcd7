"""Pictures that are a part of a larger one, or go on at the opposite side."""

import pytest
import torch

from brickwork.gen.conditioning import coordinate_channels
from brickwork.gen.operations import count_operations


def inputs(height, width, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator), torch.randn(batch, generator=generator)


def places_of(height, width):
    return coordinate_channels(height, width, torch.device("cpu"), torch.float32)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 48), (9, 33)])
def test_coordinates_of_the_whole_picture_are_the_default(any_lego, height, width):
    sample, timestep = inputs(height, width)
    expected = any_lego(sample, timestep).sample
    places = places_of(height, width)
    assert torch.equal(any_lego(sample, timestep, coordinates=places).sample, expected)
    assert torch.equal(any_lego(sample, timestep, coordinates=places.repeat(2, 1, 1, 1)).sample, expected)
    assert not torch.allclose(any_lego(sample, timestep, coordinates=places / 2).sample, expected)


@torch.no_grad()
def test_every_image_has_coordinates_of_its_own(lego):
    model = lego()
    sample, timestep = inputs(16, 16)
    places = torch.cat([places_of(16, 16), places_of(32, 32)[..., 16:, :16]])
    together = model(sample, timestep, coordinates=places).sample
    for i in range(2):
        alone = model(sample[i : i + 1], timestep[i : i + 1], coordinates=places[i : i + 1]).sample
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("height", "width", "cyclic"), [(16, 20, (False, True)), (23, 9, (True, False)), (17, 33, (True, True))]
)
def test_windows_over_the_end_are_filled_from_the_beginning(lego, height, width, cyclic):
    """As if the picture, cut to whole windows, had been repeated; and for as many operations as padding takes."""
    model = lego("one brick")
    sample, timestep = inputs(height, width)
    places = places_of(height, width)
    filled = [-(-side // 16) * 16 if goes else side for side, goes in zip((height, width), cyclic)]
    repeated = [
        torch.cat([torch.cat([x, x], 2), torch.cat([x, x], 2)], 3)[..., : filled[0], : filled[1]]
        for x in (sample, places)
    ]
    expected = model(repeated[0], timestep, coordinates=repeated[1]).sample[..., :height, :width]
    operations, output = count_operations(lambda: model(sample, timestep, cyclic=cyclic).sample)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    assert operations == count_operations(lambda: model(sample, timestep))[0]
    assert not torch.allclose(output, model(sample, timestep).sample)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 48), (32, 16), (8, 8)])
def test_where_windows_fit_there_is_nothing_to_fill(any_lego, height, width):
    sample, timestep = inputs(height, width)
    expected = any_lego(sample, timestep).sample
    assert torch.equal(any_lego(sample, timestep, cyclic=(True, True)).sample, expected)


@torch.no_grad()
def test_one_compiled_graph_for_all_offsets(lego):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = lego("one brick")
    backend = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    sample, timestep = inputs(16, 20)
    for offset in (0, 4, 8, 12):
        places = torch.roll(places_of(16, 20), -offset, 3)
        options = {"coordinates": places, "cyclic": (False, True)}
        expected = model(sample, timestep, **options).sample
        torch.testing.assert_close(compiled(sample, timestep, **options).sample, expected, rtol=1e-5, atol=1e-6)
    assert backend.frame_count == 1
    torch._dynamo.reset()


def test_coordinates_of_another_shape_are_refused(lego):
    sample, timestep = inputs(16, 20)
    with pytest.raises(
        ValueError, match=r"`coordinates` has shape \(1, 2, 16, 16\); give \(2, 2, 16, 20\), or 1 for 2"
    ):
        lego()(sample, timestep, coordinates=places_of(16, 16))
