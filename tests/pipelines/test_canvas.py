"""Windows that shift above the training size: where they lie, what they cost, and that nothing changes below it."""

import pytest
import torch

from brickwork import LegoPipeline
from brickwork.gen.conditioning import coordinate_channels
from brickwork.gen.operations import count_operations
from brickwork.pipelines.canvas import WindowPlan
from brickwork.pipelines.sampling import Evaluation
from brickwork.pipelines.schedules import BrickSchedule

SIZES = [(8, 24), (24, 8), (16, 16), (9, 21), (17, 4), (8, 9)]


def draw(pipe, height, width, **options):
    options = {"num_inference_steps": 3, "output_type": "latent"} | options
    generator = torch.Generator().manual_seed(0)
    return pipe(1, height=height, width=width, generator=generator, **options).images


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 8), (3, 7)])
@pytest.mark.parametrize("trained_crops", [False, True])
def test_nothing_changes_up_to_the_training_size(make_pipe, height, width, trained_crops):
    pipe = make_pipe(trained_crops=trained_crops)
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    results = [draw(pipe, height, width, windows=kind) for kind in (None, "fixed", "shifted", "tiled")]
    assert all(torch.equal(results[0], other) for other in results)
    assert not set.union(*seen) & {"coordinates", "cyclic"}


def test_windows_shift_by_themselves_for_weights_that_know_crops(make_pipe):
    plain, crops = make_pipe(), make_pipe(trained_crops=True)
    fixed, shifted = (draw(plain, 8, 24, windows=kind) for kind in ("fixed", "shifted"))
    assert not torch.allclose(fixed, shifted)
    assert torch.equal(draw(plain, 8, 24), fixed)
    assert torch.equal(draw(crops, 8, 24), shifted)
    assert torch.equal(draw(crops, 8, 24, windows="fixed"), fixed)


def test_windows_are_saved_with_the_pipeline(make_pipe, tmp_path):
    pipe = make_pipe(trained_crops=True)
    LegoPipeline(pipe.transformer, pipe.scheduler, windows="tiled").save_pretrained(tmp_path)
    loaded = LegoPipeline.from_pretrained(tmp_path)
    tiled, shifted = (draw(pipe, 8, 24, windows=kind) for kind in ("tiled", "shifted"))
    torch.testing.assert_close(draw(loaded, 8, 24), tiled)
    torch.testing.assert_close(draw(loaded, 8, 24, windows="shifted"), shifted)
    assert not torch.allclose(tiled, shifted)
    with pytest.raises(ValueError, match="`windows` is 'moving'"):
        LegoPipeline.from_pretrained(tmp_path, windows="moving")


@pytest.mark.parametrize(("height", "width", "guidance"), [(8, 24, 1.0), (9, 21, 2.0), (17, 4, 1.0)])
def test_shifting_costs_nothing(make_pipe, height, width, guidance):
    pipe = make_pipe()
    options = {"num_inference_steps": 2, "guidance_scale": guidance}
    counts = [
        count_operations(lambda kind=kind: draw(pipe, height, width, windows=kind, **options))[0]
        for kind in ("fixed", "shifted", "tiled")
    ]
    assert counts[0] == counts[1] == counts[2]
    assert counts[0] == 3 * guidance * pipe.transformer.subnets(height, width)["0+1+2"]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_offsets_keep_patches_and_go_everywhere(make_model, height, width):
    network = make_model(patch_sizes=(1, 2, 4))
    plan = WindowPlan.of("shifted", (height, width), network, {})
    offsets = [plan.offset(evaluation) for evaluation in range(400)]
    assert offsets[0] == (0, 0)
    for side, places in zip((height, width), zip(*offsets)):
        expected = set(range(0, side // 4 * 4, 4)) if side > network.config.sample_size else {0}
        assert set(places) == expected
    assert offsets == [WindowPlan.of("shifted", (height, width), network, {}).offset(n) for n in range(400)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_what_enters_leaves_in_its_place_and_knows_where_it_is(make_model, height, width):
    plan = WindowPlan.of("shifted", (height, width), make_model(), {})
    places = coordinate_channels(height, width, torch.device("cpu"), torch.float32)
    for evaluation in range(7):
        rolled, told = plan.before(places, Evaluation(evaluation, torch.tensor(0.0)))
        assert torch.equal(told["coordinates"], rolled)
        assert torch.equal(plan.after(rolled, Evaluation(evaluation, torch.tensor(0.0))), places)
    assert plan.cyclic == (height > 8, width > 8)


def test_the_sampler_sees_estimates_in_their_places(make_pipe):
    """A network that only says where it is gives the same picture wherever its windows lie."""
    pipe, told = make_pipe(), []

    def say_where(sample, timestep, class_labels=None, bricks=None, return_dict=False, coordinates=None, cyclic=None):
        told.append(cyclic)
        if coordinates is None:
            coordinates = coordinate_channels(*sample.shape[-2:], sample.device, sample.dtype)
        return (torch.cat([coordinates, coordinates[:, :1]], dim=1).expand_as(sample),)

    pipe.transformer.forward = say_where
    fixed, shifted = (draw(pipe, 8, 24, windows=kind) for kind in ("fixed", "shifted"))
    torch.testing.assert_close(fixed, shifted)
    assert set(told) == {None, (False, True)}


def test_tiles_are_told_that_they_are_whole_pictures(make_pipe):
    """With windows no larger than a tile, each tile is drawn as it would be alone."""
    pipe = make_pipe()
    noise = torch.randn(1, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    whole = draw(pipe, None, None, latents=noise, windows="tiled")
    alone = [draw(pipe, None, None, latents=half) for half in noise.split(8, dim=2)]
    torch.testing.assert_close(whole, torch.cat(alone, dim=2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(draw(pipe, None, None, latents=noise, windows="fixed"), whole, atol=1e-2)


def test_tiles_of_sizes_that_do_not_divide(make_pipe):
    assert draw(make_pipe(), 11, 21, windows="tiled").isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(9, 21), (24, 8)])
def test_shifting_is_repeatable_and_goes_with_schedules_guidance_and_dtypes(make_pipe, height, width):
    pipe = make_pipe(trained_subsets="any")
    schedule = BrickSchedule.from_rules(pipe.transformer, {0: (1.0, None), 1: (None, 1.0)})
    options = {"windows": "shifted", "brick_schedule": schedule, "guidance_scale": 1.5}
    first = draw(pipe, height, width, **options)
    assert torch.equal(draw(pipe, height, width, **options), first)
    pipe.to(torch.bfloat16)
    half = draw(pipe, height, width, **options)
    assert (half - first).norm() < 0.1 * first.norm()


def test_unknown_windows_are_named(make_pipe):
    with pytest.raises(ValueError, match="`windows` is 'moving'; choose one of shifted, fixed, tiled"):
        draw(make_pipe(), 8, 8, windows="moving")
