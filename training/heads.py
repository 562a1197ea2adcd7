"""Short trainings of heads on the features of a frozen denoiser: the region head and the label head."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from brickwork.errors import no_unknown
from brickwork.eval.extractors.attributes import load_judge
from brickwork.eval.judge.denoiser_features import DenoiserFeatures, joined
from brickwork.eval.judge.flat_ground import cut_out, differs_from_ground
from brickwork.eval.judge.label_head import LabelHead, mean_overlap
from brickwork.eval.judge.region_detector import RegionDetector
from brickwork.eval.judge.region_head import RegionHead, box_overlaps, matched, proposals, region_losses
from brickwork.eval.judge.scenes import ERRORS, make_scene, plant
from brickwork.eval.judge.teachers import AttributeTeacher, Teacher, embed_regions, load_teacher, to_square
from brickwork.eval.sampling.pipelines import load_pipeline
from brickwork.files import new_folder

BATCH, ENCODED_AT_ONCE, REGIONS = 16, 32, 32
LEVELS = (0.05, 0.2, 0.5, 1.0, 2.0)  # noise levels that masks are told at, standard deviations


@dataclass(frozen=True)
class Boxed:
    """A picture uint8 `(3, S, S)` with the boxes of its objects `(M, 4)` from 0 to 1 and their names."""

    picture: torch.Tensor
    boxes: torch.Tensor
    names: tuple[str, ...]

    def mask(self, names: Sequence[str]) -> torch.Tensor:
        """The class of every pixel `(S, S)`: 1 + its number among `names` within a box and off the ground, else 0."""
        side = self.picture.shape[-1]
        classes = torch.zeros(side, side, dtype=torch.long)
        object_pixels = torch.from_numpy(differs_from_ground(self.picture.permute(1, 2, 0).numpy()))
        for (left, top, right, bottom), name in zip((self.boxes * side).round().int().tolist(), self.names):
            part = slice(top, bottom), slice(left, right)
            classes[part] = torch.where(object_pixels[part], names.index(name) + 1, classes[part])
        return classes


def read_scenes(source: str, side: int, count: int, held_out: bool = False) -> list[Boxed]:
    """Scenes with boxes, brought to squares: `shapes`, or a folder of `brickwork data build avatars --scenes`.

    Args:
        source: see above.
        side: in pixels.
        count: at most so many; of `shapes`, just so many.
        held_out: of other seeds than the others.

    Raises:
        ValueError: for a data set without boxes.
    """
    if source == "shapes":
        random = np.random.default_rng([count, held_out])
        kinds = [None, *ERRORS]
        scenes = [make_scene(random) for _ in range(count)]
        shown = [plant(s, kinds[i % 5], random) if kinds[i % 5] else s for i, s in enumerate(scenes)]
        return [
            Boxed(
                to_square(s.draw(side), side), torch.tensor([x.box for x in s.shapes]), tuple(x.name for x in s.shapes)
            )
            for s in shown
        ]
    from brickwork.eval.sets.reader import open_pictures
    from brickwork.training.data.build.avatar_files import SPLITS

    pictures = open_pictures(Path(source) / SPLITS["seed" if held_out else "train"])
    if "boxes" not in pictures.table.column_names:
        raise ValueError(
            f"`data` is {source!r}, which has no boxes; build it with `brickwork data build avatars --scenes`."
        )
    found = []
    for row in range(min(count, len(pictures))):
        boxes = json.loads(pictures.table[row]["boxes"])
        corners = torch.tensor([one["box"] for one in boxes], dtype=torch.float32)
        found.append(Boxed(to_square(pictures[row].image, side), corners, tuple(one["label"] for one in boxes)))
    return found


def _parts(scenes: Sequence[Boxed]) -> Iterator[torch.Tensor]:
    for start in range(0, len(scenes), ENCODED_AT_ONCE):
        yield torch.stack([scene.picture for scene in scenes[start : start + ENCODED_AT_ONCE]])


def fit(
    model: nn.Module, loss: Callable[[list[int]], dict], rows: int, steps: int, learning_rate: float,
    batch: int = BATCH, rising: float = 0.3, generator: torch.Generator | None = None,
) -> None:  # fmt: skip
    """AdamW with one cycle of the learning rate; what is lost is printed.

    Args:
        model: trained in place.
        loss: numbers of rows => losses by name, to be summed.
        rows: to draw from.
        steps: of the optimiser.
        learning_rate: its peak.
        batch: rows a step.
        rising: share of the steps in which the rate rises.
        generator: of the rows; `None` for torch's own.
    """
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=rising)
    for step in range(steps):
        losses = loss(torch.randint(rows, (batch,), generator=generator).tolist())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step}: " + ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items()),
                flush=True,
            )
    model.eval()


def train_region_head(
    scenes: Sequence[Boxed], features: DenoiserFeatures, teacher: Teacher, left_out: Sequence[str], steps: int,
    learning_rate: float = 2e-3, pipeline: str | None = None,
) -> RegionHead:  # fmt: skip
    """A region head after so many steps; objects of the classes in `left_out` are background to its text branch.

    They are seen by the image branch, as ViLD's proposals of all kinds are.
    """
    torch.manual_seed(0)
    names = sorted({name for scene in scenes for name in scene.names})
    no_unknown("leave_out", left_out, names, "the data")
    known = [name for name in names if name not in left_out]
    embeddings = teacher.texts(known)
    head = RegionHead(
        sum(features.channels), embeddings.shape[1], known, teacher=teacher.name, pipeline=pipeline,
        features=features.to_dict(),
    )  # fmt: skip
    head.name_embeddings.copy_(embeddings)
    maps = torch.cat([joined(features(part)).half() for part in _parts(scenes)])
    anchors, generator = proposals(), torch.Generator().manual_seed(0)
    directions = [embed_regions(teacher, scene.picture, scene.boxes) for scene in scenes]

    def loss(rows: list[int]) -> dict:
        regions, classes, boxes, wanted, taught = [], [], [], [], []
        for row in rows:
            scene = scenes[row]
            index = torch.arange(len(scene.boxes))
            region, which, box = matched(anchors, scene.boxes, index, generator, REGIONS)
            label = torch.tensor([known.index(n) if n in known else -1 for n in scene.names] + [-1])[which]
            regions, classes, boxes = [*regions, region], [*classes, label], [*boxes, box]
            wanted.append(which >= 0)
            taught.append(directions[row][which.clamp_min(0)])
        given = maps[rows].float(), torch.stack(regions), torch.stack(classes), torch.stack(boxes)
        return region_losses(head, *given, embeddings, torch.stack(taught), torch.stack(wanted))

    fit(head, loss, len(scenes), steps, learning_rate, generator=torch.Generator().manual_seed(0))
    return head


def region_scores(detector: RegionDetector, scenes: Sequence[Boxed], left_out: Sequence[str]) -> dict[str, float]:
    """Shares of objects found by their own name (score above 0.3, overlap of half), of classes trained on and new."""
    hits: dict[str, list[bool]] = {"trained": [], "new": []}
    for scene in scenes:
        names = sorted(set(scene.names))
        (found,) = detector([scene.picture.permute(1, 2, 0).numpy()], [names])
        side = scene.picture.shape[-1]
        for box, name in zip(scene.boxes, scene.names):
            boxes = torch.tensor([one.box for one in found[name] if one.score > 0.3]).view(-1, 4) / side
            hits["new" if name in left_out else "trained"].append(bool((box_overlaps(box[None], boxes) >= 0.5).any()))
    return {kind: sum(one) / len(one) for kind, one in hits.items() if one}


def agreement(detector: RegionDetector, scenes: Sequence[Boxed]) -> dict[str, float]:
    """What the head and the judge of attributes say of the same avatars, each asked for its style.

    Returns:
        `found`: share of objects over which the head has a box (overlap of half); and of these the shares that the
        `head` and the `judge` name as they are, and on whose name they `agree`.
    """
    judge, hits = load_judge(), []
    names = sorted(set(judge.attributes["style"]) & {name for scene in scenes for name in scene.names})
    for scene in scenes:
        picture, side = scene.picture.permute(1, 2, 0).numpy(), scene.picture.shape[-1]
        (found,) = detector([picture], [names])
        surest = [(one.score, name, torch.tensor(one.box)) for name in names for one in found[name]]
        for box, name in zip(scene.boxes, scene.names):
            over = [
                (score, said) for score, said, one in surest if box_overlaps(box[None], one[None] / side)[0, 0] >= 0.5
            ]
            left, top, right, bottom = (box * side).round().int().tolist()
            crop = cut_out(picture, (slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))))
            (named,) = judge.name(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None])
            said = max(over)[1] if over else None
            hits.append((bool(over), said == name, named["style"] == name, said == named["style"]))
    found = [one for one in hits if one[0]]
    shares = {"found": len(found) / len(hits)} if hits else {}
    if found:
        right = zip(*(one[1:] for one in found))
        shares |= {name: sum(one) / len(found) for name, one in zip(("head", "judge", "agree"), right)}
    return shares


def train_label_head(
    scenes: Sequence[Boxed], features: DenoiserFeatures, steps: int, learning_rate: float = 2e-3,
    pipeline: str | None = None,
) -> LabelHead:  # fmt: skip
    """A label head after so many steps, on scenes noised to all of `LEVELS`."""
    torch.manual_seed(0)
    names = sorted({name for scene in scenes for name in scene.names})
    head = LabelHead(features.channels, names, features.size, pipeline=pipeline, features=features.to_dict())
    masks = torch.stack([scene.mask(names) for scene in scenes])
    pictures = torch.stack([scene.picture for scene in scenes])
    generator = torch.Generator().manual_seed(1)

    def loss(rows: list[int]) -> dict:
        level = LEVELS[int(torch.randint(len(LEVELS), (), generator=generator))]
        return {"mask": nn.functional.cross_entropy(head(features(pictures[rows], level)), masks[rows])}

    fit(head, loss, len(scenes), steps, learning_rate, generator=torch.Generator().manual_seed(0))
    return head


@torch.no_grad()
def label_scores(head: LabelHead, features: DenoiserFeatures, scenes: Sequence[Boxed]) -> dict[float, float]:
    """Mean intersection over union by noise level."""
    names = list(head.config.names)
    wanted = torch.stack([scene.mask(names) for scene in scenes])
    found = {
        level: torch.cat([head(features(part, level)).argmax(dim=1) for part in _parts(scenes)]) for level in LEVELS
    }
    return {level: mean_overlap(classes, wanted, len(names)) for level, classes in found.items()}


@torch.no_grad()
def sample_score(head: LabelHead, features: DenoiserFeatures, count: int, steps: int = 10) -> float:
    """Mean intersection over union on samples of the head's own pipeline, each of a class that the head knows.

    What stands on a sample's ground is taken to be of its class.

    Raises:
        ValueError: for a pipeline of other classes.
    """
    names, known = list(head.config.names), features.network.config.id2label or {}
    labels = [int(number) for number, name in known.items() if name in names]
    if not labels:
        raise ValueError(f"`samples` is {count}, but the pipeline draws none of {', '.join(names)}; give 0.")
    wanted, found = [], []
    for start in range(0, count, ENCODED_AT_ONCE):
        drawn = [labels[number % len(labels)] for number in range(start, min(count, start + ENCODED_AT_ONCE))]
        pictures = features.pipeline(
            class_labels=drawn, num_inference_steps=steps, guidance_scale=2.0, output_type="np",
            generator=[torch.Generator().manual_seed(start + number) for number in range(len(drawn))],
        ).images  # fmt: skip
        pixels = torch.from_numpy((pictures * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
        told = {int(number): name for number, name in known.items()}
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        wanted += [Boxed(picture, whole, (told[label],)).mask(names) for picture, label in zip(pixels, drawn)]
        found.append(head(features(pixels)).argmax(dim=1))
    return mean_overlap(torch.cat(found), torch.stack(wanted), len(names))


def _arguments(description: str, arguments: list[str] | None, teacher: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="`shapes`, or a folder of `brickwork data build avatars --scenes`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the head")
    parser.add_argument("--model", default="lego-avatars-64", help="whose features (default: lego-avatars-64)")
    parser.add_argument("--sites", nargs="+", help="of the network (default: four at even distances)")
    parser.add_argument("--sigma", type=float, default=0.2, help="noise level of the features (default: 0.2)")
    parser.add_argument("--scenes", type=int, default=600, help="at most so many to learn from (default: 600)")
    parser.add_argument("--steps", type=int, default=600, help="of the optimiser (default: 600)")
    parser.add_argument("--held-out", type=int, default=100, help="scenes to measure by (default: 100)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier head in that folder")
    if not teacher:
        parser.add_argument("--samples", type=int, default=0, help="of the model to measure by, too (default: 0)")
    if teacher:
        parser.add_argument("--teacher", default="avatar-attributes", help="or shapes, or clip:<folder or hub id>")
        parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="classes not to train on")
    return parser.parse_args(arguments)


def _prepared(args: argparse.Namespace) -> tuple[DenoiserFeatures, list[Boxed], list[Boxed]]:
    features = DenoiserFeatures(load_pipeline(args.model), args.sites, args.sigma)
    return features, *(
        read_scenes(args.data, features.size, count, held_out)
        for count, held_out in ((args.scenes, False), (args.held_out, True))
    )


def region_main(description: str, arguments: list[str] | None = None) -> int:
    """What `train_region_head.py` does."""
    args = _arguments(description, arguments, teacher=True)
    features, scenes, held_out = _prepared(args)
    teacher = load_teacher(args.teacher)
    head = train_region_head(scenes, features, teacher, args.leave_out, args.steps, pipeline=args.model)
    _save(head, args, "train_region_head.py")
    detector = RegionDetector(head, features, teacher)
    scores = region_scores(detector, held_out, args.leave_out)
    print("objects found by name: " + ", ".join(f"{kind} {share:.1%}" for kind, share in scores.items()))
    if args.teacher == AttributeTeacher.name:
        both = agreement(detector, held_out)
        print("beside the attribute judge: " + ", ".join(f"{what} {share:.1%}" for what, share in both.items()))
    return 0


def label_main(description: str, arguments: list[str] | None = None) -> int:
    """What `train_label_head.py` does."""
    args = _arguments(description, arguments, teacher=False)
    features, scenes, held_out = _prepared(args)
    head = train_label_head(scenes, features, args.steps, pipeline=args.model)
    _save(head, args, "train_label_head.py")
    scores = label_scores(head, features, held_out)
    print("mean overlap by noise level: " + ", ".join(f"{level:g}: {share:.3f}" for level, share in scores.items()))
    if args.samples:
        print(f"mean overlap on {args.samples} samples: {sample_score(head, features, args.samples):.3f}")
    return 0


def _save(head: RegionHead | LabelHead, args: argparse.Namespace, maker: str) -> None:
    with new_folder(args.output, maker, overwrite=args.overwrite) as folder:
        head.save_pretrained(folder)
