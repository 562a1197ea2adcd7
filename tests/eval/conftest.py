"""A small network and small pictures, for tests that need no real features."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from brickwork.eval.extractors.features import Extractor, from_module


class SmallNetwork(nn.Module):
    """Eight features, five logits and six spatial features of a picture."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = torch.tanh(self.conv(images))
        features = maps.mean(dim=(2, 3))
        return {"features": features, "logits": self.head(features), "spatial": maps[:, :1, :2, :3].flatten(1)}


@pytest.fixture
def extractor() -> Extractor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallNetwork()
    return from_module(network, "Small", 16, name="small")


@pytest.fixture
def pixels() -> np.ndarray:
    """70 smooth pictures of 12x20: several fixed batches, the last not full."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (70, 3, 5, 3), dtype=np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(c).resize((20, 12), Image.Resampling.BILINEAR))
            for c in coarse.transpose(0, 2, 3, 1).reshape(70, 3, 5, 3)
        ]
    )


@pytest.fixture
def write_folder(tmp_path):
    """Write pictures `(count, height, width, 3)` as a folder of PNGs."""

    def write(pixels: np.ndarray, name: str = "pictures"):
        folder = tmp_path / name
        folder.mkdir()
        for i, picture in enumerate(pixels):
            Image.fromarray(picture).save(folder / f"{i:04d}.png")
        return folder

    return write


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP with random weights and a vocabulary of letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path / "clip"
    folder.mkdir()
    letters = [chr(c) for c in range(97, 123)]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(names), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(
        text_config={**sizes, **ids, "max_position_embeddings": 32},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
