"""Short trainings of heads on the features of a frozen denoiser: the region head and the label head."""

import argparse
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from brickwork.errors import no_unknown
from brickwork.eval.extractors.attributes import load_judge
from brickwork.eval.judge.avatar_scenes import NOTHING
from brickwork.eval.judge.crops import name_boxes
from brickwork.eval.judge.denoiser_features import DenoiserFeatures
from brickwork.eval.judge.flat_ground import differs_from_ground
from brickwork.eval.judge.label_head import LabelHead, mean_overlap, soft_overlap
from brickwork.eval.judge.overlays import overlay, surest
from brickwork.eval.judge.region_detector import RegionDetector
from brickwork.eval.judge.region_head import UNNAMED, RegionHead, box_overlaps, matched, proposals, region_losses
from brickwork.eval.judge.scenes import ERRORS, make_scene, plant
from brickwork.eval.judge.teachers import AttributeTeacher, Teacher, embed_regions, load_teacher, to_square
from brickwork.eval.report.numbers import number
from brickwork.eval.report.pictures import grid
from brickwork.eval.sampling.pipelines import load_pipeline
from brickwork.eval.studies.core.statistics import mean_and_spread
from brickwork.files import new_folder, write_file

BATCH, ENCODED_AT_ONCE, REGIONS = 16, 32, 32
COLUMNS, DRAWN = 4, 8  # of the picture that `--picture` draws
FITTED = 256  # pictures whose features say how large each channel is
LEVELS = (0.05, 0.2, 0.5, 1.0, 2.0)  # noise levels that masks are told at, standard deviations


@dataclass(frozen=True)
class Boxed:
    """A picture uint8 `(3, S, S)` with the boxes of its objects `(M, 4)` from 0 to 1 and their names, "" for none."""

    picture: torch.Tensor
    boxes: torch.Tensor
    names: tuple[str, ...]

    def named(self) -> list[tuple[torch.Tensor, str]]:
        """Boxes `(4,)` and names of the objects that have a name."""
        return [(box, name) for box, name in zip(self.boxes, self.names) if name]

    def mask(self, names: Sequence[str]) -> torch.Tensor:
        """The class of every pixel `(S, S)`: 1 + its number among `names` within a box and off the ground, else 0."""
        side = self.picture.shape[-1]
        classes = torch.zeros(side, side, dtype=torch.long)
        object_pixels = torch.from_numpy(differs_from_ground(self.picture.permute(1, 2, 0).numpy()))
        for (left, top, right, bottom), name in zip((self.boxes * side).round().int().tolist(), self.names):
            part = slice(top, bottom), slice(left, right)
            classes[part] = torch.where(object_pixels[part], names.index(name) + 1, classes[part])
        return classes


def read_scenes(source: str, side: int, count: int, held_out: bool = False, attribute: str = "label") -> list[Boxed]:
    """Pictures with boxes, brought to squares.

    Args:
        source: `shapes`, or a folder of `brickwork data build avatars`; an avatar without a box fills its picture.
        side: in pixels.
        count: at most so many; of `shapes`, just so many.
        held_out: of other seeds than the others.
        attribute: what names a box: its `label`, which is the style, or an attribute, such as `hair`, that some have.

    Raises:
        ValueError: for a data set without boxes or classes, and an attribute that no box has.
    """
    if source == "shapes":
        if attribute != "label":
            raise ValueError(f"`names` is {attribute!r}, and shapes have a label alone; leave it out.")
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
    if "boxes" not in pictures.table.column_names and None in pictures.labels:
        raise ValueError(
            f"`data` is {source!r}, which has no boxes; build it with `brickwork data build avatars --scenes`."
        )
    found = []
    for row in range(min(count, len(pictures))):
        boxes = [{**pictures.table[row], "box": [0.0, 0.0, 1.0, 1.0], "label": pictures[row].label}]
        if "boxes" in pictures.table.column_names:
            boxes = json.loads(pictures.table[row]["boxes"])
        corners = torch.tensor([one["box"] for one in boxes], dtype=torch.float32)
        names = tuple("" if one.get(attribute) in NOTHING else one[attribute] for one in boxes)
        found.append(Boxed(to_square(pictures[row].image, side), corners, names))
    if not names_in(found):
        raise ValueError(f"`names` is {attribute!r}, which no box of {source!r} has; give label, hair or clothes.")
    return found


