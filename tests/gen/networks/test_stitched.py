"""Networks stitched into one: anchors untouched, stitches fitted, saved and loaded, errors."""

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline

from brickwork import (
    BlockTransformer2DModel,
    BlockUNet2DModel,
    LegoTransformer2DModel,
    StitchedDenoiser,
    SubnetSchedule,
)  # fmt: skip
from brickwork.eval.commands.info import describe
from brickwork.gen.networks.stitched import Stitch, least_squares, sliding_windows
from brickwork.gen.parameterization import EpsilonObjective
from brickwork.gen.taps import tapped
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.objective_file import save_objective


def make_anchor(layers=2, width=16, seed=0, **overrides):
    config = {"sample_size": 8, "in_channels": 3, "num_classes": 5, "attention_head_dim": 8}
    settings = {"num_layers": layers, "hidden_size": width}
    return with_weights(BlockTransformer2DModel, seed, config | settings | overrides)


def make_unet(layers, widths, seed=0, **overrides):
    config = {"sample_size": 8, "num_classes": 5, "block_types": "resnet", "attention_head_dim": 4}
    return with_weights(BlockUNet2DModel, seed, config | overrides, block_out_channels=widths, layers_per_block=layers)


def make_lego(layers, widths, seed=0):
    config = {"sample_size": 8, "num_classes": 5, "window_sizes": (2, 4, 8), "patch_sizes": (1, 2, 2)}
    settings = {"num_layers": layers, "hidden_sizes": widths, "num_attention_heads": 2}
    return with_weights(LegoTransformer2DModel, seed, config, **settings)


