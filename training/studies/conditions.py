"""Adapters that show a trained denoiser a picture or a layout, beside rivals of equal size on the same frozen base.

    python -m brickwork.training.studies.conditions reference avatars-sd-64 data/pairs --encoder runs/vit -o runs/refs
    python -m brickwork.training.studies.conditions layout runs/scenes/general/pipeline data/scenes-square -o runs/lay

See `brickwork.training.studies.side_by_side` for what all share.

- **reference**: the same avatar in two styles (`brickwork data build avatars --pairs`): one picture is shown, the
  other is to be drawn, and the caption says its style alone. `DinoAdapter` against plain 1×1 convolutions in place of
  its projection, and against tokens in cross-attentions of their own, as IP-Adapter (arXiv 2308.06721) has them; all
  read the same frozen encoder. **Attributes**: the share of those that both pictures of a pair show alike and that the
  judge (`avatar-attributes`) finds in what is drawn; **style**: whether it is the one that was asked for.
- **layout**: scenes of one to five avatars, by caption, boxes and what is in each. `LayoutAdapter` with all key
  points, with centres or corners alone, and with GLIGEN's embedding of boxes. **IoU**: of every box that was asked
  for with the object that stands there, each object taken once; **right number**: pictures with as many objects as
  boxes; **in the right box**: the share of what a box's phrase says that the judge finds in what is drawn within
  that box.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment
from torch import nn

from brickwork.adapters.dino.adapter import DinoAdapter
from brickwork.adapters.layout.adapter import LayoutAdapter
from brickwork.adapters.modules import ModuleAdapter, ModuleHook, for_batch
from brickwork.eval.judge.crops import name_boxes
from brickwork.eval.judge.region_head import box_overlaps
from brickwork.eval.metrics.attributes import asked_in
from brickwork.eval.sets.decode import open_upright
from brickwork.eval.sets.reader import undecoded
from brickwork.training.commands.train import run_script
from brickwork.training.data.images import crop_to, load_table
from brickwork.training.studies.scenes_proof import Scenes, judge, outlined
from brickwork.training.studies.side_by_side import SHOWN, SideBySide, add_arguments

WIDTHS = range(8, 1025, 8)  # that a rival may have, to be of equal size


def of_equal_size(count: Callable[[int], int], wanted: int) -> int:
    """The width at which a rival's parameters are nearest to a number; `count` makes them, of no memory."""
    with torch.device("meta"):
        return min(WIDTHS, key=lambda width: abs(count(width) - wanted))


def own(parts: nn.Module, frozen: Sequence[str] = ()) -> int:
    """Parameters that learn."""
    return sum(weight.numel() for name, weight in parts.named_parameters() if name.partition(".")[0] not in frozen)


class PlainProjection(nn.Module):
    """In place of the fidelity-aware projection: two 1×1 convolutions for each scale."""

    def __init__(self, in_channels: int, width: int, channels: Sequence[int]):
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU(), nn.Conv2d(width, count, 1))
            for count in channels
        )

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [project(feature) for project, feature in zip(self.scales, features, strict=True)]


class Tokens(nn.Module):
    """An encoder's patches as tokens, with keys and values of their own for each cross-attention.

    Args:
        encoder: frozen.
        width: of a token.
        inner: channels of each cross-attention's keys, by its name.
    """

    def __init__(self, encoder: nn.Module, width: int, inner: Mapping[str, int]):
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(nn.Linear(encoder.config.hidden_size, width), nn.LayerNorm(width))
        self.keys, self.values = (
            nn.ModuleDict({name.replace(".", "/"): nn.Linear(width, out, bias=False) for name, out in inner.items()})
            for _ in range(2)
        )
        for layer in self.values.values():
            nn.init.zeros_(layer.weight)


class TokenAdapter(DinoAdapter):
    """What `DinoAdapter` reads, as tokens of decoupled cross-attentions beside those to the text (IP-Adapter)."""

    kind = "tokens"

    @classmethod
    def build(cls, network: nn.Module, width: int = 128, **config) -> tuple[nn.Module, dict]:
        parts, config = super().build(network, **config)
        inner = {name: module.to_k.out_features for name, module in _cross_attentions(network).items()}
        return Tokens(parts.encoder, width, inner), config | {"width": width}

    def hooks(self) -> list[tuple[nn.Module, str, Any]]:
        found = _cross_attentions(self.network)
        return [(module, "post", AtAttention(self, name.replace(".", "/"))) for name, module in found.items()]


