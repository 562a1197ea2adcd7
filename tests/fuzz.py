"""Damaged files of every kind that a user may hand in: each is read, or refused by a `ValueError`; nothing else.

    python tests/fuzz.py --inputs 20000 [--kind adapter …] [--seed 0]

prints for each kind how many inputs were read and refused, the slowest, and whatever else was raised. The suite runs a
few hundred of each (`tests/test_fuzz.py`).
"""

import argparse
import csv
import io
import json
import random
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from writing_commands import dit_tensors, lego_pickle

SLOWEST = 10.0  # seconds of processor time that one damaged file of a few kilobytes may take


@dataclass
class Kind:
    """One kind of file.

    Attributes:
        seeds: whole files, by suffix.
        read: reads one, whole or damaged.
        text: whether damage is done to words as well as to bytes.
    """

    seeds: Callable[[], list[tuple[str, bytes]]]
    read: Callable[[Path], object]
    text: bool = False


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    surprises: Counter = field(default_factory=Counter)

    def line(self, name: str) -> str:
        return (
            f"{name}: {self.read} read, {self.refused} refused, {sum(self.surprises.values())} surprises; "
            f"slowest {self.slowest:.2f} s"
        )


def damaged(content: bytes, chance: random.Random, text: bool) -> bytes:
    """A copy with one to four kinds of damage: bits, pieces cut, doubled or foreign, extreme numbers, words."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        if not data:
            return b""
        kind, place = chance.randrange(8 if text else 6), chance.randrange(len(data))
        length = chance.choice((1, 2, 4, 8, 64, len(data)))
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + min(length, 4096)]
        elif kind == 3:
            data[place : place + 4] = chance.choice((b"\xff\xff\xff\x7f", b"\xff" * 4, b"\0" * 4, b"\x80\0\0\0"))
        elif kind == 4:
            data[place:place] = chance.randbytes(min(length, 64))
        elif kind == 5:
            del data[place:]
        else:
            word = chance.choice(
                (b"null", b"NaN", b"1e999", b"-1", b"[]", b"{}", b'"x"', b"[" * 5000, b"true", b"99999999999999999999")
            )
            data[place : place + (0 if kind == 6 else length)] = word
    return bytes(data)


def picture_bytes(form: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    Image.fromarray(noise, "RGBA").convert(mode).save(file, format=form)
    return file.getvalue()


def pictures() -> list[tuple[str, bytes]]:
    forms = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP", "ppm": "PPM"}
    found = [(f".{suffix}", picture_bytes(form)) for suffix, form in forms.items()]
    deep = io.BytesIO()
    Image.fromarray(np.full((6, 5), 4000, np.uint16)).save(deep, format="PNG")
    return [
        *found,
        (".png", picture_bytes("PNG", "LA")),
        (".png", picture_bytes("PNG", "P")),
        (".png", deep.getvalue()),
    ]


def parquet() -> list[tuple[str, bytes]]:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {
        "image": [{"bytes": picture_bytes("PNG"), "path": None}] * 3,
        "text": ["x", None, "z"],
        "label": [0, 1, -1],
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
        return [(".parquet", file.read_bytes())]


def shards() -> list[tuple[str, bytes]]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in {
            "a.png": picture_bytes("PNG"), "a.json": b'{"text": "x", "label": 1}', "b.jpg": picture_bytes("JPEG"),
            "b.txt": b"y", "b.cls": b"0",
        }.items():  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return [(".tar", file.getvalue())]


def metadata() -> list[tuple[str, bytes]]:
    lines = [{"file_name": f"{n}.png", "text": f"picture {n}", "label": n} for n in range(3)]
    table = io.StringIO()
    writer = csv.DictWriter(table, ["file_name", "text", "label"])
    writer.writeheader()
    writer.writerows(lines)
    return [(".jsonl", "\n".join(map(json.dumps, lines)).encode()), (".csv", table.getvalue().encode())]


def read_pictures(path: Path) -> None:
    from brickwork.eval.sets import open_pictures

    pictures = open_pictures(path if path.suffix in (".parquet", ".tar") else path.parent)
    if not list(pictures):
        raise ValueError(f"none can be read: {pictures.skipped}")


def read_metadata(path: Path) -> None:
    (path.parent / "0.png").write_bytes(picture_bytes("PNG"))
    path.rename(path.with_name(f"metadata{path.suffix}"))
    read_pictures(path)


def adapters() -> list[tuple[str, bytes]]:
    name = "lora_unet_down_blocks_0_downsamplers_0_conv"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 4, 3, 3), f"{name}.lora_up.weight": torch.ones(4, 2, 1, 1),
        f"{name}.alpha": torch.tensor(2.0), "lora_unet_down_blocks_0_resnets_0_norm1.w_norm": torch.ones(4),
        "lora_unet_down_blocks_0_resnets_0_norm1.b_norm": torch.ones(4),
    }  # fmt: skip
    return [(".safetensors", save(tensors, {"ss_network_dim": "2", "brickwork.adapter": "resadapter"}))]


def read_adapter(path: Path) -> None:
    from brickwork.adapters.comfyui.reading import read_adapter

    read_adapter(path)


def checkpoints() -> list[tuple[str, bytes]]:
    file = io.BytesIO()
    torch.save({"pos_embed": torch.ones(1, 4, 8), "blocks.0.attn.qkv.weight": torch.ones(24, 8)}, file)
    return [(".pt", file.getvalue()), (".pkl", file.getvalue())]


def read_checkpoint(path: Path) -> None:
    from brickwork.gen.original.files import load_original_file

    load_original_file(path)


def lego_snapshots() -> list[tuple[str, bytes]]:
    return [(".pkl", lego_pickle())]


def read_lego_snapshot(path: Path) -> None:
    from brickwork.gen.original.lego_checkpoints import load_original_lego

    load_original_lego(path)


def dit_checkpoints() -> list[tuple[str, bytes]]:
    file = io.BytesIO()
    torch.save(dit_tensors(), file)
    return [(".pt", file.getvalue()), (".safetensors", save(dit_tensors()))]


def read_dit_checkpoint(path: Path) -> None:
    from brickwork.gen.original.dit_checkpoints import load_original_dit

    load_original_dit(path, attention_head_dim=4)


def results() -> list[tuple[str, bytes]]:
    score = {"mean": 1.5, "spread": 0.1, "spread_over": "100 subsets", "values": [1.5], "settings": {"subsets": 100}}
    result = {
        "format": "brickwork-evaluation/1", "name": "a run", "tags": {"images": 43000.0, "kind": "lego"},
        "protocol": {"name": "clean", "description": "bicubic"}, "preparation": {"resolution": 16},
        "extractor": {"name": "small", "weights_sha256": "ab" * 32}, "count": 6, "seeds": [0, None],
        "reference": {"identity": "cd" * 8, "count": 6, "source": "pictures"},
        "sets": [{"data_sha256": "ef" * 32, "converted": {"grey": 1}}], "metrics": {"KD-small": score, "FD": score},
        "versions": {"torch": "2"}, "memorisation": {"copies": 0.1, "distance_ratio": 1.2},
        "pictures": {"grid": "result.grid.png"},
    }  # fmt: skip
    return [(".json", json.dumps(result).encode()), (".json", json.dumps(result, indent=1).encode())]


def read_result(path: Path) -> None:
    from brickwork.eval.commands.report import make_report

    (path.parent / "result.grid.png").write_bytes(picture_bytes("PNG"))
    make_report([path]).html()


def configurations() -> list[tuple[str, bytes]]:
    text = "run:\n  total_images: 100\n  output_dir: x\ndata:\n  source: y\n  size: 32\nmodel:\n  preset: dit-s-2\n"
    return [(".yaml", text.encode()), (".yaml", (text + "objectives:\n  - {type: output, weight: 0.5}\n").encode())]


def read_configuration(path: Path) -> None:
    from brickwork.training.config.config import load_config

    load_config(path)


KINDS = {
    "picture": Kind(pictures, read_pictures),
    "parquet": Kind(parquet, read_pictures),
    "shard": Kind(shards, read_pictures),
    "metadata": Kind(metadata, read_metadata, text=True),
    "adapter": Kind(adapters, read_adapter, text=True),
    "checkpoint": Kind(checkpoints, read_checkpoint),
    "lego snapshot": Kind(lego_snapshots, read_lego_snapshot),
    "dit checkpoint": Kind(dit_checkpoints, read_dit_checkpoint),
    "result": Kind(results, read_result, text=True),
    "configuration": Kind(configurations, read_configuration, text=True),
}


def fuzz(kind: Kind, inputs: int, folder: Path, seed: int = 0) -> Tally:
    """Read so many damaged files, each in a folder of its own."""
    import datasets

    datasets.utils.logging.set_verbosity(100)  # it says of each damaged file what its error says again
    tally, seeds = Tally(), kind.seeds()
    for number in range(inputs):
        chance = random.Random(f"{seed} {number}")
        suffix, content = seeds[number % len(seeds)]
        place = folder / str(number)
        place.mkdir(parents=True)
        path = place / f"input{suffix}"
        path.write_bytes(damaged(content, chance, kind.text) if number >= len(seeds) else content)
        began = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(path)
            tally.read += 1
        except ValueError:
            tally.refused += 1
        except Exception as error:  # that is what is looked for
            tally.surprises[f"input {number} of seed {seed}: {type(error).__name__}: {str(error)[:100]}"] += 1
        if number >= len(seeds):  # whole files come first, and with them what is imported once
            tally.slowest = max(tally.slowest, time.process_time() - began)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="damaged files of all kinds together")
    parser.add_argument("--kind", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failed = False
    for name in args.kind:
        with tempfile.TemporaryDirectory() as folder:
            tally = fuzz(KINDS[name], args.inputs // len(args.kind), Path(folder), args.seed)
        print(tally.line(name), flush=True)
        for surprise, count in tally.surprises.most_common(5):
            print(f"  {count} × {surprise}")
        failed |= bool(tally.surprises) or tally.slowest > SLOWEST
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
