"""Training an adapter on a network of ours: pairs in, a file out, resumed to the bit, the network untouched."""

import datasets
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from brickwork import ClassToImagePipeline, load_adapter
from brickwork.training.config.config import load_config
from brickwork.training.engine.loop import prepare, train
from brickwork.training.tasks.adapting import BackboneAdapterTask
from brickwork.training.tasks.backbone import BackboneTask


def prepared(kind, path, folder, *overrides):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return prepare(kind, load_config(path, [f"run.output_dir={folder}", *overrides], kind.configuration))


@pytest.fixture
def run(tiny_yaml, tmp_path):
    """`run("name", "section.key=value", …)` => a `Run` of a DINO adapter on a small trained UNet."""
    values = yaml.safe_load(tiny_yaml.read_text())
    values |= {"model": {"type": "BlockUNet2DModel"}, "objective": {"brick_dropout": 0}}
    sample = datasets.Dataset.from_parquet(values["data"]["source"]).select(range(12))
    plain = sample.cast_column("image", datasets.Image(decode=False))
    references = [{"bytes": one["bytes"], "path": None} for one in plain["image"]][::-1]
    values["data"] |= {"source": str(tmp_path / "pairs.parquet"), "held_out": 0.0}
    plain.add_column("reference", references).to_parquet(values["data"]["source"])
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    torch.manual_seed(3)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "encoder")
    train(prepared(BackboneTask, path, tmp_path / "base", "model.config={block_out_channels: [8, 16]}"))

    def build(name, *overrides):
        given = (
            f"model.init_from={tmp_path / 'base' / 'pipeline'}", "adapter.conditions={reference_image: reference}",
            f"adapter.config={{encoder: {tmp_path / 'encoder'}, rank: 4}}",
        )  # fmt: skip
        return prepared(BackboneAdapterTask, path, tmp_path / name, *given, *overrides)

    return build


def test_learns_alone_and_goes_on_to_the_bit(run, tmp_path, final_tensors, equal_bits):
    straight = run("straight")
    before = {name: tensor.clone() for name, tensor in straight.task.network.network.state_dict().items()}
    train(straight)
    assert all(
        torch.equal(straight.task.network.network.state_dict()[name], tensor) for name, tensor in before.items()
    )
    train(run("halves", "run.total_images=16"))
    train(run("halves"))
    assert equal_bits(final_tensors(tmp_path / "halves"), final_tensors(tmp_path / "straight"))
    pipe = ClassToImagePipeline.from_pretrained(tmp_path / "base" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    file = tmp_path / "straight" / "adapter.safetensors"
    adapter = load_adapter(pipe, file)
    assert all(torch.equal(tensor, load_file(file)[name]) for name, tensor in adapter.state().items())
    assert any(output.weight.any() for output in adapter.parts.outputs)


def test_what_is_refused(run):
    for override, message in (
        ("model.init_from=null", "`model.init_from`"),
        ("data.horizontal_flip=true", "`data.horizontal_flip` is True; an adapter learns from pictures as they are"),
        ("adapter.conditions={reference_image: refrence}", "`adapter.conditions.reference_image` is 'refrence'"),
    ):
        with pytest.raises(ValueError, match=message):
            run("refused", override)