def with_weights(kind, seed, config, **settings):
    torch.manual_seed(seed)
    model = kind(**config, **settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


FAMILIES = {
    "unet": lambda: [make_unet((1, 1, 1), (8, 8, 8)), make_unet((1, 2, 3), (8, 16, 24), seed=1)],
    "unet with a neck": lambda: [
        make_unet(1, (8, 8), neck="ffnet_up"), make_unet(2, (12, 16), seed=1, neck="ffnet_up", stem="resnet_d")
    ],
    "lego": lambda: [make_lego((1, 1, 1), 8), make_lego((2, 1, 3), (8, 16, 24), seed=1)],
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILIES))
def test_stages_and_bricks_are_stitched_too(name, tmp_path):
    anchors = FAMILIES[name]()
    if name == "unet with a neck":  # a stem that halves the sides has maps of other sizes
        with pytest.raises(ValueError, match="strides of the stages"):
            StitchedDenoiser.from_anchors(anchors)
        anchors[0] = make_unet(1, (8, 8), neck="ffnet_up", stem="resnet_d")
    model, call = StitchedDenoiser.from_anchors(anchors), inputs(height=9, width=14)
    for number, anchor in enumerate(anchors):
        assert torch.equal(model(**call, subnet=f"anchor-{number}").sample, anchor(**call).sample)
    costs = model.subnets(8, 8)
    assert len(costs) >= 3 and list(costs.values()) == sorted(costs.values())
    assert [costs[f"anchor-{i}"] for i in range(2)] == [max(one.subnets(8, 8).values()) for one in anchors]
    outputs = {subnet: model(**call, subnet=subnet).sample for subnet in costs}
    assert all(output.shape == call["sample"].shape and output.isfinite().all() for output in outputs.values())
    assert len({output.sum().item() for output in outputs.values()}) == len(costs)
    model.save_pretrained(tmp_path)
    again = StitchedDenoiser.from_pretrained(tmp_path)
    assert all(torch.equal(again(**call, subnet=subnet).sample, output) for subnet, output in outputs.items())


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet", "lego"])
def test_what_is_cut_and_put_together_again_is_the_network(name):
    """Through each cut with its own maps, which are also those that calibration taps."""
    anchor, call = FAMILIES[name]()[1], inputs()
    for layers in range(1, len(anchor.layer_names) + anchor.has_head):
        maps = anchor.run_front(layers, **call)
        with tapped(anchor, [site.tap for site in anchor.seam(layers)]) as taps:
            whole = anchor(**call).sample
        assert [map.shape[1] for map in maps] == [site.channels for site in anchor.seam(layers)]
        assert all(torch.equal(map, taps[site.tap]) for map, site in zip(maps, anchor.seam(layers)))
        torch.testing.assert_close(anchor.run_end(layers, maps, **call), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_unets_of_one_width_stitch_into_themselves():
    """Fitted between a network and its twin, every layer passes its map through."""
    twin = make_unet((2, 2), (4, 4))
    model = StitchedDenoiser.from_anchors([make_unet((1, 1), (4, 4)), twin], calibration=[inputs(8, 8, 8)])
    model.networks[0] = make_unet((2, 2), (4, 4))
    model.stitching = type(model.stitching)(channels=[[4, 4]] * sum(len(model._seams(cut)) for cut in model.cuts))
    call = inputs(8, 8, 8)
    model.fit([call])
    for cut in model.cuts:
        found = model(**call, subnet=cut.name).sample
        torch.testing.assert_close(found, twin(**call).sample, rtol=1e-3, atol=1e-3)


def test_unlike_networks_and_their_schedule_are_saved_with_a_pipeline(tmp_path):
    small, large = make_unet(1, (4, 4)), make_anchor(4, 32)
    pipe = ClassToImagePipeline.from_objective(large, EpsilonObjective())
    schedule = SubnetSchedule.from_rules({"small": small, "full": large}, {"small": (2, None), "full": (0, 2)})
    both = StitchedDenoiser.from_anchors([small, large], stitches=False)
    saved = ClassToImagePipeline.from_objective(both, EpsilonObjective())
    saved.subnet_schedule = SubnetSchedule.from_rules(both, {"anchor-0": (2, None), "anchor-1": (0, 2)})
    saved.save_pretrained(tmp_path)
    assert {"anchor-0", "anchor-1"} <= {entry.name for entry in (tmp_path / "transformer").iterdir()}
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert again.subnet_schedule == saved.subnet_schedule

    def draw(pipeline, **call):
        pipeline.set_progress_bar_config(disable=True)
        call |= {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        return pipeline([1], **call).images

    expected = draw(pipe, subnet_schedule=schedule, networks={"small": small})
    assert torch.equal(draw(saved), expected) and not torch.allclose(draw(pipe), expected, atol=0.1)
    torch.testing.assert_close(draw(again), expected, rtol=1e-3, atol=1e-3)  # loaded tensors are aligned otherwise


@pytest.fixture(scope="module")
def anchors():
    return [make_anchor(), make_anchor(4, 24, seed=1)]


@pytest.fixture(scope="module")
def stitched(anchors):
    return StitchedDenoiser.from_anchors(anchors)


def inputs(batch=3, height=9, width=13):
    torch.manual_seed(0)
    return {
        "sample": torch.randn(batch, 3, height, width),
        "timestep": torch.rand(batch) - 0.5,
        "class_labels": torch.randint(0, 6, (batch,)),
    }


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13)])
def test_anchors_stay_and_stitches_are_networks_of_their_own(anchors, stitched, batch, height, width):
    call = inputs(batch, height, width)
    for number, anchor in enumerate(anchors):
        assert torch.equal(stitched(**call, subnet=f"anchor-{number}").sample, anchor(**call).sample)
    assert torch.equal(stitched(**call).sample, anchors[-1](**call).sample)
    outputs = [stitched(**call, subnet=name).sample for name in stitched.subnet_names()]
    assert all(output.shape == call["sample"].shape and output.isfinite().all() for output in outputs)
    assert len({output.sum().item() for output in outputs}) == len(outputs) > 2
    assert torch.equal(stitched(**call, subnet="full", return_dict=False)[0], outputs[-1])


def test_subnets_go_from_the_cheap_to_the_costly_and_schedules_take_them(anchors, stitched):
    costs = stitched.subnets(8, 8)
    assert list(costs.values()) == sorted(costs.values())
    assert list(costs)[0] == "anchor-0" and list(costs)[-1] == "anchor-1" and len(costs) > 2
    assert [costs[f"anchor-{i}"] for i in range(2)] == [anchor.subnets(8, 8)["full"] for anchor in anchors]
    assert sorted(costs) == sorted(stitched.subnet_names())
    middle = list(costs)[1]
    assert f"{middle}  " in describe(stitched, 8, 8)
    schedule = SubnetSchedule.from_rules(stitched, {"anchor-0": (2, None), middle: (1, 2), "full": (0, 1)})
    assert schedule.subnets == ("anchor-1", middle, "anchor-0")
    pipe = ClassToImagePipeline.from_objective(stitched, EpsilonObjective())
    pipe.set_progress_bar_config(disable=True)
    call = {"class_labels": [1], "num_inference_steps": 3, "output_type": "np"}
    drawn = [
        pipe(**call, subnet_schedule=rules, generator=torch.Generator().manual_seed(0)).images
        for rules in (schedule, SubnetSchedule.full(stitched))
    ]
    assert drawn[0].shape == drawn[1].shape and (drawn[0] != drawn[1]).any()


