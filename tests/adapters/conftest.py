"""Small Stable Diffusion pipelines with random weights, and random ResAdapters that fit them."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from brickwork.adapters import base
from brickwork.adapters.comfyui.names import FAMILIES, unet_layout
from brickwork.adapters.modules import ModuleAdapter, ModuleHook

TEXT_WIDTH = 32


class WordTokenizer:
    """Stands in for CLIP's tokenizer: one number a word, made from its letters."""

    model_max_length = 8
    added_tokens_encoder: dict = {}

    def tokenize(self, text):
        return text.split()

    def __call__(self, text, **kwargs):
        texts = [text] if isinstance(text, str) else text
        rows = [[1 + sum(map(ord, word)) % 97 for word in line.split()][:7] for line in texts]
        ids = torch.tensor([row + [98] * (8 - len(row)) for row in rows])
        return _Tokens(input_ids=ids, attention_mask=torch.ones_like(ids))

    def batch_decode(self, ids):
        return [str(row) for row in ids]


class _Tokens(dict):
    __getattr__ = dict.__getitem__


def make_unet(kind: str = "sd") -> UNet2DConditionModel:
    """A UNet of SD's or SDXL's block types, a few channels wide; "two" has two levels, "mini" hardly any layers."""
    torch.manual_seed(0)
    shared = {"sample_size": 8, "layers_per_block": 2, "norm_num_groups": 4, "attention_head_dim": 8}
    if kind in ("two", "mini"):
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        if kind == "mini":
            blocks |= {"mid_block_type": None}
            shared["layers_per_block"] = 1
        return UNet2DConditionModel(
            block_out_channels=(8, 16), cross_attention_dim=TEXT_WIDTH, **blocks, **shared
        ).eval()
    if kind == "sd":
        return UNet2DConditionModel(
            block_out_channels=(8, 16, 24, 24), cross_attention_dim=TEXT_WIDTH, **shared
        ).eval()
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        cross_attention_dim=2 * TEXT_WIDTH,
        **shared,
    ).eval()


def make_pipeline(kind: str = "sd"):
    """A whole pipeline around `make_unet(kind)`: 64 px images, 8x8 latents."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    text = CLIPTextConfig(
        vocab_size=99,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=TEXT_WIDTH,
        bos_token_id=0,
        eos_token_id=98,
        pad_token_id=98,
    )
    parts = {
        "vae": vae,
        "text_encoder": CLIPTextModel(text),
        "tokenizer": WordTokenizer(),
        "unet": make_unet(kind),
        "scheduler": DDIMScheduler(clip_sample=False),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "sd":
            pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)
        else:
            pipe = StableDiffusionXLPipeline(
                **parts,
                text_encoder_2=CLIPTextModelWithProjection(text),
                tokenizer_2=WordTokenizer(),
                add_watermarker=False,
            )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_adapter_tensors(unet, rank: int = 3, alpha: float | None = 1.5, seed: int = 0, size: float = 0.3):
    """(LoRA tensors in kohya names, absolute norms in diffusers names) that fit the UNet."""
    generator = torch.Generator().manual_seed(seed)
    lora, norms = {}, {}
    for name, module in unet.named_modules():
        if name.endswith("samplers.0.conv"):
            key = "lora_unet_" + name.replace(".", "_")
            lora[f"{key}.lora_down.weight"] = (
                torch.randn(rank, module.in_channels, 3, 3, generator=generator) * size
            ).half()
            lora[f"{key}.lora_up.weight"] = (
                torch.randn(module.out_channels, rank, 1, 1, generator=generator) * size
            ).half()
            if alpha is not None:
                lora[f"{key}.alpha"] = torch.tensor(alpha, dtype=torch.float16)
        elif ".resnets." in name and name.rpartition(".")[2] in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                own = getattr(module, part).detach()
                norms[f"{name}.{part}"] = own + torch.randn(own.shape, generator=generator) * size
    return lora, norms


def write_official(folder, lora, norms):
    """The authors' folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    if lora:
        save_file(lora, str(folder / "pytorch_lora_weights.safetensors"))
    if norms:
        save_file(norms, str(folder / "diffusion_pytorch_model.safetensors"))
    return folder