class AtAttention(ModuleHook):
    """Behind a cross-attention: what its queries find among the tokens, through its own last layer, is added."""

    def __init__(self, adapter: TokenAdapter, name: str):
        super().__init__(adapter)
        self.name = name

    def act(self, strength: float, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        features, parts = self.adapter.present(), self.adapter.parts
        if features is None:
            return None
        hidden_states = args[0] if args else kwargs["hidden_states"]
        patches = for_batch("reference_image", features[-1], len(hidden_states)).flatten(2).transpose(1, 2)
        tokens = parts.project(patches)
        queries, keys, values = (
            part.unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for part in (module.to_q(hidden_states), parts.keys[self.name](tokens), parts.values[self.name](tokens))
        )
        found = nn.functional.scaled_dot_product_attention(queries, keys.to(queries), values.to(queries))
        found = found.transpose(1, 2).flatten(2)
        return output + strength * nn.functional.linear(found, module.to_out[0].weight.to(found)).to(output)


def _cross_attentions(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if name.endswith(".attn2")}


class References(SideBySide):
    """The study of pictures as conditions; see `SideBySide`."""

    name, title = "references", "A picture as a condition, by adapters of equal size"
    measures: ClassVar = {"losses": "held-out paired loss", "attributes": "attributes", "style": "style"}
    asked = ("data", "encoder", "layers", "itself")

    @cached_property
    def ways(self) -> dict[str, Callable[[Any], ModuleAdapter]]:
        network = self.pipeline().unet
        how = {"encoder": self.args.encoder, "layers": self.args.layers}
        ours, _ = DinoAdapter.build(network, **how)
        channels, widths = ours.encoder.config.hidden_size, [one.out_channels for one in ours.outputs]
        wanted = own(ours, ("encoder",))
        plain = of_equal_size(lambda width: own(PlainProjection(channels, width, widths)), own(ours.projection))
        inner = {name: module.to_k.out_features for name, module in _cross_attentions(network).items()}
        token = of_equal_size(lambda width: own(Tokens(ours.encoder, width, inner), ("encoder",)), wanted)

        def plainly(pipeline: Any) -> ModuleAdapter:
            adapter = DinoAdapter.create(pipeline, **how)
            adapter.parts.projection = PlainProjection(channels, plain, widths)
            return adapter

        return {
            "DinoAdapter": partial(DinoAdapter.create, **how),
            "1×1 convolutions": plainly,
            "IP-Adapter's tokens": partial(TokenAdapter.create, width=token, **how),
        }

    def read(self, split: str, count: int) -> dict[str, Any]:
        """Pairs: with `references` uint8 `(N, H, W, 3)`, and `asked`, what both pictures of each show."""
        table = load_table(str(Path(self.args.data) / f"{split}.parquet"))
        styles = table.features["label"].names
        table = undecoded(undecoded(table, "image"), "reference").select(range(min(count, len(table))))
        pictures, references = (
            np.stack([crop_to(open_upright(row[column]), *(self.args.size,) * 2) for row in table])
            for column in ("image", "image" if self.args.itself else "reference")
        )
        named = [styles[row["label"]] for row in table]
        return {
            "pictures": pictures,
            "references": references,
            "captions": [f"a {style.replace('-', ' ')} person" for style in named],
            "asked": [json.loads(row["shared"]) for row in table],
            "styles": named,
        }

    def given(self, data: Mapping[str, Any], rows: Any) -> dict[str, Any]:
        return {"reference_image": torch.from_numpy(data["references"][rows]).permute(0, 3, 1, 2).float() / 255}

    def measure(self, pictures: np.ndarray, data: Mapping[str, Any]) -> dict[str, list[float]]:
        named = judge().name(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        return {
            "attributes": [share_named(found, asked) for found, asked in zip(named, data["asked"], strict=True)],
            "style": [float(found["style"] == style) for found, style in zip(named, data["styles"], strict=True)],
            "by_attribute": by_attribute(named, data["asked"]),
        }

    def shown(self, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {"shown": data["references"][:SHOWN], "to be drawn": data["pictures"][:SHOWN]}


def share_named(found: Mapping[str, str], asked: Mapping[str, str]) -> float | None:
    """The share of what was asked for that was found; `None` where nothing was that the judge knows."""
    hits = [found[name] == value for name, value in asked.items() if name in found]
    return sum(hits) / len(hits) if hits else None


def by_attribute(named: Sequence[Mapping], asked: Sequence[Mapping]) -> dict[str, float]:
    """The share of pictures with each attribute as asked."""
    names = sorted({name for one in asked for name in one if name in named[0]})
    shares = {}
    for name in names:
        hits = [found[name] == one[name] for found, one in zip(named, asked) if name in one]
        shares[name] = sum(hits) / len(hits)
    return shares


class Layouts(SideBySide):
    """The study of layouts; see `SideBySide`."""

    name, title = "layouts", "Boxes with phrases, by adapters of equal size"
    measures: ClassVar = {
        "losses": "held-out paired loss",
        "iou": "IoU",
        "number": "right number",
        "inside": "in the right box",
    }
    asked = ("data",)

    @cached_property
    def ways(self) -> dict[str, Callable[[Any], ModuleAdapter]]:
        network = self.pipeline().unet
        wanted = own(LayoutAdapter.build(network)[0])
        kinds = {
            "centres and corners": {},
            "centres alone": {"key_points": ["center"]},
            "corners alone": {"key_points": ["top_left", "bottom_right"]},
            "GLIGEN's embedding": {"encoding": "fourier"},
        }

        def sized(settings: Mapping[str, Any]) -> Callable[[Any], ModuleAdapter]:
            dim = of_equal_size(lambda dim: own(LayoutAdapter.build(network, dim=dim, **settings)[0]), wanted)
            return partial(LayoutAdapter.create, dim=dim, **settings)

        return {way: sized(settings) for way, settings in kinds.items()}

    def read(self, split: str, count: int) -> dict[str, Any]:
        """Scenes, with `boxes`, what is in each (`told`), and that as vectors."""
        scenes, size = Scenes(self.args.data, split), (self.args.size,) * 2
        rows = scenes.rows(size, count)
        boxes = [json.loads(scenes.table[row]["boxes"]) for row in rows]
        corners, told = [[one["box"] for one in row] for row in boxes], [[one["text"] for one in row] for row in boxes]
        adapter = LayoutAdapter.create(self.pipeline(), dim=8)
        layout = adapter.prepare(boxes=corners, phrases=told)
        adapter.unload()
        vectors = [list(row[:length]) for row, length in zip(layout.phrases, map(len, told))]
        known = {"boxes": corners, "told": told, "phrases": vectors}
        return {"pictures": scenes.pictures(rows, size), "captions": scenes.captions(rows), **known}

    def given(self, data: Mapping[str, Any], rows: Any) -> dict[str, Any]:
        chosen = range(len(data["boxes"]))[rows] if isinstance(rows, slice) else rows.tolist()
        return {name: [data[name][row] for row in chosen] for name in ("boxes", "phrases")}

    def measure(self, pictures: np.ndarray, data: Mapping[str, Any]) -> dict[str, list[float]]:
        found = [outlined(picture) for picture in pictures]
        side = pictures.shape[1]
        return {
            "iou": [overlap(parts, asked, side) for parts, asked in zip(found, data["boxes"], strict=True)],
            "number": [float(len(parts) == len(asked)) for parts, asked in zip(found, data["boxes"], strict=True)],
            "inside": [inside(*row) for row in zip(pictures, data["boxes"], data["told"], strict=True)],
        }

    def shown(self, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {"scene, boxes": np.stack([framed(*row) for row in zip(data["pictures"][:SHOWN], data["boxes"])])}


def overlap(parts: Sequence[tuple[slice, slice]], asked: Sequence[Sequence[float]], side: int) -> float:
    """The mean overlap of boxes from 0 to 1 that were asked for, each with an object of its own, 0 without one."""
    if not parts:
        return 0.0
    found = torch.tensor([[part[1].start, part[0].start, part[1].stop, part[0].stop] for part in parts]) / side
    overlaps = box_overlaps(torch.tensor(asked), found).numpy()
    return float(overlaps[linear_sum_assignment(-overlaps)].sum() / len(asked))


def inside(picture: np.ndarray, boxes: Sequence[Sequence[float]], told: Sequence[str]) -> float | None:
    """The share of what phrases say of their boxes that the judge finds in these parts of a picture."""
    named = name_boxes(judge(), picture, np.asarray(boxes) * picture.shape[0])
    shares = [share_named(found, asked_in(text, judge().attributes)) for found, text in zip(named, told, strict=True)]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def framed(picture: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """A picture with its boxes drawn in."""
    image = Image.fromarray(picture)
    for box in boxes:
        left, top, right, bottom = (round(edge * picture.shape[0]) for edge in box)
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=(220, 30, 30))
    return np.asarray(image)


STUDIES = {"reference": References, "layout": Layouts}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", choices=STUDIES, help="what the adapters are shown")
    parser.add_argument("base", help="weights that ship, or the folder of a Stable Diffusion pipeline")
    parser.add_argument("data", help="folder of `brickwork data build avatars`, with --pairs or --scenes --aspects 1")
    parser.add_argument("--encoder", help="of references, a vision transformer as `DinoAdapter` takes it")
    parser.add_argument("--layers", type=int, nargs="+", help="of the encoder (default: four at equal distances)")
    parser.add_argument("--itself", action="store_true", help="show each picture itself in place of its pair")
    add_arguments(parser, samples=96)
    parser.set_defaults(run=lambda args: STUDIES[args.study](args).run())


main = partial(run_script, "conditions", __doc__, configure_parser)

if __name__ == "__main__":
    sys.exit(main())