def names_in(scenes: Sequence[Boxed]) -> list[str]:
    """Those that objects of scenes have, in the order of the alphabet."""
    return sorted({name for scene in scenes for name in scene.names if name})


@torch.no_grad()
def cached(features: DenoiserFeatures, scenes: Sequence[Boxed], levels: Sequence[float | None] = (None,)) -> list:
    """The maps of all scenes, in half precision, `(N, C, h, w)` for each site; scenes take turns at noise levels."""
    maps: list[torch.Tensor] = []
    for start in range(0, len(scenes), ENCODED_AT_ONCE):
        level = levels[start // ENCODED_AT_ONCE % len(levels)]
        part = features(torch.stack([one.picture for one in scenes[start : start + ENCODED_AT_ONCE]]), level)
        maps = maps or [torch.empty(len(scenes), *one.shape[1:], dtype=torch.half) for one in part]
        for whole, one in zip(maps, part):
            whole[start : start + len(one)] = one
    return maps


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


@dataclass(frozen=True)
class RegionTask:
    """What heads of all seeds learn from: computed once.

    Attributes:
        scenes: with their `maps` (see `cached`).
        teacher: embeds names.
        targets: of the image branch, `(M, D)` for each scene.
        alike: see `teacher_targets`.
    """

    scenes: Sequence[Boxed]
    maps: list[torch.Tensor]
    teacher: Teacher
    targets: Sequence[torch.Tensor]
    alike: float

    @classmethod
    def of(cls, scenes: Sequence[Boxed], features: DenoiserFeatures, teacher: Teacher) -> "RegionTask":
        """Maps of a denoiser, and the teacher's directions of all objects."""
        return cls(scenes, cached(features, scenes), teacher, *teacher_targets(teacher, scenes))


def teacher_targets(teacher: Teacher, scenes: Sequence[Boxed]) -> tuple[list[torch.Tensor], float]:
    """The teacher's directions of the objects of each scene without what all of them share, and how much that is.

    A head that learns directions with a large common part learns that part, and nothing of what tells objects apart.

    Returns:
        `(M, D)` for each scene; the mean cosine of all directions with their mean.
    """
    found = [embed_regions(teacher, scene.picture, scene.boxes) for scene in scenes]
    shared = torch.cat(found).mean(dim=0)
    alike = (torch.cat(found) @ nn.functional.normalize(shared, dim=0)).mean()
    return [nn.functional.normalize(one - shared, dim=1) for one in found], float(alike)


def train_region_head(
    task: RegionTask, features: DenoiserFeatures, left_out: Sequence[str], steps: int, learning_rate: float = 2e-3,
    pipeline: str | None = None, seed: int = 0,
) -> RegionHead:  # fmt: skip
    """A region head after so many steps; the text branch does not see objects of the classes in `left_out`.

    They are seen by the image branch and as boxes without a name, as ViLD's proposals of all kinds are.
    """
    torch.manual_seed(seed)
    scenes, teacher = task.scenes, task.teacher
    names = names_in(scenes)
    no_unknown("leave_out", left_out, names, "the data")
    known = [name for name in names if name not in left_out]
    embeddings = teacher.texts(known)
    head = RegionHead(
        features.channels, embeddings.shape[1], known, teacher=teacher.name, pipeline=pipeline,
        features=features.to_dict(),
    )  # fmt: skip
    head.name_embeddings.copy_(embeddings)
    head.standardized.fit([one[:FITTED] for one in task.maps])
    anchors, generator = proposals(), torch.Generator().manual_seed(seed)

    def loss(rows: list[int]) -> dict:
        regions, classes, boxes, wanted, taught = [], [], [], [], []
        for row in rows:
            scene = scenes[row]
            index = torch.arange(len(scene.boxes))
            region, which, box = matched(anchors, scene.boxes, index, generator, REGIONS)
            label = torch.tensor([known.index(n) if n in known else UNNAMED for n in scene.names] + [-1])[which]
            regions, classes, boxes = [*regions, region], [*classes, label], [*boxes, box]
            wanted.append(which >= 0)
            taught.append(task.targets[row][which.clamp_min(0)])
        given = [one[rows].float() for one in task.maps], *map(torch.stack, (regions, classes, boxes))
        return region_losses(head, *given, embeddings, torch.stack(taught), torch.stack(wanted))

    fit(head, loss, len(scenes), steps, learning_rate, generator=torch.Generator().manual_seed(seed))
    return head


def _shares(hits: Iterable[tuple[str, bool]], left_out: Sequence[str]) -> dict[str, float]:
    """The share of hits among objects by name, of classes `trained` on and `new`, where there are any."""
    kinds: dict[str, list[bool]] = {"trained": [], "new": []}
    for name, hit in hits:
        kinds["new" if name in left_out else "trained"].append(hit)
    return {kind: sum(one) / len(one) for kind, one in kinds.items() if one}


def teacher_scores(task: RegionTask, left_out: Sequence[str]) -> dict[str, float]:
    """Shares of objects whose name is the nearest to the teacher's own direction: what a head could learn at most."""
    names = names_in(task.scenes)
    hits = []
    for scene, directions in zip(task.scenes, task.targets):
        nearest = (directions @ task.teacher.texts(names).T).argmax(dim=1).tolist()
        hits += [(name, names[index] == name) for name, index in zip(scene.names, nearest) if name]
    return _shares(hits, left_out)


def region_scores(detector: RegionDetector, scenes: Sequence[Boxed], left_out: Sequence[str]) -> dict[str, float]:
    """Shares of objects found by their own name (score above 0.3, overlap of half), of classes trained on and new."""
    hits = []
    for scene in scenes:
        names = names_in([scene])
        (found,) = detector([scene.picture.permute(1, 2, 0).numpy()], [names])
        side = scene.picture.shape[-1]
        for box, name in scene.named():
            boxes = torch.tensor([one.box for one in found[name] if one.score > 0.3]).view(-1, 4) / side
            hits.append((name, bool((box_overlaps(box[None], boxes) >= 0.5).any())))
    return _shares(hits, left_out)


def named_scores(detector: RegionDetector, scenes: Sequence[Boxed], left_out: Sequence[str]) -> dict[str, float]:
    """Of objects in scenes that may show any name, asked for all of them at once, each box by its surest name.

    Returns:
        Shares of objects of classes `trained` on and `new` whose nearest box (overlap of half or more) has the right
        name; `precision`: share of the boxes (score above 0.3) that are so.
    """
    names = names_in(scenes)
    hits, count = [], 0
    for scene in scenes:
        (found,) = detector([scene.picture.permute(1, 2, 0).numpy()], [names])
        boxes = [(name, one.box) for name, objects in surest(found, 0.3).items() for one in objects]
        corners = torch.tensor([box for _, box in boxes]).view(-1, 4) / scene.picture.shape[-1]
        count += len(boxes)
        for box, name in scene.named():
            overlaps = box_overlaps(box[None], corners)[0]
            right = len(boxes) > 0 and overlaps.max() >= 0.5 and boxes[int(overlaps.argmax())][0] == name
            hits.append((name, bool(right)))
    return _shares(hits, left_out) | {"precision": sum(right for _, right in hits) / max(count, 1)}


def agreement(detector: RegionDetector, scenes: Sequence[Boxed]) -> dict[str, float]:
    """What the head and the judge of attributes say of the same avatars, each asked for its style.

    Returns:
        `found`: share of objects over which the head has a box (overlap of half); and of these the shares that the
        `head` and the `judge` name as they are, and on whose name they `agree`.
    """
    judge, hits = load_judge(), []
    names = sorted(set(judge.attributes["style"]).intersection(names_in(scenes)))
    for scene in scenes:
        picture, side = scene.picture.permute(1, 2, 0).numpy(), scene.picture.shape[-1]
        (found,) = detector([picture], [names])
        surest = [(one.score, name, torch.tensor(one.box)) for name in names for one in found[name]]
        named = name_boxes(judge, picture, (scene.boxes * side).tolist())
        for box, name, told in zip(scene.boxes, scene.names, named):
            over = [
                (score, said) for score, said, one in surest if box_overlaps(box[None], one[None] / side)[0, 0] >= 0.5
            ]
            said = max(over)[1] if over else None
            hits.append((bool(over), said == name, told["style"] == name, said == told["style"]))
    found = [one for one in hits if one[0]]
    shares = {"found": len(found) / len(hits)} if hits else {}
    if found:
        right = zip(*(one[1:] for one in found))
        shares |= {name: sum(one) / len(found) for name, one in zip(("head", "judge", "agree"), right)}
    return shares


def train_label_head(
    scenes: Sequence[Boxed], features: DenoiserFeatures, maps: list[torch.Tensor], steps: int,
    learning_rate: float = 2e-3, pipeline: str | None = None, seed: int = 0,
) -> LabelHead:  # fmt: skip
    """A label head after so many steps, on the maps of scenes (`cached`, noised to all of `LEVELS`)."""
    torch.manual_seed(seed)
    names = names_in(scenes)
    head = LabelHead(features.channels, names, features.size, pipeline=pipeline, features=features.to_dict())
    head.standardized.fit([one[:FITTED] for one in maps])
    masks = torch.stack([scene.mask(names) for scene in scenes])

    def loss(rows: list[int]) -> dict:
        logits = head([one[rows].float() for one in maps])
        return {"mask": nn.functional.cross_entropy(logits, masks[rows]), "overlap": soft_overlap(logits, masks[rows])}

    fit(head, loss, len(scenes), steps, learning_rate, generator=torch.Generator().manual_seed(seed))
    return head


@torch.no_grad()
def label_scores(head: LabelHead, maps: Mapping[float, list[torch.Tensor]], scenes: Sequence[Boxed]) -> dict:
    """Mean intersection over union by noise level, of scenes whose maps at each level are given."""
    names = list(head.config.names)
    wanted = torch.stack([scene.mask(names) for scene in scenes])
    found = {}
    for level, whole in maps.items():
        parts = zip(*(one.split(ENCODED_AT_ONCE) for one in whole))
        found[level] = torch.cat([head([one.float() for one in part]).argmax(dim=1) for part in parts])
    return {level: mean_overlap(classes, wanted, len(names)) for level, classes in found.items()}


def draw_samples(
    features: DenoiserFeatures, names: Collection[str], count: int, steps: int = 10
) -> tuple[list[np.ndarray], list[str]]:
    """Pictures of the features' own pipeline, each of one of these classes, and which.

    Raises:
        ValueError: for a pipeline of other classes.
    """
    known = {int(number): name for number, name in (features.network.config.id2label or {}).items() if name in names}
    if not known:
        raise ValueError(f"`samples` is {count}, but the pipeline draws none of {', '.join(sorted(names))}; give 0.")
    pictures, told = [], [list(known)[number % len(known)] for number in range(count)]
    for start in range(0, count, ENCODED_AT_ONCE):
        labels = told[start : start + ENCODED_AT_ONCE]
        images = features.pipeline(
            class_labels=labels, num_inference_steps=steps, guidance_scale=2.0, output_type="np",
            generator=[torch.Generator().manual_seed(start + number) for number in range(len(labels))],
        ).images  # fmt: skip
        pictures += list((images * 255).round().astype(np.uint8))
    return pictures, [known[label] for label in told]


@torch.no_grad()
def sample_score(
    head: LabelHead, features: DenoiserFeatures, pictures: Sequence[np.ndarray], classes: Sequence[str]
) -> float:
    """Mean intersection over union on samples; what stands on a sample's ground is taken to be of its class."""
    names, wanted, found = list(head.config.names), [], []
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        part = slice(start, start + ENCODED_AT_ONCE)
        pixels = torch.stack([to_square(picture, features.size) for picture in pictures[part]])
        wanted += [Boxed(picture, whole, (told,)).mask(names) for picture, told in zip(pixels, classes[part])]
        found.append(head(features(pixels)).argmax(dim=1))
    return mean_overlap(torch.cat(found), torch.stack(wanted), len(names))


def _arguments(description: str, arguments: list[str] | None, teacher: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="`shapes`, or folders of `brickwork data build avatars`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the head")
    parser.add_argument("--model", default="lego-avatars-64", help="whose features (default: lego-avatars-64)")
    parser.add_argument("--sites", nargs="+", help="of the network (default: four at even distances)")
    parser.add_argument("--size", type=int, help="side of pictures in pixels (default: that of the model)")
    parser.add_argument("--sigma", type=float, default=0.2, help="noise level of the features (default: 0.2)")
    parser.add_argument("--scenes", type=int, default=600, help="of each data to learn from, at most (default: 600)")
    parser.add_argument("--steps", type=int, default=600, help="of the optimiser (default: 600)")
    parser.add_argument("--held-out", type=int, default=100, help="of each data to measure by (default: 100)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="a head each, in OUTPUT-SEED after the first"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw what the first head finds there, too")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier head in that folder")
    if not teacher:
        parser.set_defaults(names="label")
        parser.add_argument("--samples", type=int, default=0, help="of the model to measure by, too (default: 0)")
    else:
        parser.add_argument("--teacher", default="avatar-attributes", help="or shapes, or clip:<folder or hub id>")
        parser.add_argument(
            "--names", default="label", metavar="ATTRIBUTE", help="of boxes (default: label, the style)"
        )
        parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="classes not to train on")
    return parser.parse_args(arguments)