def stand_in(family, folder, rank=1):
    """An adapter of the family's layout: what the authors' file would hold, with other numbers."""
    convs, norms = unet_layout(next(f.channels for f in FAMILIES if f.key == family))
    generator = torch.Generator().manual_seed(0)
    lora = {}
    for path, (out, inside) in convs.items():
        name = "lora_unet_" + path.replace(".", "_")
        lora[f"{name}.lora_down.weight"] = torch.randn(rank, inside, 3, 3, generator=generator).half()
        lora[f"{name}.lora_up.weight"] = torch.randn(out, rank, 1, 1, generator=generator).half()
        lora[f"{name}.alpha"] = torch.tensor(8.0).half()
    absolute = {
        f"{path}.{part}": torch.randn(width, generator=generator)
        for path, width in norms.items()
        for part in ("weight", "bias")
    }
    folder.mkdir()
    save_file(lora, folder / "pytorch_lora_weights.safetensors")
    save_file(absolute, folder / "diffusion_pytorch_model.safetensors")
    return folder


@torch.no_grad()
def predict(unet, height: int = 8, width: int = 6, batch: int = 1, dtype=torch.float32):
    """The UNet's answer to a fixed random latent of this size."""
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(batch, 4, height, width, generator=generator).to(dtype)
    text = torch.randn(batch, 5, unet.config.cross_attention_dim, generator=generator).to(dtype)
    added = None
    if unet.config.addition_embed_type == "text_time":
        pooled = torch.randn(batch, TEXT_WIDTH, generator=generator).to(dtype)
        added = {"text_embeds": pooled, "time_ids": torch.full((batch, 6), 64.0).to(dtype)}
    return unet(sample, 300, text, added_cond_kwargs=added).sample


def generate(pipe, height: int = 64, width: int = 64, **kwargs):
    """Two steps of the pipeline from a fixed seed, as latents."""
    generator = torch.Generator().manual_seed(0)
    arguments = {"height": height, "width": width} | kwargs
    return pipe(
        "a red apple",
        num_inference_steps=2,
        generator=generator,
        output_type="latent",
        guidance_scale=3.0,
        **arguments,
    ).images


@pytest.fixture(scope="session")
def helpers():
    """The functions of this file, for tests that cannot import it."""
    names = (
        "make_unet",
        "make_pipeline",
        "random_adapter_tensors",
        "write_official",
        "predict",
        "generate",
        "stand_in",
    )
    return SimpleNamespace(**{name: globals()[name] for name in names})


@pytest.fixture(scope="session")
def pipelines():
    """One pipeline of each kind; a test that changes it takes a `copy.deepcopy`."""
    return {kind: make_pipeline(kind) for kind in ("sd", "xl")}


@pytest.fixture
def unet():
    return make_unet("two")


@pytest.fixture
def official(tmp_path, unet):
    """An authors' folder that fits `unet`."""
    return write_official(tmp_path / "adapter", *random_adapter_tensors(unet))


@pytest.fixture
def official_b(tmp_path, unet):
    """A second one, of another rank, without a stated alpha."""
    return write_official(tmp_path / "adapter_b", *random_adapter_tensors(unet, rank=2, alpha=None, seed=7))


class ShiftAdapter(ModuleAdapter):
    """The smallest kind: a learned number for each channel, and a given one, on the first convolution's output."""

    kind = "shift"
    conditions, strength_argument = ("offset",), "offset_scale"

    @classmethod
    def build(cls, network, width=4):
        if width < 1:
            raise ValueError(f"`width` is {width}; give 1 or more.")
        parts = nn.Module()
        parts.shift = nn.Parameter(torch.zeros(network.conv_in.out_channels))
        return parts, {"width": width}

    def hooks(self):
        return [(self.network.conv_in, "post", Add(self))]


class Add(ModuleHook):
    def act(self, strength, module, args, kwargs, output):
        offset = (self.adapter.present() or {}).get("offset", 0.0)
        return output + strength * (self.adapter.parts.shift[:, None, None] + offset)


@pytest.fixture
def Shift(monkeypatch):
    """A kind for the length of a test."""
    monkeypatch.setitem(base.KINDS, "shift", "tests.Shift")
    known = base.adapter_class
    monkeypatch.setattr(base, "adapter_class", lambda kind: ShiftAdapter if kind == "shift" else known(kind))
    return ShiftAdapter
