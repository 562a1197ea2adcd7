"""Networks as ONNX graphs: equal to the network, in its place in a pipeline, and nothing else in their place."""

import copy

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig
from torch import nn

import brickwork
from brickwork import BlockTransformer2DModel, LegoPipeline, LegoTransformer2DModel, cli
from brickwork.gen.blocks.attention import AttnProcessor
from brickwork.gen.networks.base import Denoiser
from brickwork.gen.parameterization import EDMObjective
from brickwork.gen.taps import tapped
from brickwork.pipelines.exported import _structure, export_network, use_exported

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def tiny_lego():
    torch.manual_seed(0)
    network = LegoTransformer2DModel(
        sample_size=8, window_sizes=[8, 4], patch_sizes=[4, 2], num_layers=[1, 1], hidden_sizes=8,
        num_attention_heads=2, num_classes=3, in_channels=3,
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def draw(pipe, **given):
    return pipe(class_labels=[0, 1, 2], num_inference_steps=2, output_type="np", guidance_scale=1.5,
                generator=[torch.Generator().manual_seed(n) for n in range(3)], **given).images  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    LegoPipeline(tiny_lego(), EDMObjective().scheduler()).save_pretrained(folder)
    cli.main(["export", str(folder), "-o", str(folder.parent / "onnx"), "--sizes", "8", "--rounds", "1"])
    return folder


def test_in_the_place_of_the_network(saved, capsys):
    pipe = LegoPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    plain, wide = draw(pipe), draw(pipe, width=12)
    handle = use_exported(pipe, saved.parent / "onnx")
    np.testing.assert_allclose(draw(pipe), plain, atol=1e-4)
    assert handle.ran == 2 and not handle.missed
    # No graph of that size: torch, bit for bit.
    assert (draw(pipe, width=12) == wide).all() and handle.missed == 2
    assert pipe.transformer.subnet_names() == ["0", "0+1"]  # "1" runs too, though it was not trained
    for subnet in ("0", "0+1", "1"):
        given = torch.randn(2, 3, 8, 8), torch.tensor(0.3), torch.tensor([1, 3])
        with torch.no_grad():
            found = pipe.transformer(given[0], given[1], class_labels=given[2], subnet=subnet).sample
            handle.remove()
            expected = pipe.transformer(*given, subnet=subnet).sample
            handle = use_exported(pipe, saved.parent / "onnx")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert (draw(pipe) == plain).all()


def test_the_commands(saved, capsys, tmp_path):
    out, graphs = str(tmp_path / "drawn"), str(saved.parent / "onnx")
    cli.main(["generate", str(saved), "--count", "1", "--steps", "2", "--exported", graphs, "-o", out])
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3
    assert cli.main(["export", str(saved), "-o", graphs]) == 2
    assert "overwrite" in capsys.readouterr().err
    assert cli.main(["export", str(saved), "-o", str(tmp_path / "x"), "--sizes", "8x0"]) == 2
    assert "`--sizes` has '8x0'" in capsys.readouterr().err


def test_a_network_of_blocks(tmp_path):
    torch.manual_seed(0)
    network = BlockTransformer2DModel(
        sample_size=8, in_channels=3, num_classes=2, block_types="maxvit", num_layers=1, hidden_size=16,
        attention_head_dim=8, patch_size=2, window_size=4,
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    index = export_network(network, tmp_path / "onnx", sizes=[(8, 16)])
    assert [(graph["subnet"], graph["width"]) for graph in index["graphs"]] == [("full", 16)]
    assert 0 < max(graph["difference"] for graph in index["graphs"]) < 1e-4


def test_what_does_not_fit(saved, tmp_path):
    other = tiny_lego()
    nn.init.ones_(next(other.parameters()))
    with pytest.raises(ValueError, match="the export of other weights"):
        use_exported(other, saved.parent / "onnx")
    with pytest.raises(ValueError, match="holds no exported.json"):
        use_exported(other, tmp_path)
    with pytest.raises(ValueError, match="'1' .*|did you mean|choose one of"):
        export_network(other, tmp_path / "x", subnets=["7"])
    with pytest.raises(ValueError, match="cannot be exported"):
        export_network(nn.Linear(2, 2), tmp_path / "x")
    assert not (tmp_path / "x").exists()


KINDS = [getattr(brickwork, name) for name in brickwork._REGISTERED]
KINDS = [kind for kind in KINDS if issubclass(kind, Denoiser)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_is_known_again_or_refused(kind, tmp_path):
    """A graph answers for a network that is built as its configuration says: all of ours are, whatever is in them."""
    with torch.device("meta"):
        network, again = kind(**kind.smallest), kind.from_config(kind(**kind.smallest).config)
    assert _structure(network) == _structure(again)
    if kind.__name__ in ("MaxViTGenerator2DModel", "VideoDenoiser", "SeriesDenoiser"):
        with pytest.raises(ValueError, match=f"a {kind.__name__} cannot be exported; give a denoiser of "):
            export_network(network, tmp_path / "x")
        assert not (tmp_path / "x").exists()


@pytest.fixture
def in_use(saved):
    """A network, its handle, and a call."""
    network = LegoTransformer2DModel.from_pretrained(saved / "transformer")
    given = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 0.3, torch.tensor([1, 3])

    def call(subnet=None):
        with torch.no_grad():
            return network(given[0], given[1], class_labels=given[2], subnet=subnet).sample

    return network, use_exported(network, saved.parent / "onnx"), call


def test_an_adapter_is_not_passed_over(in_use):
    network, handle, call = in_use
    plain = call()
    network.add_adapter(LoraConfig(r=2, target_modules=["qkv", "proj"], init_lora_weights=False))
    assert not torch.allclose(call(), plain, atol=1e-3) and (handle.ran, handle.missed) == (1, 1)
    network.disable_adapters()
    torch.testing.assert_close(call(), plain, rtol=1e-4, atol=1e-5)
    network.unload_lora()
    assert torch.equal(call(), plain) and (handle.ran, handle.missed) == (2, 2)  # the graph's again


def test_nor_are_other_weights_hooks_processors_and_training(in_use):
    network, handle, call = in_use
    plain, weight = call(), next(network.parameters())
    with torch.no_grad():
        weight.mul_(3)
        assert not torch.allclose(call(), plain, atol=1e-3)
        weight.div_(3)  # 3x / 3 may be another number
    network.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()})
    with tapped(network, ["bricks.0.blocks.0"]) as taps:
        call()
    assert taps and handle.ran == 1
    network.train()
    call()
    network.eval()
    seen = []

    class Spy(AttnProcessor):
        def __call__(self, *arguments, **options):
            seen.append(1)
            return super().__call__(*arguments, **options)

    network.set_attn_processor(Spy())
    call()
    assert seen and handle.ran == 1 and handle.missed == 4


def test_it_is_saved_copied_and_taken_off_as_any_network(in_use, tmp_path):
    network, handle, call = in_use
    plain = call()
    network.save_pretrained(tmp_path)
    again = LegoTransformer2DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    twin = copy.deepcopy(network)
    assert twin.forward.network is twin and not twin.forward._sessions
    add_hook_to_module(network, ModelHook())  # as offloading does, around whatever forward there is
    assert torch.equal(call(), plain) and handle.ran == 2
    handle.remove()
    torch.testing.assert_close(call(), plain, rtol=1e-4, atol=1e-5)
    assert (handle.ran, handle.missed) == (2, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample": torch.zeros(2, 4, 8, 8)},
        {"sample": torch.zeros(2, 3, 8, 8, dtype=torch.int64)},
        {"timestep": torch.zeros(3)},
        {"class_labels": torch.tensor([1, 4])},
        {"class_labels": torch.tensor([[1], [2]])},
        {"subnet": "7"},
    ],
)
def test_bad_input_is_refused_in_the_networks_words(in_use, wrong):
    network, handle, _ = in_use
    given = {"sample": torch.zeros(2, 3, 8, 8), "timestep": 0.3} | wrong
    with torch.no_grad(), pytest.raises(ValueError) as found:
        network(**given)
    handle.remove()
    with torch.no_grad(), pytest.raises(ValueError) as expected:
        network(**given)
    assert str(found.value) == str(expected.value)
