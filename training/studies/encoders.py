"""Encoders that a classifier of avatars' attributes taught, for studies of what that is worth.

    python -m brickwork.training.studies.encoders data/avatars -o runs/encoders
    brickwork ablation ablation_encoder -o runs/encoder
    python -m brickwork.training.studies.encoders data/avatars -o runs/vit --kind vit --limit 40000 --images 200000

A small residual classifier of the layout of ResNet-18 learns to name the attributes of avatars. Around its blocks, and
around the same blocks as they were before training, `from_pretrained_encoder` builds two denoisers, which are saved as
`pretrained/` and `untrained/`. Weights of ImageNet would take the same way.

With `--kind vit` a small DINOv2 learns it, of 64 patches, whose mean is named: a frozen encoder for `DinoAdapter` and
`repa` that knows avatars, where the hub's weights cannot be had.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from brickwork import options
from brickwork.adapters.dino.encoder import normalisation
from brickwork.files import check_folder, new_folder
from brickwork.gen.networks.pretrained_encoder import from_pretrained_encoder
from brickwork.training.commands.train import run_script
from brickwork.training.data.build.avatars import SPLITS
from brickwork.training.heads import fit
from brickwork.training.train_attributes import loss, read, targets_of, values_of

WIDTHS, SIDE = (32, 64, 96), 32
HELD_OUT = 1000
MAKER = "encoders"
KINDS = ("resnet", "vit")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, named as torchvision's (He et al., arXiv 1512.03385)."""

    def __init__(self, dim: int, out_dim: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim, out_dim, 3, stride, 1, bias=False), nn.BatchNorm2d(out_dim)
        self.conv2, self.bn2 = nn.Conv2d(out_dim, out_dim, 3, 1, 1, bias=False), nn.BatchNorm2d(out_dim)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(dim, out_dim, 1, stride, bias=False), nn.BatchNorm2d(out_dim))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        shortcut = sample if self.downsample is None else self.downsample(sample)
        update = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(sample)))))
        return torch.relu(shortcut + update)


class Classifier(nn.Module):
    """Stages `layer1` … of residual blocks, and a linear head an attribute.

    Args:
        values: how many there are of each attribute.
    """

    def __init__(self, values: dict[str, int]):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0])
        for number, width in enumerate(WIDTHS, 1):
            before = WIDTHS[max(number - 2, 0)]
            blocks = [BasicBlock(before, width, 2)] if number > 1 else []
            setattr(self, f"layer{number}", nn.Sequential(*blocks, BasicBlock(width, width, 1)))
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTHS[-1], count) for name, count in values.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(B, 3, H, W)` in [-1, 1] => logits by attribute."""
        maps = torch.relu(self.bn1(self.conv1(pictures)))
        for number in range(1, len(WIDTHS) + 1):
            maps = getattr(self, f"layer{number}")(maps)
        features = maps.mean(dim=(2, 3))
        return {name: head(features) for name, head in self.heads.items()}


class PatchClassifier(nn.Module):
    """A small DINOv2 `encoder`, and a linear head an attribute on the mean of its patches' features.

    Args:
        values: how many there are of each attribute.
    """

    def __init__(self, values: dict[str, int]):
        super().__init__()
        settings = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64}
        self.encoder = Dinov2Model(Dinov2Config(**settings, patch_size=8))
        mean, std = normalisation(self.encoder, self.encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.heads = nn.ModuleDict({name: nn.Linear(96, count) for name, count in values.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(B, 3, H, W)` in [-1, 1] => logits by attribute."""
        pixels = ((pictures + 1) / 2 - self.mean) / self.std
        features = self.encoder(pixel_values=pixels).last_hidden_state[:, 1:].mean(dim=1)
        return {name: head(features) for name, head in self.heads.items()}


def train(
    classifier: nn.Module, pictures: torch.Tensor, targets: dict[str, torch.Tensor], images: int, rate: float = 3e-3,
    bf16: bool = False,
) -> None:  # fmt: skip
    """Adam over so many images, `pictures` uint8 `(N, 3, H, W)`."""

    def lost(rows: list[int]) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = classifier(pictures[rows].float() / 127.5 - 1)
        return {"loss": loss(outputs, {name: target[rows] for name, target in targets.items()})}

    fit(classifier, lost, len(pictures), max(images // 64, 1), rate, 64)


@torch.no_grad()
def accuracy(classifier: nn.Module, pictures: torch.Tensor, targets: dict[str, torch.Tensor]) -> float:
    """The mean over attributes of the share of pictures named as they are."""
    outputs, shares = [classifier(part.float() / 127.5 - 1) for part in pictures.split(256)], []
    for name, target in targets.items():
        found = torch.cat([logits[name].argmax(dim=1) for logits in outputs])
        shares.append((found == target)[target >= 0].float().mean().item())
    return sum(shares) / len(shares)


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="a folder of `brickwork data build avatars`")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of what is written")
    parser.add_argument("--kind", choices=KINDS, default="resnet", help="what is trained (default: resnet)")
    parser.add_argument("--bf16", action="store_true", help="compute under bf16 autocast")
    parser.add_argument("--images", type=int, default=60000, help="that the classifier sees (default: 60000)")
    parser.add_argument("--limit", type=int, default=8000, help="renders to learn from (default: 8000)")
    options.add_common(parser, "--overwrite")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train the classifier, say what it names right, and write both denoisers, or the encoder."""
    options.check_at_least(args, 1, "images", "limit")
    check_folder(args.output, MAKER, overwrite=args.overwrite)
    torch.manual_seed(0)
    (pictures, asked), (others, of_others) = (
        read(args.data / SPLITS[split], limit) for split, limit in (("train", args.limit), ("seed", HELD_OUT))
    )
    values = values_of(asked)
    targets, counts = targets_of(asked, values), {name: len(known) for name, known in values.items()}
    if args.kind == "vit":
        classifier, rate = PatchClassifier(counts), 1e-3
    else:
        pictures, others = (nn.functional.avg_pool2d(part.float(), 2).byte() for part in (pictures, others))
        classifier, rate = Classifier(counts), 3e-3
        known = {
            "num_classes": len(values["style"]),
            "id2label": dict(enumerate(values["style"])),
            "sample_size": SIDE,
        }
        torch.manual_seed(1)
        untrained = from_pretrained_encoder(classifier, **known)
    started = time.process_time()
    train(classifier, pictures, targets, args.images, rate, args.bf16)
    seconds = time.process_time() - started
    shares = [accuracy(classifier, *part) for part in ((pictures, targets), (others, targets_of(of_others, values)))]
    print(f"{seconds:.0f} CPU s; attributes named: {shares[0]:.1%} of learned, {shares[1]:.1%} of held-out renders")
    if args.kind == "vit":
        written = {"": classifier.encoder}
    else:
        torch.manual_seed(1)  # all but the encoder's blocks are alike
        written = {"untrained": untrained, "pretrained": from_pretrained_encoder(classifier, **known)}
    with new_folder(args.output, MAKER, overwrite=args.overwrite) as folder:
        for name, network in written.items():
            network.save_pretrained(folder / name)
    print(f"wrote {args.output}: {', '.join(written) if all(written) else 'the encoder'}")


main = partial(run_script, "encoders", __doc__, configure_parser)

if __name__ == "__main__":
    sys.exit(main())
