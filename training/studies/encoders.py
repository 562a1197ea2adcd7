"""Denoisers whose encoder a classifier was trained with, and has not, for an ablation of what that is worth.

    python -m brickwork.training.studies.encoders data/avatars -o runs/encoders
    brickwork ablation ablation_encoder -o runs/encoder

A small residual classifier of the layout of ResNet-18 learns to name the attributes of avatars. Around its blocks, and
around the same blocks as they were before training, `from_pretrained_encoder` builds two denoisers, which are saved as
`pretrained/` and `untrained/`. Weights of ImageNet would take the same way.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from brickwork import options
from brickwork.files import check_folder, new_folder
from brickwork.gen.networks.pretrained_encoder import from_pretrained_encoder
from brickwork.training.commands.train import run_script
from brickwork.training.data.build.avatars import SPLITS
from brickwork.training.heads import fit
from brickwork.training.train_attributes import loss, read, targets_of, values_of

WIDTHS, SIDE = (32, 64, 96), 32
HELD_OUT = 1000
MAKER = "encoders"


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


def train(classifier: Classifier, pictures: torch.Tensor, targets: dict[str, torch.Tensor], images: int) -> None:
    """Adam over so many images, `pictures` uint8 `(N, 3, SIDE, SIDE)`."""

    def lost(rows: list[int]) -> dict[str, torch.Tensor]:
        outputs = classifier(pictures[rows].float() / 127.5 - 1)
        return {"loss": loss(outputs, {name: target[rows] for name, target in targets.items()})}

    fit(classifier, lost, len(pictures), max(images // 64, 1), 3e-3, 64)


@torch.no_grad()
def accuracy(classifier: Classifier, pictures: torch.Tensor, targets: dict[str, torch.Tensor]) -> float:
    """The mean over attributes of the share of pictures named as they are."""
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in targets}
    for part in pictures.split(256):
        for name, logits in classifier(part.float() / 127.5 - 1).items():
            outputs[name].append(logits.argmax(dim=1))
    shares = []
    for name, target in targets.items():
        known = target >= 0
        shares.append((torch.cat(outputs[name])[known] == target[known]).float().mean().item())
    return sum(shares) / len(shares)


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="a folder of `brickwork data build avatars`")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the two denoisers")
    parser.add_argument("--images", type=int, default=60000, help="that the classifier sees (default: 60000)")
    parser.add_argument("--limit", type=int, default=8000, help="renders to learn from (default: 8000)")
    options.add_common(parser, "--overwrite")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train the classifier, say what it names right, and write both denoisers."""
    options.check_at_least(args, 1, "images", "limit")
    check_folder(args.output, MAKER, overwrite=args.overwrite)
    torch.manual_seed(0)
    (pictures, asked), (others, of_others) = (
        read(args.data / SPLITS[split], limit) for split, limit in (("train", args.limit), ("seed", HELD_OUT))
    )
    values = values_of(asked)
    pictures, others = (nn.functional.avg_pool2d(part.float(), 2).byte() for part in (pictures, others))
    targets = targets_of(asked, values)
    classifier = Classifier({name: len(known) for name, known in values.items()})
    known = {"num_classes": len(values["style"]), "id2label": dict(enumerate(values["style"])), "sample_size": SIDE}
    torch.manual_seed(1)
    untrained, started = from_pretrained_encoder(classifier, **known), time.process_time()
    train(classifier, pictures, targets, args.images)
    seconds = time.process_time() - started
    shares = [accuracy(classifier, *part) for part in ((pictures, targets), (others, targets_of(of_others, values)))]
    print(f"{seconds:.0f} CPU s; attributes named: {shares[0]:.1%} of learned, {shares[1]:.1%} of held-out renders")
    torch.manual_seed(1)  # all but the encoder's blocks are alike
    pretrained = from_pretrained_encoder(classifier, **known)
    with new_folder(args.output, MAKER, overwrite=args.overwrite) as folder:
        untrained.save_pretrained(folder / "untrained")
        pretrained.save_pretrained(folder / "pretrained")
    print(f"wrote {args.output}: pretrained, untrained")


main = partial(run_script, "encoders", __doc__, configure_parser)

if __name__ == "__main__":
    sys.exit(main())
