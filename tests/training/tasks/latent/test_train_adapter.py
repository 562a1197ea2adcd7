"""Training adapters on activations: pairs in, a file that `load_adapter` takes out, and resumed to the bit."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from brickwork import load_adapter
from brickwork.training.engine.loop import train
from brickwork.training.tasks.latent.adapter import AdapterTask

SAMPLE = Path(__file__).parents[3] / "data" / "emoji" / "sample.parquet"
FEW = ("data.held_out=0", "resolution.max_size=16", "samples.count=0", "objective.noise_offset=0")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("encoder")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A Parquet file with two columns of pictures, and layouts; the fourth row's reference is broken."""
    table = datasets.Dataset.from_parquet(str(SAMPLE)).select(range(12))
    table = table.cast_column("image", datasets.Image(decode=False))
    references = [{"bytes": row["bytes"], "path": None} for row in table["image"]][::-1]
    references[3] = {"bytes": b"no picture", "path": None}
    table = table.add_column("reference", references).cast_column("reference", datasets.Image(decode=False))
    table = table.add_column("boxes", [[[0.1, 0.1, 0.6, 0.9]]] * 12).add_column("phrases", [["a"]] * 12)
    file = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    table.to_parquet(str(file))
    return file


@pytest.fixture
def run(tiny_run, pairs, encoder):
    """`run("name", "dino", …)` => a `Run` that trains that kind."""
    of = {
        "dino": ({"encoder": str(encoder), "rank": 4}, {"reference_image": "reference"}),
        "layout": ({"dim": 8, "num_heads": 2}, {"boxes": "boxes", "phrases": "phrases"}),
    }

    def build(name, kind, *overrides):
        config, conditions = of[kind]
        given = (
            f"adapter.type={kind}", f"adapter.config={json.dumps(config)}",
            f"adapter.conditions={json.dumps(conditions)}", f"data.source={pairs}", "data.group_column=null", *FEW,
        )  # fmt: skip
        return tiny_run(name, *given, *overrides, task_class=AdapterTask)

    return build


@pytest.mark.parametrize("kind", ["dino", "layout"])
def test_a_kind_learns_alone_and_goes_on_to_the_bit(run, kind, fresh, tmp_path, final_tensors, equal_bits):
    straight = run("straight", kind, "run.gradient_checkpointing=true")
    unet = straight.task.base.unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    fresh_weights = {name: tensor.clone() for name, tensor in straight.task.adapter.state().items()}
    train(straight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    file = tmp_path / "straight" / "adapter.safetensors"
    saved = load_file(file)
    assert saved.keys() == fresh_weights.keys() and not any("encoder" in name for name in saved)
    assert any(not torch.equal(saved[name], fresh_weights[name]) for name in saved)
    adapter = load_adapter(fresh("sd1"), file)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in adapter.state().items())

    train(run("halves", kind, "run.gradient_checkpointing=true", "run.total_images=4"))
    train(run("halves", kind, "run.gradient_checkpointing=true"))
    assert equal_bits(final_tensors(tmp_path / "halves"), final_tensors(tmp_path / "straight"))


def test_an_adapter_to_go_on_from(run, tmp_path):
    train(run("first", "dino", "run.total_images=2", "run.checkpoint_images=2"))
    file = tmp_path / "first" / "adapter.safetensors"
    task = run("second", "dino", f"adapter.init_from={file}").task
    saved = load_file(file)
    assert all(torch.equal(tensor.cpu(), saved[name]) for name, tensor in task.adapter.state().items())
    with pytest.raises(ValueError, match="`adapter.init_from` holds a dino, not a layout"):
        run("third", "layout", f"adapter.init_from={file}")


def test_what_is_refused(run):
    for override, message in (
        ("adapter.type=dinno", "`adapter.type` is 'dinno'; did you mean 'dino'"),
        ("adapter.type=resadapter", "which train_resadapter.py trains"),
        ("adapter.conditions={refrence_image: reference}", "did you mean 'reference_image'"),
        ("adapter.conditions={reference_image: refrence}", "`adapter.conditions.reference_image` is 'refrence'"),
        ("adapter.config={ranks: 3}", "`adapter.config` does not fit a dino"),
    ):
        with pytest.raises(ValueError, match=message):
            run("refused", "dino", override)
