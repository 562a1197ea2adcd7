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
from inspect import signature
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from brickwork.errors import explained, loader_of
from brickwork.eval.extractors.protocols import Protocol, to_uint8
from brickwork.files import file_digest, tensor_digest
from brickwork.gen.registry import Registry

FIXED_BATCH = 16  # small enough for a CPU's caches, where twice as many take longer per picture

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
        tensors = chain(self.network.parameters(), self.network.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        pixels = protocol.resize(images.to(device, torch.float32), self.size)
        mean = self.mean if self.mean is not None else (protocol.inception_shift,) * 3
        std = self.std if self.std is not None else (protocol.inception_scale,) * 3
        mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std))
        # In place: a fresh copy costs twice what the arithmetic does.
        pixels = pixels.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        # cuDNN rounds convolutions to TF32 unless told otherwise, and picks its kernels anew in every process.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            outputs = self.network(pixels)
        if isinstance(outputs, torch.Tensor):
            outputs = {"features": outputs.flatten(1)}
        return {name: value.float() for name, value in outputs.items()}


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
    return Extractor(name or f"module:{label}", label, frozen(network), size, weights_digest(network), *scaled)


def frozen(network: nn.Module) -> nn.Module:
    """Ready to run, channels last: 1.5 to 2.5 times as fast on a CPU."""
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def load_state(network: nn.Module, path: Path) -> None:
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
    with explained(f"weights: {path} does not fit {type(network).__name__}", RuntimeError):
        network.load_state_dict(state, assign=True)


EXTRACTORS = Registry("extractor")  # loaders; one that takes a source is registered as `NAME:`
register_extractor = EXTRACTORS.register


def load_extractor(name: str, weights: str | Path | None = None, digest: str | None = None) -> Extractor:
    """An extractor by name.

    Args:
        name: `inception-v3`, `efficientnet-lite0` or `transformers:<folder or hub id>`.
        weights, digest: For `inception-v3`, see there.
    """
    load = loader_of("extractor", name, EXTRACTORS.classes)
    options = {key: value for key, value in (("weights", weights), ("digest", digest)) if value is not None}
    if options and "weights" not in signature(load).parameters:
        raise ValueError(f"weights: only inception-v3 takes a weights file, and the extractor is {name!r}")
    return load(**options)
