"""Train the judge of avatars' attributes on renders whose attributes are known.

    python training/train_attributes.py data/avatars --output judge.safetensors

Prints its accuracy on held-out renders, by attribute, on combinations that it has seen and on those held out.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from brickwork.eval.extractors.attributes import AttributeJudge, accuracy, save_judge
from brickwork.eval.sets.decode import open_upright
from brickwork.training.data.build.attributes import ATTRIBUTES
from brickwork.training.data.build.avatars import SPLITS
from brickwork.training.data.images import crop_to, load_table
from brickwork.training.heads import fit

COLOURS = ("hair_colour", "skin", "clothes_colour", "body", "ground")
LEFT_OUT = ("earrings",)  # a pixel or two


def read(path: Path, limit: int | None = None) -> tuple[torch.Tensor, list[dict]]:
    """Pictures uint8 `(N, 3, 64, 64)`, and their attributes, the style among them."""
    from datasets import Image

    table = load_table(str(path))
    styles = table.features["label"].names
    table = table.cast_column("image", Image(decode=False)).select(range(min(limit or len(table), len(table))))
    pictures = [torch.tensor(crop_to(open_upright(row["image"]), 64, 64)).permute(2, 0, 1) for row in table]
    asked = [{"style": styles[row["label"]]} | {name: row[name] for name in ATTRIBUTES} for row in table]
    return torch.stack(pictures), asked


def values_of(asked: Sequence[dict]) -> dict[str, list[str]]:
    """The values of each attribute that is told apart."""
    values = {name: sorted({one[name] for one in asked if one[name]}) for name in ("style", *ATTRIBUTES)}
    return {name: known for name, known in values.items() if len(known) > 1 and name not in LEFT_OUT}


def targets_of(asked: Sequence[dict], values: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
    """The number of each picture's value of every attribute `(N,)`, -1 where it has none."""
    return {
        name: torch.tensor([known.index(one[name]) if one[name] in known else -1 for one in asked])
        for name, known in values.items()
    }


def loss(outputs: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy summed over the attributes that a picture has."""
    return sum(
        torch.nn.functional.cross_entropy(outputs[name].float(), target, ignore_index=-1, reduction="sum")
        for name, target in targets.items()
    ) / len(next(iter(targets.values())))


def train(data: Path, images: int, batch_size: int, learning_rate: float, mixed_precision: bool) -> AttributeJudge:
    """The judge after so many images, in random order, shifted by up to two pixels and a little noisy.

    Half of each batch has its colour channels exchanged, and teaches nothing about colours: what a mouth looks like
    must not depend on the hair above it.
    """
    torch.manual_seed(0)
    pictures, asked = read(data / SPLITS["train"])
    values = values_of(asked)
    targets = targets_of(asked, values)
    judge = AttributeJudge(values).to(memory_format=torch.channels_last)

    def lost(rows: list[int]) -> dict:
        batch = pictures[rows].float() / 127.5 - 1
        padded = torch.nn.functional.pad(batch, (2, 2, 2, 2), mode="replicate")
        top, left = torch.randint(5, (2,)).tolist()
        batch = padded[..., top : top + 64, left : left + 64] + 0.05 * torch.rand(()) * torch.randn_like(batch)
        half = batch_size // 2
        batch = torch.cat([batch[:half, torch.randperm(3)], batch[half:]])
        wanted = {name: target[rows] for name, target in targets.items()}
        for name in wanted.keys() & set(COLOURS):
            wanted[name][:half] = -1
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
            outputs = judge(batch.contiguous(memory_format=torch.channels_last))
        return {"loss": loss(outputs, wanted)}

    fit(judge, lost, len(pictures), images // batch_size, learning_rate, batch_size, rising=0.15)
    return judge


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of `brickwork data build avatars`")
    parser.add_argument("--output", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--images", type=int, default=250000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--bf16", action="store_true", help="on processors with bf16 units")
    args = parser.parse_args(arguments)
    judge = train(args.data, args.images, args.batch_size, args.learning_rate, args.bf16)
    save_judge(judge, args.output)
    for split in ("seed", "combination"):
        pictures, asked = read(args.data / SPLITS[split])
        shares = accuracy(judge.name(pictures), asked)
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        print(f"{split}: mean {sum(shares.values()) / len(shares):.1%}; {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
