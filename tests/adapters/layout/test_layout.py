"""The layout adapter: its layers equal the authors', and it acts where and when it should."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from brickwork import BlockUNet2DModel, ClassToImagePipeline, LayoutAdapter, load_adapter
from brickwork.adapters.layout.adapter import layout_sites
from brickwork.adapters.layout.relation import BridgedRelation, RelativePositionMap
from brickwork.gen.parameterization import EDMObjective

DATA = Path(__file__).parents[2] / "data" / "adapters"
BOX = (0.1, 0.2, 0.6, 0.9)


@pytest.fixture
def pipe(pipelines):
    return copy.deepcopy(pipelines["sd"])


def random_adapter(model, **config):
    torch.manual_seed(1)
    adapter = LayoutAdapter.create(model, dim=16, num_heads=4, **config)
    for site in adapter.parts.sites.values():
        nn.init.normal_(site.gate, std=2.0)
    return adapter


def draw(pipe, **given):
    return pipe(
        "a b",
        num_inference_steps=4,
        height=16,
        width=24,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
        **given,
    ).images


def test_equal_to_the_authors_module():
    arrays = load_file(DATA / "layout.safetensors")
    weights = {key.removeprefix("weight."): value for key, value in arrays.items() if key.startswith("weight.")}
    relation, positions = BridgedRelation(16, 4, 3).double(), RelativePositionMap(4, size=400, dim=16).double()
    for number, attention in enumerate(relation.attentions):
        for layer, weight, bias in zip(
            (attention.to_q, attention.to_k, attention.to_v),
            weights[f"decoder.{number}.in_proj_weight"].chunk(3),
            weights[f"decoder.{number}.in_proj_bias"].chunk(3),
        ):
            layer.load_state_dict({"weight": weight, "bias": bias})
        attention.to_out.load_state_dict(
            {name: weights[f"decoder.{number}.out_proj.{name}"] for name in ("weight", "bias")}
        )
    name = "relative_positional_encoding.embedding_transform.0.conv"
    positions.projection.load_state_dict(
        {"weight": weights[f"{name}.weight"].flatten(1), "bias": weights[f"{name}.bias"]}
    )
    queries = arrays["queries"].flatten(1, 2)
    mask = torch.ones(2, 7, dtype=torch.bool)
    change = relation(queries, arrays["query_positions"], arrays["keys"], arrays["key_positions"], mask, positions)
    torch.testing.assert_close((queries + change).relu().view(2, 5, 6, 16), arrays["output"], rtol=1e-9, atol=1e-9)


def test_the_map_is_read_as_a_table_of_two_axes_would_be():
    torch.manual_seed(0)
    positions = RelativePositionMap(4, size=20, dim=16).double()
    nn.init.normal_(positions.projection.weight)
    along_x, along_y = positions.lines()
    table = (along_x[None] + along_y[:, None]).permute(2, 0, 1)[None].expand(2, -1, -1, -1)
    offsets = torch.empty(2, 30, 5, 2, dtype=torch.float64).uniform_(-1.3, 1.3)  # beyond the border too
    offsets[0, 0, 0], offsets[0, 0, 1] = 1, -1
    wanted = nn.functional.grid_sample(table, offsets, padding_mode="border", align_corners=False)
    torch.testing.assert_close(positions(offsets), wanted.clamp(min=1e-6).log())


@pytest.mark.parametrize("encoding", ["relative", "fourier"])
def test_padding_says_nothing(encoding):
    torch.manual_seed(0)
    network = BlockUNet2DModel(block_out_channels=[8, 16], num_classes=3)
    adapter = random_adapter(network, encoding=encoding)
    nn.init.normal_(network.conv_out.weight)
    sample, timestep = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.3])
    other = [(0.5, 0.5, 1.0, 1.0)] * 3
    plain = network(sample, timestep).sample
    with adapter.condition(boxes=[[BOX], []], phrases=[[1], []]):
        alone = network(sample, timestep).sample
    with adapter.condition(boxes=[[BOX], other], phrases=[[1], [0, 2, 2]]):
        together = network(sample, timestep).sample
    torch.testing.assert_close(alone[0], together[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(alone[1], plain[1]) and not torch.allclose(together[1], plain[1])


def test_everything_trains_and_the_map_is_shared(pipe):
    adapter = random_adapter(pipe)
    with adapter.condition(boxes=[BOX], phrases=["cat"]):
        latents = torch.randn(1, 4, 8, 8)
        pipe.unet(latents, 3, torch.randn(1, 8, 32)).sample.square().mean().backward()
    names = dict(adapter.parts.named_parameters())
    assert [name for name, parameter in names.items() if parameter.grad is None] == []
    assert len([name for name in names if "position_map" in name]) == 2
    assert len(adapter.parts.sites) == len(layout_sites(pipe.unet)) == 9  # four stages down, the middle, four up


def test_through_a_pipeline(pipe, tmp_path):
    plain = draw(pipe)
    adapter = random_adapter(pipe, key_points=["center", "top_left"])
    assert (draw(pipe) == plain).all()  # without a layout nothing changes
    with adapter.condition(boxes=[BOX], phrases=["cat"]):
        here = draw(pipe)
    with adapter.condition(boxes=[(0.6, 0.1, 0.9, 0.5)], phrases=["cat"]):
        there = draw(pipe)
    with adapter.condition(boxes=[BOX], phrases=["dog"]):
        other = draw(pipe)
    with adapter.condition(boxes=[BOX], phrases=["cat"], share=0.5):
        early = draw(pipe)
    with adapter.condition(boxes=[BOX], phrases=["cat"], share=0.0):
        never = draw(pipe)
    pictures = [plain, here, there, other, early]
    assert all((a != b).any() for number, a in enumerate(pictures) for b in pictures[:number])
    assert (never == plain).all()
    (file,) = adapter.save(tmp_path / "layout.safetensors")
    adapter.unload()
    again = load_adapter(pipe, file)
    with again.condition(boxes=[BOX], phrases=["cat"]):
        assert abs(draw(pipe) - here).max() < 1e-5


def test_class_names_as_phrases():
    torch.manual_seed(0)
    network = BlockUNet2DModel(
        block_out_channels=[8, 16], num_classes=2, sample_size=8, id2label={0: "micah", 1: "bottts"}
    )
    nn.init.normal_(network.conv_out.weight)
    pipe = ClassToImagePipeline.from_objective(network, EDMObjective())
    adapter = random_adapter(pipe)
    assert adapter.config["phrase_dim"] == 2
    pictures = []
    for phrase in ("Micah", 0, "bottts"):
        with adapter.condition(boxes=[BOX], phrases=[phrase]):
            pictures.append(
                pipe(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))[0]
            )
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()
    with pytest.raises(ValueError, match="'micha', no class of the network; there are micah"):
        adapter.prepare(boxes=[BOX], phrases=["micha"])


@pytest.mark.parametrize(
    "boxes, phrases, message",
    [
        ([(0.1, 0.2, 1.6, 0.9)], ["cat"], "beyond 0 to 1"),
        ([(-0.1, 0.2, 0.6, 0.9)], ["cat"], "beyond 0 to 1"),
        ([(0.5, 0.2, 0.5, 0.9)], ["cat"], "no area"),
        ([(0.5, 0.9, 0.6, 0.2)], ["cat"], "no area"),
        ([(0.5, 0.9, 0.6)], ["cat"], "x0, y0, x1, y1"),
        ([(float("nan"), 0.0, 1.0, 1.0)], ["cat"], "beyond 0 to 1"),
        ([BOX], ["cat", "dog"], "2 entries for 1 `boxes`"),
        ([BOX, BOX], ["cat"], "1 entries for 2 `boxes`"),
        ([[BOX], [BOX]], [["cat"]], "1 lists for 2 lists"),
        ([BOX] * 51, ["cat"] * 51, "at most 50"),
        ([BOX], [" "], "say what is in the box"),
        ([BOX], [[1.0, 2.0]], r"shape \(2,\)"),
        ([BOX], None, "belong together"),
        (5, ["cat"], "are no lists"),
        ([BOX], 5, "are no lists"),
    ],
)
def test_bad_layouts_leave_the_pipeline_as_it_was(pipe, boxes, phrases, message):
    adapter = LayoutAdapter.create(pipe, dim=16, num_heads=4)
    with pytest.raises(ValueError, match=message), adapter.condition(boxes=boxes, phrases=phrases):
        pass
    assert adapter.present() is None


@pytest.mark.parametrize(
    "config, message",
    [
        ({"encoding": "absolute"}, "encoding"),
        ({"key_points": ["centre"]}, "'centre'"),
        ({"key_points": []}, "key_points"),
        ({"num_heads": 3}, "divides the 16"),
        ({"phrase_dim": 0}, "`phrase_dim` is 0"),
    ],
)
def test_bad_configurations(pipe, config, message):
    keys = set(vars(pipe.unet))
    with pytest.raises(ValueError, match=message):
        LayoutAdapter.create(pipe, **{"dim": 16, "num_heads": 4} | config)
    assert set(vars(pipe.unet)) == keys


def test_other_networks_and_batches(pipe):
    with pytest.raises(ValueError, match="Linear has no stages"):
        LayoutAdapter.create(nn.Linear(2, 2), phrase_dim=4)
    adapter = random_adapter(pipe.unet)
    with pytest.raises(ValueError, match="load the adapter on a pipeline"):
        adapter.prepare(boxes=[BOX], phrases=["cat"])
    with pytest.raises(ValueError, match="a share of a pipeline's steps"):
        adapter.prepare(boxes=[BOX], phrases=[torch.zeros(32)], share=0.5)
    layouts = {"boxes": [[BOX]] * 2, "phrases": [[torch.zeros(32)]] * 2}
    with adapter.condition(**layouts), pytest.raises(ValueError, match="for 2 pictures, but the network draws 3"):
        pipe.unet(torch.randn(3, 4, 8, 8), 3, torch.randn(3, 8, 32))