def _prepared(args: argparse.Namespace) -> tuple[DenoiserFeatures, list[Boxed], dict[str, list[Boxed]]]:
    features = DenoiserFeatures(load_pipeline(args.model), args.sites, args.sigma, size=args.size)
    held_out = {data: read_scenes(data, features.size, args.held_out, True, args.names) for data in args.data}
    scenes = [one for data in args.data for one in read_scenes(data, features.size, args.scenes, False, args.names)]
    return features, scenes, held_out


def _told(what: str, runs: Sequence[dict]) -> None:
    """Print each figure, with its spread where several heads were trained."""
    figures = (f"{key} {number(*mean_and_spread([run[key] for run in runs]))}" for key in runs[0])
    print(f"{what}: " + ", ".join(figures), flush=True)


def region_main(description: str, arguments: list[str] | None = None) -> int:
    """What `train_region_head.py` does."""
    args = _arguments(description, arguments, teacher=True)
    features, scenes, held_out = _prepared(args)
    held_out = [scene for of_data in held_out.values() for scene in of_data]
    teacher = load_teacher(args.teacher)
    task = RegionTask.of(scenes, features, teacher)
    _told("named by the teacher itself", [teacher_scores(task, args.leave_out) | {"alike": task.alike}])
    found, named, of_authors, beside = [], [], [], []
    for seed in args.seeds:
        head = train_region_head(task, features, args.leave_out, args.steps, pipeline=args.model, seed=seed)
        _save(head, args, seed, "train_region_head.py")
        detector = RegionDetector(head, features, teacher)
        found.append(region_scores(detector, held_out, args.leave_out))
        named.append(named_scores(detector, held_out, args.leave_out))
        by_authors = RegionDetector(head, features, teacher, authors=True)
        of_authors.append(named_scores(by_authors, held_out, args.leave_out))
        if args.picture and seed == args.seeds[0]:
            _save_picture(args.picture, found_in_scenes(detector, held_out[:DRAWN]))
        if args.teacher == AttributeTeacher.name and args.names == "label":
            beside.append(agreement(detector, held_out))
    _told("objects found by name", found)
    _told("named, of all names", named)
    _told("the same by the authors' ensemble", of_authors)
    if beside:
        _told("beside the attribute judge", beside)
    return 0


