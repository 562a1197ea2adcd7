"""Small real Stable Diffusion folders with random weights, and runs on them."""

import copy
import json
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SAMPLE = Path(__file__).parents[3] / "data" / "emoji" / "sample.parquet"
TINY = {
    "adapter": {"rank": 2},
    "data": {"source": str(SAMPLE), "group_column": "codepoints", "held_out": 0.1},
    "resolution": {"min_size": 8, "max_size": 24, "max_aspect": 2.0},
    "objective": {"noise_offset": 0.1},
    "optimizer": {"learning_rate": 1.0e-2, "warmup_images": 4},
    "samples": {"count": 1, "steps": 1, "held_out": 1, "sizes": [[8, 16]]},
    "run": {
        "total_images": 8,
        "batch_size": 2,
        "mixed_precision": "no",
        "log_images": 4,
        "sample_images": 0,
        "checkpoint_images": 4,
    },
}


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's, with a vocabulary of letters."""
    letters = [chr(c) for c in range(97, 123)]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=12)


def make_pipeline(kind: str, tokenizer: CLIPTokenizer):
    """A pipeline of kind `sd1`, `sd2` (v-prediction) or `sdxl`: 2 pixels a latent, sides in steps of 8 (SDXL: 4)."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextConfig(
        vocab_size=54, bos_token_id=52, eos_token_id=53, pad_token_id=53, hidden_size=8, intermediate_size=8,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12, projection_dim=6,
    )  # fmt: skip
    shared = {"sample_size": 8, "layers_per_block": 2, "norm_num_groups": 2, "attention_head_dim": 4}
    if kind == "sdxl":
        shared |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 6,
            "cross_attention_dim": 16,
        }
    else:
        shared |= {
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 8,
        }
    channels = (4, 8, 8)[: len(shared["down_block_types"])]
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    parts = {
        "vae": vae,
        "text_encoder": CLIPTextModel(text),
        "tokenizer": tokenizer,
        "unet": UNet2DConditionModel(block_out_channels=channels, **shared),
        "scheduler": DDIMScheduler(
            beta_schedule="scaled_linear", beta_end=0.012, clip_sample=False, prediction_type=prediction
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "sdxl":
            second = CLIPTextModelWithProjection(text)
            return StableDiffusionXLPipeline(
                **parts, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False
            )
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Pipeline folders by kind."""
    root = tmp_path_factory.mktemp("bases")
    tokenizer = make_tokenizer(root / "tokenizer")
    for kind in ("sd1", "sd2", "sdxl"):
        make_pipeline(kind, tokenizer).save_pretrained(root / kind)
    return {kind: root / kind for kind in ("sd1", "sd2", "sdxl")}


@pytest.fixture(autouse=True)
def quiet():
    """Progress bars of loading, and diffusers' notes on captions cut short, say nothing here."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def fresh(bases):
    """`fresh("sd1")` => a pipeline of its own, as loaded from its folder."""
    from brickwork.pipelines.stable_diffusion import load_pipeline

    loaded = {kind: load_pipeline(str(folder)) for kind, folder in bases.items()}
    return lambda kind: copy.deepcopy(loaded[kind])


@pytest.fixture
def tiny_run(bases, fresh, tmp_path, monkeypatch):
    """`tiny_run("name", "section.key=value", …, kind="sd1")` => a `Run` in `tmp_path/name`."""
    from brickwork.training.config.config import load_config
    from brickwork.training.engine.loop import prepare
    from brickwork.training.tasks.latent import task
    from brickwork.training.tasks.latent.resadapter import ResAdapterTask

    kinds, load = {str(folder): kind for kind, folder in bases.items()}, task.load_pipeline
    monkeypatch.setattr(
        task,
        "load_pipeline",
        lambda base, *rest: fresh(kinds[base]) if base in kinds else load(base, *rest),
    )

    def build(name: str, *overrides: str, kind: str = "sd1", task_class: type = ResAdapterTask, **options):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        path = tmp_path / "tiny.yaml"
        known = task_class.configuration.model_fields["adapter"].annotation.model_fields
        adapter = {key: value for key, value in TINY["adapter"].items() if key in known}
        path.write_text(yaml.safe_dump(TINY | {"adapter": adapter}))
        values = [f"model.base={bases[kind]}", f"run.output_dir={tmp_path / name}", *overrides]
        return prepare(task_class, load_config(path, values, task_class.configuration), **options)

    return build