def test_windows_of_the_paper():
    assert len(sliding_windows(0, 12, 12)) == 34
    assert sliding_windows(1, 2, 2) == [Stitch(1, a, 2, b) for a in (1, 2) for b in (1, 2)]
    assert {cut.start for cut in sliding_windows(0, 3, 6)} == {2, 4, 6}
    assert sliding_windows(0, 1, 4) == [Stitch(0, 1, 1, 4)]


def test_least_squares_is_the_pseudo_inverse_and_of_least_norm():
    torch.manual_seed(0)
    front, end = torch.randn(200, 7, dtype=torch.float64), torch.randn(200, 5, dtype=torch.float64)
    features = torch.cat([front, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    # The normal equations, solved by another method.
    expected = torch.linalg.solve(features.T @ features, features.T @ end)
    weight, bias = least_squares(front, end)
    torch.testing.assert_close(weight, expected[:-1].T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(bias, expected[-1], rtol=1e-10, atol=1e-12)
    short = torch.cat([front, front[:, :2]], dim=1)  # columns twice: rank is short
    weight, bias = least_squares(short, end)
    both = torch.cat([short, features[:, -1:]], dim=1)
    expected = torch.linalg.pinv(both, rtol=1e-10) @ end
    torch.testing.assert_close(weight, expected[:-1].T, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(weight[:, :2], weight[:, -2:], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(bias, expected[-1], rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_stitching_layers_are_fitted_to_the_calibration(anchors):
    batches = [inputs(3), inputs(2, 8, 8)]
    model = StitchedDenoiser.from_anchors(anchors, calibration=batches)
    cut, layer = model.cuts[0], model.stitching.layers[0]
    features = []
    for anchor, place in ((anchors[0], cut.layers - 1), (anchors[1], cut.start - 1)):
        name, maps = f"blocks.{place}", []
        for batch in batches:
            with tapped(anchor, [name]) as taps:
                anchor(**batch)
            maps.append(taps[name].flatten(2).transpose(1, 2).flatten(0, 1))
        features.append(torch.cat(maps))
    weight, bias = least_squares(*features)
    torch.testing.assert_close(layer.weight[..., 0, 0], weight.float())
    torch.testing.assert_close(layer.bias, bias.float())
    tuples = [tuple(batch.values()) for batch in batches]
    again = StitchedDenoiser.from_anchors(anchors, calibration=tuples)
    assert torch.equal(again.stitching.layers[0].weight, layer.weight)
    with pytest.raises(ValueError, match="no batches"):
        StitchedDenoiser.from_anchors(anchors, calibration=[])


@torch.no_grad()
def test_two_copies_stitch_into_themselves(anchors):
    """The layer fitted between a network and itself, at one place, passes features through."""
    twin = make_anchor()
    model = StitchedDenoiser.from_anchors([anchors[0], make_anchor(3, 16)], calibration=[inputs(8, 8, 8)])
    model.networks[1] = twin
    call = inputs(8, 8, 8)
    model.cuts = [Stitch(0, 1, 1, 1)]
    model.fit([call])
    torch.testing.assert_close(
        model(**call, subnet=model.cuts[0].name).sample, twin(**call).sample, rtol=1e-3, atol=1e-4
    )


def test_calibration_by_default_is_the_same_each_time(anchors, stitched):
    again = StitchedDenoiser.from_anchors(anchors)
    assert all(torch.equal(a, b) for a, b in zip(stitched.state_dict().values(), again.state_dict().values()))
    assert anchors[0].blocks[0] is not again.networks[0].blocks[0]
    trajectory = StitchedDenoiser.from_anchors(anchors, stitches=False)
    assert trajectory.subnet_names() == ["anchor-0", "anchor-1"] and not hasattr(trajectory, "stitching")


@torch.no_grad()
def test_saved_and_loaded_as_one_and_in_parts(anchors, stitched, tmp_path):
    call = inputs()
    stitched.save_pretrained(tmp_path / "transformer")
    for again in (
        StitchedDenoiser.from_pretrained(tmp_path, subfolder="transformer"),
        AutoModel.from_pretrained(str(tmp_path / "transformer")),
    ):
        assert type(again) is StitchedDenoiser and not again.training
        for name in stitched.subnet_names():
            assert torch.equal(again(**call, subnet=name).sample, stitched(**call, subnet=name).sample)
    part = BlockTransformer2DModel.from_pretrained(tmp_path / "transformer" / "anchor-1")
    assert torch.equal(part(**call).sample, anchors[1](**call).sample)
    half = StitchedDenoiser.from_pretrained(tmp_path / "transformer", torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "transformer/config.json").read_text()
    with pytest.raises(ValueError, match="push all of it"):
        stitched.save_pretrained(tmp_path, push_to_hub=True)
    trajectory = StitchedDenoiser.from_anchors(anchors, stitches=False)
    trajectory.save_pretrained(tmp_path / "trajectory")
    assert StitchedDenoiser.from_pretrained(tmp_path / "trajectory").subnet_names() == ["anchor-0", "anchor-1"]


def test_every_parameter_of_a_stitch_gets_a_gradient(anchors):
    model = StitchedDenoiser.from_anchors(anchors).train()
    for name in model.subnet_names():
        model(**inputs(), subnet=name).sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_compiled_whole(stitched):
    name = stitched.cuts[0].name
    compiled = torch.compile(stitched, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs(), subnet=name).sample, stitched(**inputs(), subnet=name).sample)


def test_three_anchors(anchors):
    model = StitchedDenoiser.from_anchors([*anchors, make_anchor(6, 32, seed=2)])
    assert {cut.front for cut in model.cuts} == {0, 1} and model.subnet_names()[-1] == "anchor-2"
    model(**inputs(), subnet=model.cuts[-1].name)


def test_folders_with_their_objectives(anchors, tmp_path):
    for number, anchor in enumerate(anchors):
        anchor.save_pretrained(tmp_path / str(number) / "transformer")
        save_objective(tmp_path / str(number), "edm", {})
    model = StitchedDenoiser.from_anchors([tmp_path / "0", str(tmp_path / "1")])
    assert torch.equal(model(**inputs(), subnet="anchor-0").sample, anchors[0](**inputs()).sample)
    save_objective(tmp_path / "1", "epsilon", {})
    with pytest.raises(ValueError, match="different objectives"):
        StitchedDenoiser.from_anchors([tmp_path / "0", tmp_path / "1"])
    with pytest.raises(ValueError, match="holds no network"):
        StitchedDenoiser.from_anchors([tmp_path / "0", tmp_path])


@pytest.mark.parametrize(
    ("others", "match"),
    [
        ({"in_channels": 4}, r"in_channels \[3, 4\]"),
        ({"out_channels": 6}, r"out_channels \[3, 6\]"),
        ({"num_classes": None}, "num_classes"),
        ({"patch_size": 4}, "patch_size"),
        ({"cross_attention_dim": 8}, "cross_attention_dim"),
        ({"layers": 1, "width": 8}, "cheapest first"),
    ],
)
def test_anchors_that_do_not_fit_are_refused(anchors, others, match):
    with pytest.raises(ValueError, match=match):
        StitchedDenoiser.from_anchors([anchors[0], make_anchor(**({"layers": 4} | others))])


def test_other_mistakes_are_refused(anchors, stitched):
    with pytest.raises(ValueError, match="two networks or more"):
        StitchedDenoiser.from_anchors(anchors[:1])
    with pytest.raises(ValueError, match="a StitchedDenoiser, which cannot be cut"):
        StitchedDenoiser.from_anchors([stitched, stitched])
    unet = make_unet(1, (8, 8))
    for others, match in (
        ([make_unet(1, (8, 8, 8))], r"strides of the stages \[\[1, 2\], \[1, 2, 4\]\]"),
        ([make_unet(1, (8, 8), num_classes=3)], "num_classes"),
        ([anchors[0]], "networks of one class, or `stitches=False`"),
    ):
        with pytest.raises(ValueError, match=match):
            StitchedDenoiser.from_anchors([unet, *others])
    with pytest.raises(ValueError, match="did you mean 'anchor-1'|anchor-0"):
        stitched(**inputs(), subnet="anchor-7")
