"""Inception v3 as FID uses it: the 2015 TensorFlow graph, which differs from torchvision's network.

Its average pools leave the padding out of the mean, and the last block pools by maximum. The module takes the widely
used PyTorch conversion of the published weights (`weights-inception-2015-12-05-6726825d.pth`), key for key. Widths
follow Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567, and the graph itself.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from brickwork.eval.extractors.features import (
    Extractor,
    check_digest,
    frozen,
    load_state,
    register_extractor,
    weights_digest,
)

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
# The published files carry the start of their SHA-256 in their names.
INCEPTION_DIGEST = "6726825d"

INCEPTION_SIZE = 299
INCEPTION_FEATURES = 2048
# sFID: the first 7 channels of the 17x17 map named "mixed_6/conv", 7 * 17 * 17 numbers an image.
SPATIAL_CHANNELS = 7


class ConvBatchNorm(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; padded to keep the size unless it strides or says otherwise."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int, pad: bool):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad else 0
        self.conv = nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(hidden_states)))


average_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
max_pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve = partial(F.max_pool2d, kernel_size=3, stride=2)


class InceptionBlock(nn.Module):
    """Branches side by side, joined along the channels; the pooled branch comes last.

    A branch is a list of steps `(name, out_channels, kernel)` or `(name, out_channels, kernel, stride)`; a step that
    is a list of such tuples runs them side by side on the same input. Every convolution sits at `self.<name>`.
    """

    def __init__(self, in_channels: int, branches: list[list], pool, pool_channels: int | None = None):
        super().__init__()
        self.branches, self.pool = [], pool
        for branch in branches:
            channels, steps = in_channels, []
            for step in branch:
                parallel = step if isinstance(step, list) else [step]
                for name, out_channels, kernel, *stride in parallel:
                    conv = ConvBatchNorm(channels, out_channels, kernel, *(stride or [1]), pad=not stride)
                    self.add_module(name, conv)
                steps.append([name for name, *_ in parallel])
                channels = parallel[-1][1]
            self.branches.append(steps)
        if pool_channels is not None:
            self.branch_pool = ConvBatchNorm(in_channels, pool_channels, 1, 1, pad=True)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        outputs = []
        for steps in self.branches:
            branch = hidden_states
            for names in steps:
                branch = torch.cat([getattr(self, name)(branch) for name in names], dim=1)
            outputs.append(branch)
        pooled = self.pool(hidden_states)
        outputs.append(self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled)
        return torch.cat(outputs, dim=1)


_DOUBLE_3 = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3)]


def _block_35(in_channels: int, pool_channels: int) -> InceptionBlock:
    five = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    branches = [[("branch1x1", 64, 1)], five, [*_DOUBLE_3, ("branch3x3dbl_3", 96, 3)]]
    return InceptionBlock(in_channels, branches, average_pool, pool_channels)


def _reduce_35(in_channels: int) -> InceptionBlock:
    return InceptionBlock(in_channels, [[("branch3x3", 384, 3, 2)], [*_DOUBLE_3, ("branch3x3dbl_3", 96, 3, 2)]], halve)


def _block_17(width: int) -> InceptionBlock:
    row, column = (1, 7), (7, 1)
    single = [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)]
    kernels = (1, column, row, column, row)
    double = [(f"branch7x7dbl_{i}", 192 if i == 5 else width, kernel) for i, kernel in enumerate(kernels, 1)]
    return InceptionBlock(768, [[("branch1x1", 192, 1)], single, double], average_pool, 192)


def _reduce_17(in_channels: int) -> InceptionBlock:
    seven = [(f"branch7x7x3_{i}", 192, kernel) for i, kernel in enumerate((1, (1, 7), (7, 1)), 1)]
    branches = [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)], [*seven, ("branch7x7x3_4", 192, 3, 2)]]
    return InceptionBlock(in_channels, branches, halve)


def _block_8(in_channels: int, pool) -> InceptionBlock:
    def split(name: str) -> list[tuple]:
        return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]

    single = [("branch3x3_1", 384, 1), split("branch3x3_2")]
    double = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), split("branch3x3dbl_3")]
    return InceptionBlock(in_channels, [[("branch1x1", 320, 1)], single, double], pool, 192)


class InceptionV3(nn.Module):
    """The FID network: 2048 pooled features, 1008 logits and the spatial features of sFID."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBatchNorm(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = ConvBatchNorm(32, 32, 3, 1, pad=False)
        self.Conv2d_2b_3x3 = ConvBatchNorm(32, 64, 3, 1, pad=True)
        self.Conv2d_3b_1x1 = ConvBatchNorm(64, 80, 1, 1, pad=True)
        self.Conv2d_4a_3x3 = ConvBatchNorm(80, 192, 3, 1, pad=False)
        self.Mixed_5b = _block_35(192, 32)
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = _reduce_35(288)
        self.Mixed_6b = _block_17(128)
        self.Mixed_6c = _block_17(160)
        self.Mixed_6d = _block_17(160)
        self.Mixed_6e = _block_17(192)
        self.Mixed_7a = _reduce_17(768)
        self.Mixed_7b = _block_8(1280, average_pool)
        self.Mixed_7c = _block_8(2048, max_pool)
        self.fc = nn.Linear(INCEPTION_FEATURES, 1008)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of normalised images.

        Args:
            images: `(batch, 3, 299, 299)`, about [-1, 1].

        Returns:
            `features` `(batch, 2048)`; `logits` `(batch, 1008)` without the bias, as the Inception Score of the
            graph is computed; `spatial` `(batch, 2023)` for sFID (Nash et al., arXiv 2103.03841).
        """
        hidden_states = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        hidden_states = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halve(hidden_states)))
        hidden_states = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halve(hidden_states))))
        hidden_states = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(hidden_states)))
        # The graph counts its blocks from "mixed": mixed_6 is Mixed_6d, and "mixed_6/conv" its first branch.
        spatial = self.Mixed_6d.branch1x1(hidden_states)[:, :SPATIAL_CHANNELS].flatten(1)
        hidden_states = self.Mixed_6e(self.Mixed_6d(hidden_states))
        hidden_states = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(hidden_states)))
        features = hidden_states.mean(dim=(2, 3))
        return {"features": features, "logits": features @ self.fc.weight.T, "spatial": spatial}


@register_extractor("inception-v3")
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
    load_state(network, path)
    published = sha256.startswith(INCEPTION_DIGEST)
    label = "Inception" if published else f"Inception[{sha256[:8]}]"
    return Extractor("inception-v3", label, frozen(network), INCEPTION_SIZE, weights_digest(network))


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
