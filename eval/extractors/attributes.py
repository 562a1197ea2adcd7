"""What is in an avatar: a small network that names its attributes, for accuracy against what was asked."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from brickwork.eval.extractors.features import Extractor, from_module, register_extractor
from brickwork.files import write_file

WEIGHTS = Path(__file__).parent / "avatar_attributes.safetensors"
SIZE, CHANNELS, FEATURES = 64, (32, 56, 80, 104), 112  # of pictures, the four levels, the shared layer


class AttributeJudge(nn.Module):
    """Convolutions, one shared layer, and a head an attribute.

    Args:
        attributes: the values of each attribute, in the order of its head's outputs.
    """

    def __init__(self, attributes: Mapping[str, Sequence[str]]):
        super().__init__()
        self.attributes = {name: list(values) for name, values in attributes.items()}
        layers, width = [], 3
        for wide in CHANNELS:
            for stride in (2, 1):
                layers += [
                    nn.Conv2d(width, wide, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(wide),
                    nn.ReLU(inplace=True),
                ]
                width = wide
        side = SIZE // 2 ** len(CHANNELS)
        layers += [nn.Conv2d(width, 80, 1), nn.ReLU(inplace=True), nn.Flatten()]
        self.body = nn.Sequential(*layers, nn.Linear(80 * side * side, FEATURES), nn.ReLU(inplace=True))
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values)) for name, values in attributes.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(B, 3, 64, 64)` in [-1, 1] => `features (B, FEATURES)`, and the logits of each attribute's values."""
        features = self.body(pictures)
        return {"features": features} | {name: head(features) for name, head in self.heads.items()}

    def logits(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """`forward` of pictures of any size: uint8 `(B, 3, H, W)`, or floats in [-1, 1]."""
        pictures = pictures.to(next(self.parameters()).device)
        if pictures.dtype == torch.uint8:
            pictures = pictures.float() / 127.5 - 1
        if pictures.shape[-2:] != (SIZE, SIZE):
            pictures = nn.functional.interpolate(pictures, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        return self(pictures)

    @torch.inference_mode()
    def name(self, pictures: torch.Tensor, batch_size: int = 64) -> list[dict[str, str]]:
        """The likeliest value of every attribute of pictures: uint8 `(B, 3, H, W)`, or floats in [-1, 1]."""
        named = []
        for part in pictures.split(batch_size):
            outputs = self.logits(part)
            best = {name: outputs[name].argmax(dim=1).tolist() for name in self.attributes}
            named += [{name: self.attributes[name][best[name][row]] for name in best} for row in range(len(part))]
        return named


def accuracy(named: Sequence[Mapping], asked: Sequence[Mapping]) -> dict[str, float]:
    """The share of pictures whose value is the one that was asked for, by attribute; `None` asks for nothing."""
    right: dict[str, list[bool]] = {}
    for found, wanted in zip(named, asked, strict=True):
        for attribute, value in wanted.items():
            if value is not None and attribute in found:
                right.setdefault(attribute, []).append(found[attribute] == value)
    return {attribute: sum(hits) / len(hits) for attribute, hits in right.items()}


def save_judge(judge: AttributeJudge, path: str | Path) -> Path:
    """Half-precision weights, with the attributes beside them."""
    from safetensors.torch import save

    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in judge.state_dict().items()
    }
    return write_file(path, save(tensors, {"attributes": json.dumps(judge.attributes)}))


def load_judge(path: str | Path = WEIGHTS) -> AttributeJudge:
    """The judge that ships, or another one.

    Raises:
        ValueError: for a file that holds none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            judge = AttributeJudge(json.loads(file.metadata()["attributes"]))
            judge.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`path` is {str(path)!r}, which holds no judge of attributes: {error}") from None
    return judge.eval()


@register_extractor("avatar-attributes")
def avatar_attributes() -> Extractor:
    """The judge that ships: features by which pictures differ where avatars' attributes do."""
    return from_module(load_judge(), "Attributes", SIZE, (0.5,) * 3, (0.5,) * 3, "avatar-attributes")
