"""`brickwork generate`: pictures from a pipeline, one file each."""

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from brickwork import hub, options


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draw pictures (or clips) with a pipeline of ours, one PNG (or GIF) each, named by class and seed. Run again, "
        "it goes on with the next seeds; a picture that is there is never replaced but with --overwrite: one more of "
        "the same class and seed ends in -2."
    )
    parser.epilog = (
        "examples:\n"
        "  brickwork generate lego-avatars-64 --count 16 --output faces\n"
        "  brickwork generate lego-avatars-64 --width 192 --schedule fast --guidance 1.5\n"
        "  brickwork generate runs/tiny-maxvit/pipeline --steps 25\n"
        "  brickwork generate lego-avatars-64 --count 16 --keep-best 4 --score avatar-attributes"
    )
    options.add_common(parser, "model")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="names or numbers (default: every class)")
    parser.add_argument("-n", "--count", type=int, default=4, help="images of each class (default: 4)")
    options.add_common(parser, "--height", "--width")
    parser.add_argument("--frames", type=int, help="of a video pipeline: frames of a clip (default: the pipeline's)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: the pipeline's, else 18)")
    parser.add_argument("--guidance", "--guidance-scale", type=float, help="default: the pipeline's, else 1, none")
    options.add_common(parser, "--schedule")
    windows = (
        "of LEGO, above the training size: shifted (no seams), fixed, or tiled (pictures side by side); by default "
        "what is saved with the pipeline, else shifted for weights trained on crops, else fixed"
    )
    parser.add_argument("--windows", help=windows)
    seed = "seed of the first image, the next has the next (default: 0, or behind the last of an earlier call)"
    parser.add_argument("--seed", type=int, help=seed)
    options.add_common(parser, "--batch-size", "--device")
    parser.add_argument("-o", "--output", type=Path, default=Path("generated"), help="folder for the PNGs (generated)")
    parser.add_argument("--overwrite", action="store_true", help="replace images of these names that it wrote before")
    parser.add_argument("--exported", type=Path, metavar="FOLDER", help="run the graphs of `brickwork export`")
    parser.add_argument(
        "--keep-best", type=int, metavar="N", help="of the images of each class, write the best N only"
    )
    known = "with --keep-best: avatar-attributes, classifier:<folder or hub id>, or a detector (see `brickwork judge`)"
    parser.add_argument("--score", help=known)
    parser.add_argument("--prompt", help="with a detector: what the images must show (default: the class's name)")
    options.add_hub(parser)
    parser.set_defaults(run=run, check=check)


def _options(args: argparse.Namespace, pipe) -> dict:
    """The schedule, and of LEGO's pipeline how windows lie: other networks have no bricks nor windows."""
    from brickwork.pipelines.schedule_files import named_schedule

    lego = "windows" in pipe.config
    for name, wrong in (("schedule", args.schedule == "fast"), ("windows", args.windows is not None)):
        if wrong and not lego:
            raise ValueError(
                f"`--{name}` is {getattr(args, name)!r}, which is for a LEGO pipeline, and {args.model!r} holds a "
                f"{type(pipe).__name__}; leave it out."
            )
    schedule = {pipe.schedule_name: named_schedule(args.schedule, pipe.transformer)}
    return schedule | ({"windows": args.windows} if lego else {})


def check(args: argparse.Namespace) -> None:
    """What can be told before anything is imported or loaded."""
    options.check_at_least(args, 1, "count", "batch_size", "steps", "height", "width", "frames", "keep_best")
    if args.guidance is not None and not math.isfinite(args.guidance):
        raise ValueError(f"`--guidance` is {args.guidance}; give a finite number, 1 for none.")
    options.check_at_least(args, 0, "seed")
    if (args.keep_best is None) != (args.score is None) or (args.prompt is not None and args.score is None):
        raise ValueError("`--keep-best`, and `--prompt`, go with `--score`; give them together or none of them.")
    if args.keep_best is not None and args.keep_best > args.count:
        raise ValueError(f"`--keep-best` is {args.keep_best} of `--count` {args.count}; draw at least as many.")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"`--output` is {str(args.output)!r}, which is a file; name a folder.")
    hub.check_argument("model")(args)