def label_main(description: str, arguments: list[str] | None = None) -> int:
    """What `train_label_head.py` does."""
    args = _arguments(description, arguments, teacher=False)
    features, scenes, held_out = _prepared(args)
    maps = cached(features, scenes, LEVELS)
    noised = {data: {level: cached(features, shown, [level]) for level in LEVELS} for data, shown in held_out.items()}
    runs: dict[str, list] = {data: [] for data in held_out}
    shown = [scene for of_data in held_out.values() for scene in of_data]
    names = names_in(scenes)
    samples, drawn = [], draw_samples(features, names, args.samples) if args.samples else None
    for seed in args.seeds:
        head = train_label_head(scenes, features, maps, args.steps, pipeline=args.model, seed=seed)
        _save(head, args, seed, "train_label_head.py")
        for data, of_data in held_out.items():
            runs[data].append(label_scores(head, noised[data], of_data))
        if drawn:
            samples.append({"all": sample_score(head, features, *drawn)})
        if args.picture and seed == args.seeds[0]:
            pictures = drawn[0][:DRAWN] if drawn else [one.picture.permute(1, 2, 0).numpy() for one in shown[:DRAWN]]
            _save_picture(args.picture, found_in_samples(head, features, pictures))
    for data, scores in runs.items():
        _told(f"mean overlap by noise level, {data}", [{f"{level:g}:": one[level] for level in one} for one in scores])
    if samples:
        _told(f"mean overlap on {args.samples} samples", samples)
    return 0


