"""Networks made of networks in training: a random stitch a step, assistants supervised, pipelines that load."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from brickwork import BlockTransformer2DModel, BlockUNet2DModel, CompositeDenoiser, StitchedDenoiser
from brickwork.gen.parameterization import EDMObjective
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.objective_file import save_objective
from brickwork.training import train_backbone
from brickwork.training.config.config import load_config
from brickwork.training.tasks.backbone import BackboneTask, build_images
from brickwork.training.tasks.backbones import TrainedOn, build_model

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
DATA = [f"data.source={SAMPLE}", "data.group_column=codepoints", "data.size=8", "data.held_out=0.1"]
RUN = ["run.total_images=12", "run.batch_size=4", "samples.count=2", "samples.steps=2", "run.mixed_precision=no"]


def stitched(classes):
    shared = {"sample_size": 8, "in_channels": 3, "num_classes": classes, "attention_head_dim": 8}
    sizes = ((1, 8), (2, 16))
    return StitchedDenoiser.from_anchors(
        [BlockTransformer2DModel(**shared, num_layers=layers, hidden_size=width) for layers, width in sizes]
    )


def composite(classes):
    return CompositeDenoiser.grow(
        BlockUNet2DModel(
            sample_size=8, num_classes=classes, block_out_channels=(8, 8), layers_per_block=1, attention_head_dim=8
        )
    )


@pytest.mark.parametrize("make", [stitched, composite])
def test_trained_on_with_distillation(make, tmp_path, monkeypatch):
    classes = build_images(load_config(None, DATA).data).class_names
    torch.manual_seed(0)
    network, folder = make(len(classes)), tmp_path / "first"
    ClassToImagePipeline.from_objective(network, EDMObjective()).save_pretrained(folder)
    save_objective(folder, "edm", {})
    kind, drawn, counts = type(network).__name__, [], set()
    call = BackboneTask.call

    def watched(task, model, step):
        outputs = call(task, model, step)
        drawn.append(step.subnet)
        counts.add(len(outputs))
        return outputs

    monkeypatch.setattr(BackboneTask, "call", watched)
    overrides = [
        *DATA, *RUN, f"model.type={kind}", f"model.init_from={folder}", f"run.output_dir={tmp_path / 'run'}",
        f"objectives=[{{type: output, teacher: {folder}, weight: 0.5}}]", "run.log_images=4",
    ]  # fmt: skip
    assert train_backbone.main(overrides) == 0
    again = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline").transformer
    assert type(again) is type(network)
    assert not all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters()))
    if make is stitched:
        names = {name for name in drawn if name is not None}
        assert len(names) > 1 and names <= set(network.subnet_names()) and counts == {1}
    else:
        assert set(drawn) == {None} and counts == {2}


def test_what_is_made_of_networks_needs_them(tmp_path):
    for kind in ("StitchedDenoiser", "CompositeDenoiser"):
        with pytest.raises(ValueError, match="made of trained networks.*model.init_from"):
            overrides = [*DATA, *RUN, f"model.type={kind}", f"run.output_dir={tmp_path / 'run'}"]
            config = load_config(None, overrides)
            build_model(config.model, config.objective, TrainedOn(["a"], 8, 3))