def run(args: argparse.Namespace) -> None:
    from brickwork.eval.report.pictures import made_by, save_picture
    from brickwork.eval.sampling.pipelines import load_class_pipeline
    from brickwork.files import check_file
    from brickwork.pipelines.clip_files import write_clip
    from brickwork.pipelines.labels import resolve_class_labels

    pipe = load_class_pipeline(args.model, args.device, **options.of_hub(args))
    if args.exported is not None:
        from brickwork.pipelines.exported import use_exported

        use_exported(pipe, args.exported)
    pipe.set_progress_bar_config(disable=True)
    call, config, clips = _options(args, pipe), pipe.transformer.config, "num_frames" in pipe.config
    if args.frames is not None and not clips or args.score is not None and clips:
        name, kind = ("score", "pictures") if clips else ("frames", "clips")
        raise ValueError(
            f"`--{name}` is {getattr(args, name)!r}, which is for {kind}, and {args.model!r} holds a "
            f"{type(pipe).__name__}; leave it out."
        )
    pipe.check_call(args.height, args.width, args.steps, args.guidance)
    given = [int(name) if name.isdigit() else name for name in args.classes or []]
    labels = resolve_class_labels(
        given or list(range(config.num_classes or 0)) or [None], config.num_classes, config.id2label
    )
    twice = [str(label) for label, times in Counter(labels).items() if times > 1]
    if twice:
        raise ValueError(f"`--classes` names the class {', '.join(twice)} twice; name each once.")
    slugs = class_slugs(labels, config.id2label or {})
    first = next_seed(args.output, slugs) if args.seed is None else args.seed
    jobs = [(label, first + index) for label in labels for index in range(args.count)]
    suffix = "gif" if clips else "png"
    files = [args.output / f"{slugs[label]}-{seed:06d}.{suffix}" for label, seed in jobs]
    if args.overwrite:
        for file in files:
            check_file(file, made_by("brickwork generate"), overwrite=True)
    call |= {"height": args.height, "width": args.width, "guidance_scale": args.guidance}
    call |= {} if args.frames is None else {"num_frames": args.frames}
    call["num_inference_steps"] = args.steps or pipe.config.get("num_inference_steps") or 18
    pictures, written = _draw(pipe, jobs, args.batch_size, call), 0
    with closing(pictures):  # an error ends the bar before it is told
        for file, image, *score in _chosen(args, zip(files, pictures), jobs, config.id2label or {}):
            notes = {"Score": f"{score[0]:.6g} by {args.score}"} if score else None
            file = file if args.overwrite else free_name(file)
            if clips:
                write_clip(image, file, pipe.config.fps, "brickwork generate")
            else:
                save_picture(image, file, "brickwork generate", notes)
            written += 1
    print(f"wrote {written} {'clips' if clips else 'images'} to {args.output}")


def _draw(pipe, jobs: Sequence[tuple], batch_size: int, call: dict) -> Iterator:
    """The image of each `(label, seed)`, in order."""
    import torch
    from tqdm import tqdm

    with tqdm(total=len(jobs), unit="image") as bar:
        for start in range(0, len(jobs), batch_size):
            labels, seeds = zip(*jobs[start : start + batch_size])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            output = pipe(class_labels=list(labels), generator=generators, **call)
            yield from output.frames if hasattr(output, "frames") else output.images
            bar.update(len(labels))


def _chosen(
    args: argparse.Namespace, drawn: Iterator[tuple], jobs: Sequence[tuple], names: Mapping
) -> Iterator[tuple]:
    """All that is drawn, or with --keep-best the best of each class with their scores."""
    if args.score is None:
        return drawn
    from brickwork.eval.judge.scores import keep_best, load_score

    def asked(label: int | None) -> str:
        return args.prompt or str(names.get(label, names.get(str(label), label)))

    return keep_best(drawn, [label for label, _ in jobs], args.keep_best, load_score(args.score, args.device), asked)


def class_slugs(labels: Sequence[int | None], names: Mapping) -> dict[int | None, str]:
    """How each class is called in the names of files: by its name where that tells it from all others, else with its
    number; the same whatever else is drawn."""
    slugs = {int(number): "-".join(re.findall(r"\w+", name.lower())) or "class" for number, name in names.items()}
    common = {slug for slug, times in Counter(slugs.values()).items() if times > 1}
    found: dict[int | None, str] = {}
    for label in labels:
        slug = slugs.get(label, "class")
        found[label] = f"{slug}-{label}" if slug in common or label not in slugs else slug
    return found | ({None: "image"} if None in found else {})


def next_seed(folder: Path, slugs: Mapping[int | None, str]) -> int:
    """The first seed behind those of the pictures of these classes in a folder."""
    kinds = "|".join(map(re.escape, slugs.values()))
    name = re.compile(rf"(?:{kinds})-(\d{{6,}})(?:-\d+)?\.(?:png|gif)")
    found = [name.fullmatch(file.name) for file in folder.glob("*.*")]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def free_name(file: Path) -> Path:
    """A name that is free: the file's own, or with `-2`, `-3` … behind it."""
    name, number = file, 1
    while name.exists() or name.is_symlink():
        number += 1
        name = file.with_stem(f"{file.stem}-{number}")
    return name