def found_in_scenes(detector: RegionDetector, scenes: Sequence[Boxed], least: float = 0.3) -> Image.Image:
    """Scenes with the boxes that a region head finds, each by its surest name."""
    names = names_in(scenes)
    pictures = [scene.picture.permute(1, 2, 0).numpy() for scene in scenes]
    drawn = [
        overlay(picture, surest(found, least))
        for picture, found in zip(pictures, detector(pictures, [names] * len(scenes)))
    ]
    return grid([np.asarray(one) for one in drawn], COLUMNS)


def found_in_samples(head: LabelHead, features: DenoiserFeatures, pictures: Sequence[np.ndarray]) -> Image.Image:
    """Pictures with the masks and boxes of a label head."""
    maps = features(torch.stack([to_square(picture, features.size) for picture in pictures]))
    shown = [to_square(picture, features.size).permute(1, 2, 0).numpy() for picture in pictures]
    drawn = [overlay(one, found, False, head.config.names) for one, found in zip(shown, head.labels(maps))]
    return grid([np.asarray(one) for one in drawn], COLUMNS)


def _save_picture(path: Path, picture: Image.Image) -> None:
    """With few colours, so that the file is small."""
    with io.BytesIO() as file:
        picture.quantize(96, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        write_file(path, file.getvalue())


def _save(head: RegionHead | LabelHead, args: argparse.Namespace, seed: int, maker: str) -> None:
    output = args.output if seed == args.seeds[0] else args.output.with_name(f"{args.output.name}-{seed}")
    with new_folder(output, maker, overwrite=args.overwrite) as folder:
        head.save_pretrained(folder)
