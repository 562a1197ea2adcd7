"""Every backbone trains with the one entry script, and leaves a pipeline that loads."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from brickwork.training import train_backbone

SAMPLE = Path(__file__).parents[1] / "data" / "emoji" / "sample.parquet"
NETWORKS = {
    "transformer": (
        "BlockTransformer2DModel",
        "{block_types: dit, patch_size: 4, num_layers: 1, hidden_size: 16, attention_head_dim: 8}",
    ),
    "d-emo": (
        "BlockTransformer2DModel",
        "{block_types: i2rmb, patch_size: 2, num_layers: 1, hidden_size: 16, attention_head_dim: 8}",
    ),
    "unet": (
        "BlockUNet2DModel",
        "{block_types: [resnet, i2rmb], block_out_channels: [8, 16], layers_per_block: 1, attention_head_dim: 8}",
    ),
}


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("objective", ["edm", "flow"])
def test_two_steps_and_a_pipeline(network, objective, tmp_path):
    model_type, config = NETWORKS[network]
    overrides = [
        f"model.type={model_type}", f"model.config={config}", f"objective.type={objective}", f"data.source={SAMPLE}",
        "data.group_column=codepoints", "data.size=16", "data.held_out=0.1", "run.total_images=8", "run.batch_size=4",
        f"run.output_dir={tmp_path / 'run'}", "samples.count=2", "samples.steps=2",
    ]  # fmt: skip
    assert train_backbone.main(overrides) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert type(pipe.transformer).__name__ == model_type
    pipe.set_progress_bar_config(disable=True)
    images = pipe(class_labels=["flags"], num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
    assert images[0].size == (16, 16)
