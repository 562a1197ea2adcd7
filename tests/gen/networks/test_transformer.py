"""The transformer of blocks: published sizes, the authors' weights, positions."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from brickwork.eval.commands.convert import configure_dit
from brickwork.gen.conditioning import sincos_position_table
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.presets import TRANSFORMER_PRESETS

DATA = Path(__file__).parents[2] / "data" / "blocks"

# Parameters of the authors' logs; operations of the paper's table in 1e9 multiply-adds.
PUBLISHED = {
    "d-emo-s-2": (24_596_000, 5.41),
    "d-emo-b-2": (96_082_976, 19.90),
    "d-emo-l-2": (334_831_648, 69.17),
    "d-emo-xl-2": (492_692_000, 101.37),
    "dit-s-2": (32_963_360, 6.06),
    "dit-xl-2": (675_129_632, 118.62),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    parameters, operations = PUBLISHED[name]
    with torch.device("meta"):
        model = BlockTransformer2DModel.from_preset(name).eval()
        assert model.num_parameters() == parameters
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = model(torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.long)).sample
    assert output.shape == (1, 8, 32, 32)
    assert round(counter.get_total_flops() / 2e9, 2) == operations


def test_all_presets_and_overrides():
    assert len(TRANSFORMER_PRESETS) == 16
    for name in TRANSFORMER_PRESETS:
        with torch.device("meta"):
            model = BlockTransformer2DModel.from_preset(name, in_channels=3, num_classes=None, num_layers=1)
        assert model.config.out_channels == 6 and model.config.num_classes is None
    with pytest.raises(ValueError, match="d-emo-s-2"):
        BlockTransformer2DModel.from_preset("d-emo-s")
    with pytest.raises(ValueError, match="depth"):
        BlockTransformer2DModel.from_preset("dit-s-2", depth=3)


def original():
    arrays = {name: torch.from_numpy(array) for name, array in np.load(DATA / "dit.npz").items()}
    state = {name.removeprefix("state."): tensor for name, tensor in arrays.items() if name.startswith("state.")}
    return state, arrays


@pytest.fixture
def checkpoint(tmp_path):
    state, _ = original()
    torch.save(state, tmp_path / "DiT.pt")
    return tmp_path / "DiT.pt"


@torch.no_grad()
def test_the_authors_checkpoint_gives_the_authors_output(checkpoint):
    model = BlockTransformer2DModel.from_original(checkpoint, attention_head_dim=16)
    _, arrays = original()
    output = model(arrays["input"], arrays["timestep"], arrays["labels"]).sample
    torch.testing.assert_close(output, arrays["output"], rtol=0, atol=1e-5)
    assert model.config.sample_size == 8 and model.config.num_classes == 10


def diffusers_dit():
    """diffusers' network with the authors' weights, as its conversion script writes them."""
    state, _ = original()
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    renamed = {"pos_embed.proj": "x_embedder.proj", "proj_out_1": "final_layer.adaLN_modulation.1"}
    renamed |= {"proj_out_2": "final_layer.linear"}
    for block in range(2):
        ours, theirs = f"transformer_blocks.{block}", f"blocks.{block}"
        for kind in ("weight", "bias"):
            qkv = state[f"{theirs}.attn.qkv.{kind}"].chunk(3)
            for part, tensor in zip("qkv", qkv):
                state[f"{ours}.attn1.to_{part}.{kind}"] = tensor.contiguous()
        renamed |= {
            f"{ours}.attn1.to_out.0": f"{theirs}.attn.proj",
            f"{ours}.ff.net.0.proj": f"{theirs}.mlp.fc1",
            f"{ours}.ff.net.2": f"{theirs}.mlp.fc2",
            f"{ours}.norm1.linear": f"{theirs}.adaLN_modulation.1",
            f"{ours}.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
            f"{ours}.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
            f"{ours}.norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
        }
    for ours, theirs in renamed.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state:
                state[f"{ours}.{kind}"] = state[f"{theirs}.{kind}"]
    model.load_state_dict({name: state[name].clone() for name in model.state_dict() if name in state}, strict=False)
    return model


@torch.no_grad()
def test_diffusers_checkpoint_gives_diffusers_output(tmp_path):
    theirs, (_, arrays) = diffusers_dit(), original()
    theirs.save_pretrained(tmp_path / "transformer")
    ours = BlockTransformer2DModel.from_original(tmp_path)  # the folder says how many heads
    call = arrays["timestep"], arrays["labels"]
    expected = theirs(arrays["input"], timestep=call[0], class_labels=call[1]).sample
    torch.testing.assert_close(ours(arrays["input"], *call).sample, expected, rtol=0, atol=1e-5)
    # The two differ in the frequencies of the time embedding alone; at time 0 they agree.
    authors = BlockTransformer2DModel(**(dict(ours.config) | {"freq_shift": 0})).eval()
    authors.load_state_dict(ours.state_dict())
    assert not torch.allclose(authors(arrays["input"], *call).sample, expected, atol=1e-4)
    zero = torch.zeros(3)
    torch.testing.assert_close(authors(arrays["input"], zero).sample, ours(arrays["input"], zero).sample)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("blocks.1.attn.proj.bias"), "blocks.1.attn.proj.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra does not belong"),
        (lambda state: state.update({"blocks.0.attn.qkv.weight": torch.zeros(3, 4)}), "has the shape"),
        (lambda state: state["pos_embed"].add_(0.5), "trained table"),
        (lambda state: state.clear(), "is missing"),
    ],
)
def test_other_files_are_refused(tmp_path, change, match):
    state, _ = original()
    change(state)
    save_file(state, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=match):
        BlockTransformer2DModel.from_original(tmp_path / "file.safetensors", attention_head_dim=16)


def test_heads_must_be_known(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="give `attention_head_dim`"):
        BlockTransformer2DModel.from_original(checkpoint)
    with pytest.raises(ValueError, match="does not divide"):
        BlockTransformer2DModel.from_original(checkpoint, attention_head_dim=15)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="DiTTransformer2DModel"):
        BlockTransformer2DModel.from_original(tmp_path)


def run_convert(*arguments):
    parser = argparse.ArgumentParser()
    configure_dit(parser)
    args = parser.parse_args([str(argument) for argument in arguments])
    args.run(args)


@torch.no_grad()
def test_convert(checkpoint, tmp_path, capsys):
    folder = tmp_path / "out" / "dit"
    run_convert(checkpoint, folder, "--attention-head-dim", 16)
    assert "2 blocks; width 32" in capsys.readouterr().out
    model, (_, arrays) = BlockTransformer2DModel.from_pretrained(folder).eval(), original()
    output = model(arrays["input"], arrays["timestep"], arrays["labels"]).sample
    torch.testing.assert_close(output, arrays["output"], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="--overwrite"):
        run_convert(checkpoint, folder, "--attention-head-dim", 16)
    run_convert(checkpoint, folder, "--attention-head-dim", 16, "--overwrite")
    (folder / "notes.txt").write_text("mine")
    run_convert(checkpoint, folder, "--attention-head-dim", 16, "--overwrite")
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["dit"]


def test_positions_continue_the_formula_at_any_size():
    model = BlockTransformer2DModel(sample_size=8, hidden_size=16, num_layers=1, attention_head_dim=8)
    assert torch.equal(model.positions(4, 4), model.pos_embed)
    wide = model.positions(3, 7)
    assert torch.equal(wide, sincos_position_table(16, 3, 7))
    # Nothing is stretched: the trained grid's part of a larger table is the trained table.
    torch.testing.assert_close(wide.view(3, 7, 16)[:, :4], model.pos_embed.view(4, 4, 16)[:3])
    assert not model.pos_embed.requires_grad


@torch.no_grad()
def test_padding_below_a_patch_is_zeros():
    torch.manual_seed(0)
    model = BlockTransformer2DModel(sample_size=8, hidden_size=16, num_layers=1, attention_head_dim=8, patch_size=4)
    torch.nn.init.normal_(model.proj_out.weight, std=0.2)
    sample = torch.randn(1, 4, 7, 9)
    padded = torch.nn.functional.pad(sample, (0, 3, 0, 1))
    torch.testing.assert_close(model(sample, 5.0).sample, model(padded, 5.0).sample[..., :7, :9])


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"block_types": "i2rbm"}, "i2rmb"),
        ({"block_types": ["dit", "i2rmb", "dit"]}, "3 entries for 2 layers"),
        ({"attention_head_dim": 7}, "does not divide"),
        ({"num_layers": 0}, "at least 1 layer"),
        ({"sample_size": 1}, "at least one patch"),
        ({"window_size": 0}, "window_size"),
        ({"hidden_size": 18, "attention_head_dim": 6}, "multiple of 4"),
        ({"block_options": {"i2rmb": {}}}, "leave them out"),
        ({"block_options": {"dit": {"mlp_ration": 2.0}}}, "mlp_ratio"),
    ],
)
def test_bad_configurations_say_what_to_do(config, match):
    with pytest.raises(ValueError, match=match):
        BlockTransformer2DModel(**({"hidden_size": 16, "num_layers": 2, "attention_head_dim": 8} | config))
