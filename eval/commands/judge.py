"""Find the objects of pictures and compare them with what the prompts ask for: which, how many, in which colours and
positions, by the published rules of GenEval. Prompts are captions, or requirements in GenEval's form. Writes
judgement.json and a page with the pictures that are wrong.

examples:
  brickwork judge samples --detector owlv2:google/owlv2-base-patch16-ensemble -o judgement
  brickwork judge samples --detector shapes --requirements evaluation_metadata.jsonl -o judgement
  brickwork judge samples --detector shapes --prompt 'two red circles above a blue square' -o judgement
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from brickwork import options

FORMAT = "brickwork-judgement/1"
SHOWN = 24  # wrong pictures in the report


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `brickwork judge`."""
    parser.add_argument("pictures", help="folder, .parquet, .tar or a data set on the hub, with captions")
    parser.add_argument("-o", "--output", type=Path, default=Path("judgement"), help="folder to write (judgement)")
    add_detector(parser, "--detector", required=True)
    parser.add_argument("--prompt", help="what all pictures were asked for, in place of captions")
    parser.add_argument("--limit", type=int, help="take the first so many pictures only")
    options.add_common(parser, "--overwrite")
    options.add_hub(parser, "--detector")
    parser.set_defaults(run=run)


def add_detector(parser: argparse.ArgumentParser, option: str, **how) -> None:
    """Options of a judge, for every command that takes one; `make_judge` reads them.

    Args:
        parser: to add to.
        option: what names the detector, such as `--judge`.
        how: further arguments of that option.
    """
    group = parser.add_argument_group("judge")
    known = "owlv2:<folder or hub id>, grounding-dino:<…>, region-head:<folder>, or shapes (on a flat ground)"
    group.add_argument(option, dest="detector", metavar="DETECTOR", help=known, **how)
    group.add_argument("--requirements", metavar="FILE", help="rows as in GenEval's metadata (.jsonl or .json)")
    group.add_argument(
        "--colours",
        default="pixels",
        help="pixels (default), clip:<folder or hub id> as in GenEval, or avatar-attributes (of avatars' hair)",
    )
    group.add_argument("--threshold", type=float, default=0.3, help="least score of an object (default: 0.3)")
    group.add_argument("--counting-threshold", type=float, default=0.9, help="the same for counting (default: 0.9)")
    group.add_argument("--max-overlap", type=float, default=1.0, help="of two objects of a name (default: 1, any)")
    if not any("--device" in action.option_strings for action in parser._actions):
        options.add_common(group, "--device")


def make_judge(args: argparse.Namespace, **of_hub: str):
    """The judge that `add_detector`'s options describe, its detector by options of the hub; `None` without one."""
    from brickwork.eval.judge.colours import load_colours
    from brickwork.eval.judge.detectors import load_detector
    from brickwork.eval.judge.requirements import read_requirements
    from brickwork.eval.judge.verdicts import Judge, JudgeSettings

    if args.detector is None:
        return None
    settings = JudgeSettings(args.threshold, args.counting_threshold, max_overlap=args.max_overlap)
    rows = None if args.requirements is None else read_requirements(args.requirements)
    detector = load_detector(args.detector, args.device, **of_hub)
    return Judge(detector, load_colours(args.colours, args.device), settings, rows)


def run(args: argparse.Namespace) -> None:
    """Judge, print the table and write everything."""
    from brickwork.eval.judge.verdicts import summary
    from brickwork.eval.sets.pictures import open_image_set
    from brickwork.files import check_folder, new_folder, write_json

    check_folder(args.output, "brickwork judge", overwrite=args.overwrite)
    if args.prompt is not None and args.requirements is not None:
        raise ValueError("`--prompt` and `--requirements` both say what is asked for; give one of them.")
    images = open_image_set(args.pictures, args.limit)
    judge = make_judge(args, **options.of_hub(args))
    captions = images.texts if args.prompt is None else [args.prompt] * len(images)
    asked = judge.asked(images.names, captions)
    verdicts = _judge(judge, images, asked)
    report = make_report(judge, images, verdicts)
    result = {
        "format": FORMAT,
        "source": str(args.pictures),
        "judge": judge.to_dict(),
        **summary(verdicts),
        "pictures": [{"name": name, **verdict.to_dict()} for name, verdict in zip(images.names, verdicts)],
    }
    with new_folder(args.output, "brickwork judge", overwrite=args.overwrite) as folder:
        write_json(folder / "judgement.json", result)
        report.write(folder)
    print(report.blocks[1].text())
    print(f"wrote {args.output}: judgement.json, index.html")


def _judge(judge, images, asked: Sequence) -> list:
    """Verdicts on all pictures, some at a time."""
    from tqdm import tqdm

    from brickwork.eval.judge.verdicts import AT_ONCE
    from brickwork.eval.sets.pictures import batches

    judge.require_known(asked)
    verdicts = []
    with tqdm(total=len(images), unit="image", desc="judging", leave=False) as bar:
        for batch in batches(len(images), AT_ONCE):
            verdicts += judge([_pixels(images, i) for i in batch], [asked[i] for i in batch])
            bar.update(len(batch))
    return verdicts


def _pixels(images, index: int):
    """uint8 `(H, W, 3)`, of its own size."""
    from brickwork.eval.sets.decode import BrokenPicture
    from brickwork.eval.sets.pictures import Preparation

    try:
        with images.open(index) as image:
            return Preparation(convert=True)(image)
    except BrokenPicture as error:
        raise ValueError(f"{images.names[index]!r} cannot be read ({error}); replace or remove it.") from None


def make_report(judge, images, verdicts: Sequence):
    """What is right by category, and the first wrong pictures with what was found in them."""
    from collections import Counter

    from brickwork.eval.judge.overlays import overlay
    from brickwork.eval.judge.verdicts import kind_of, summary
    from brickwork.eval.report.blocks import Picture, Report, Table, Text, literal

    found = summary(verdicts)
    rows = [(name, e["correct"], e["count"], e["correct"] / e["count"]) for name, e in found["categories"].items()]
    rows.append(("overall", sum(row[1] for row in rows), len(verdicts), found["overall"]))
    settings = ", ".join(f"{name} {value}" for name, value in judge.to_dict().items())
    wrong = [i for i, verdict in enumerate(verdicts) if not verdict.correct]
    kinds = Counter(kind_of(reason) for verdict in verdicts for reason in verdict.reasons)
    blocks = [
        f"{len(verdicts)} pictures of {literal(images.source)}, judged by GenEval's rules: {literal(settings)}.",
        Table(["category", "correct", "pictures", "share"], rows, "The overall share is the mean over categories."),
        Table(["what is wrong", "times"], kinds.most_common()) if kinds else None,
        Text(f"## Wrong pictures\n\nThe first {min(SHOWN, len(wrong))} of {len(wrong)}.") if wrong else None,
    ]
    for i in wrong[:SHOWN]:
        reasons = f"{verdicts[i].requirements.prompt}: {'; '.join(verdicts[i].reasons)}"
        blocks.append(Picture(overlay(_pixels(images, i), verdicts[i].found), reasons, f"wrong-{i:06d}"))
    return Report("Judgement", blocks)
