"""Networks as ONNX graphs: equal to the network, in its place in a pipeline, and nothing else in their place."""

import numpy as np
import pytest
import torch
from torch import nn

from brickwork import BlockTransformer2DModel, LegoPipeline, LegoTransformer2DModel, cli
from brickwork.gen.parameterization import EDMObjective
from brickwork.pipelines.exported import export_network, use_exported

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
    for subnet in pipe.transformer.subnets(8, 8):
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
