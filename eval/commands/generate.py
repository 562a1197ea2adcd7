"""Draw pictures (or clips) with a pipeline, of classes or (text-to-image) of prompts: one PNG (or GIF) each, named by
class or prompt and by seed. Run again, it goes on with the next seeds; a picture that is there is never replaced but
with --overwrite: one more of the same class and seed ends in -2.

examples:
  brickwork generate lego-avatars-64 --count 16 --output faces
  brickwork generate lego-avatars-64 --width 192 --schedule fast --guidance 1.5
  brickwork generate runs/tiny-maxvit/pipeline --steps 25
  brickwork generate my-stable-diffusion --prompt 'a red apple' 'a green apple'
  brickwork generate lego-avatars-64 --count 16 --keep-best 4 --score avatar-attributes
"""

import argparse
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brickwork import hub, options
from brickwork.errors import counted

SLUG = 60  # letters of a prompt in the name of a file


def configure_parser(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser, "model")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="names or numbers (default: every class)")
    parser.add_argument("-n", "--count", type=int, default=4, help="images of each class or prompt (default: 4)")
    options.add_common(parser, "--height", "--width")
    parser.add_argument("--frames", type=int, help="of a video pipeline: frames of a clip (default: the pipeline's)")
    parser.add_argument(
        "--steps", type=int, help="steps of the sampler (default: the pipeline's, else 18, of prompts 25)"
    )
    guidance = "default: the pipeline's, else 1, none, of prompts 5"
    parser.add_argument("--guidance", "--guidance-scale", type=float, help=guidance)
    weak = "subnet, or network of --with, that guidance has without the class (default: the one that runs)"
    parser.add_argument("--guidance-subnet", metavar="NAME", help=weak)
    options.add_common(parser, "--schedule")
    options.add_networks(parser)
    windows = (
        "of LEGO, above the training size: shifted (no seams), fixed, or tiled (pictures side by side); by default "
        "what is saved with the pipeline, else shifted for weights trained on crops, else fixed"
    )
    parser.add_argument("--windows", help=windows)
    seed = "seed of the first image, the next has the next (default: 0, or behind the last of an earlier call)"
    parser.add_argument("--seed", type=int, help=seed)
    options.add_common(parser, "--batch-size", "--device", "--compile")
    parser.add_argument("-o", "--output", type=Path, default=Path("generated"), help="folder for the PNGs (generated)")
    parser.add_argument("--overwrite", action="store_true", help="replace images of these names that it wrote before")
    parser.add_argument("--exported", type=Path, metavar="FOLDER", help="run the graphs of `brickwork export`")
    parser.add_argument(
        "--keep-best", type=int, metavar="N", help="of the images of each class, write the best N only"
    )
    known = "with --keep-best: avatar-attributes, classifier:<folder or hub id>, or a detector (see `brickwork judge`)"
    parser.add_argument("--score", help=known)
    prompt = "of a text-to-image pipeline: what to draw, as often as there are prompts; with a detector: what the "
    parser.add_argument(
        "--prompt", nargs="+", metavar="TEXT", help=prompt + "images must show (default: the class's name)"
    )
    options.add_hub(parser)
    parser.set_defaults(run=run, check=check)


def check(args: argparse.Namespace) -> None:
    """What can be told before anything is imported or loaded."""
    options.check_at_least(args, 1, "count", "batch_size", "steps", "height", "width", "frames", "keep_best")
    if args.guidance is not None and not math.isfinite(args.guidance):
        raise ValueError(f"`--guidance` is {args.guidance}; give a finite number, 1 for none.")
    options.check_at_least(args, 0, "seed")
    if (args.keep_best is None) != (args.score is None):
        raise ValueError("`--keep-best` goes with `--score`; give both or none of them.")
    if not all(text.strip() for text in args.prompt or []):
        raise ValueError("`--prompt` is empty; say what to draw.")
    if args.keep_best is not None and args.keep_best > args.count:
        raise ValueError(f"`--keep-best` is {args.keep_best} of `--count` {args.count}; draw at least as many.")
    if args.compile and args.exported is not None:
        raise ValueError("`--compile` and `--exported` are two ways of running the network; give one of them.")
    if options.networks_of(args) and not args.schedule.endswith(".json"):
        raise ValueError(
            f"`--schedule` is {args.schedule!r}, which says nothing of the networks of `--with`; give the file that "
            "`brickwork search --with` wrote."
        )
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"`--output` is {str(args.output)!r}, which is a file; name a folder.")
    hub.check_argument("model")(args)


def run(args: argparse.Namespace) -> None:
    from brickwork.eval.report.pictures import made_by, save_picture
    from brickwork.eval.sampling.pipelines import draws_from_text
    from brickwork.files import check_file
    from brickwork.pipelines.clip_files import write_clip

    pipe = _open(args)
    pipe.set_progress_bar_config(disable=True)
    clips = "num_frames" in pipe.config
    if args.frames is not None and not clips or args.score is not None and clips:
        name, kind = ("score", "pictures") if clips else ("frames", "clips")
        raise _out_of_place(args, name, f"for {kind}", pipe)
    wanted = (_prompts if draws_from_text(pipe) else _classes)(args, pipe)
    first = next_seed(args.output, wanted.slugs) if args.seed is None else args.seed
    jobs = [(one, first + index) for one in wanted.slugs for index in range(args.count)]
    suffix = "gif" if clips else "png"
    files = [args.output / f"{wanted.slugs[one]}-{seed:06d}.{suffix}" for one, seed in jobs]
    if args.overwrite:
        for file in files:
            check_file(file, made_by("brickwork generate"), overwrite=True)
    pictures, written = _draw(pipe, wanted, jobs, args.batch_size), 0
    with closing(pictures):  # an error ends the bar before it is told
        for (file, one), image, *score in _chosen(
            args, zip(zip(files, (one for one, _ in jobs)), pictures), jobs, wanted
        ):
            notes = {"Score": f"{score[0]:.6g} by {args.score}"} if score else {}
            notes |= {"Prompt": one} if wanted.argument == "prompt" else {}
            file = file if args.overwrite else free_name(file)
            if clips:
                write_clip(image, file, pipe.config.fps, "brickwork generate")
            else:
                save_picture(image, file, "brickwork generate", notes)
            written += 1
    print(f"wrote {counted(written, 'clip' if clips else 'image')} to {args.output}")


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn.

    Attributes:
        argument: of the pipeline that takes it, `class_labels` or `prompt`.
        slugs: class (`None` without classes) or prompt => what it is called in the names of files.
        call: further arguments of the pipeline.
        asked: what a detector looks for in the picture of each.
    """

    argument: str
    slugs: dict[Any, str]
    call: dict
    asked: Callable[[Any], str]


def _open(args: argparse.Namespace):
    """The pipeline, on its device; what it cannot do is said before its weights are read, where its class is known."""
    from brickwork.eval.sampling.pipelines import (
        compile_pipeline,
        draws_from_text,
        load_class_pipeline,
        load_pipeline,
        pipeline_parts,
    )

    parts = pipeline_parts(args.model) or {}
    name, text = parts.get("_class_name"), any(parts.get("text_encoder", ()))
    if text and args.prompt is None:
        raise ValueError(f"`model` is {args.model!r}, a {name}, which draws from text; add --prompt TEXT.")
    if text or name is None and args.prompt is not None:  # of the hub's, the class is known once it is here
        pipe = load_pipeline(args.model, device=args.device, **options.of_hub(args))
    else:
        pipe = load_class_pipeline(args.model, args.device, **options.of_hub(args))
    if args.prompt is not None and args.score is None and not draws_from_text(pipe):
        raise _out_of_place(args, "prompt", "for a text-to-image pipeline, or for --score", pipe)
    if args.compile:
        compile_pipeline(pipe)
    if args.exported is not None:
        from brickwork.pipelines.exported import use_exported

        if draws_from_text(pipe):
            raise _out_of_place(args, "exported", "for networks of ours", pipe)
        use_exported(pipe, args.exported)
    return pipe


def _out_of_place(args: argparse.Namespace, option: str, why: str, pipe) -> ValueError:
    value = getattr(args, option)
    value, name = str(value) if isinstance(value, Path) else value, option.replace("_", "-")
    return ValueError(
        f"`--{name}` is {value!r}, which is {why}, and {args.model!r} holds a {type(pipe).__name__}; leave it out."
    )


def _classes(args: argparse.Namespace, pipe) -> Wanted:
    """Classes of a pipeline of ours, with its schedule, and of LEGO's how windows lie: others have no bricks."""
    from brickwork.pipelines.labels import resolve_class_labels
    from brickwork.pipelines.schedules import named_schedule

    config, lego = pipe.transformer.config, "windows" in pipe.config
    for name, wrong in (("schedule", args.schedule == "fast"), ("windows", args.windows is not None)):
        if wrong and not lego:
            raise _out_of_place(args, name, "for a LEGO pipeline", pipe)
    call = {pipe.schedule_name: named_schedule(args.schedule, pipe.transformer)}
    call["networks"] = {name: other.transformer for name, other in _others(args).items()}
    call["guidance_subnet"] = args.guidance_subnet
    call |= {"windows": args.windows} if lego else {}
    pipe.check_call(args.height, args.width, args.steps, args.guidance, args.guidance_subnet, call["networks"])
    given = [int(name) if name.isdigit() else name for name in args.classes or []]
    labels = resolve_class_labels(
        given or list(range(config.num_classes or 0)) or [None], config.num_classes, config.id2label
    )
    twice = [str(label) for label, times in Counter(labels).items() if times > 1]
    if twice:
        raise ValueError(f"`--classes` names the class {', '.join(twice)} twice; name each once.")
    call |= {"height": args.height, "width": args.width, "guidance_scale": args.guidance}
    call |= {} if args.frames is None else {"num_frames": args.frames}
    call["num_inference_steps"] = args.steps or pipe.config.get("num_inference_steps") or 18
    names = config.id2label or {}

    def asked(label: int | None) -> str:
        return " ".join(args.prompt or [str(names.get(label, names.get(str(label), label)))])

    return Wanted("class_labels", class_slugs(labels, names), call, asked)


def _others(args: argparse.Namespace) -> dict:
    """The pipelines of `--with`, by name."""
    from brickwork.eval.sampling.pipelines import load_any_pipeline

    return {name: load_any_pipeline(model, args.device) for name, model in options.networks_of(args).items()}


def _prompts(args: argparse.Namespace, pipe) -> Wanted:
    """Prompts of a text-to-image pipeline; sizes are checked before it draws."""
    from brickwork.eval.sampling.pipelines import size_rule

    others = _others(args)
    scheduled = args.schedule != "saved" and not others
    given = {"schedule": scheduled} | {name: getattr(args, name) for name in ("windows", "classes", "guidance_subnet")}
    for name, value in given.items():
        if value:
            raise _out_of_place(args, name, "for networks of ours", pipe)
    if others:
        from brickwork.pipelines.schedules import schedule_from_file
        from brickwork.pipelines.trajectory import stitch_trajectory

        stitch_trajectory(pipe, others, schedule_from_file(args.schedule))
    multiple, least, native = size_rule(pipe)
    sizes = {name: getattr(args, name) or native for name in ("height", "width")}
    for name, side in sizes.items():
        if side < least or side % multiple:
            near = max(least, round(side / multiple) * multiple)
            raise ValueError(f"`--{name}` is {side}; give a multiple of {multiple} from {least} up, such as {near}.")
    guidance = pipe.config.get("guidance_scale", 5.0) if args.guidance is None else args.guidance
    steps = args.steps or pipe.config.get("num_inference_steps") or 25
    call = sizes | {"num_inference_steps": steps, "guidance_scale": guidance}
    return Wanted("prompt", prompt_slugs(args.prompt), call, str)


def _draw(pipe, wanted: Wanted, jobs: Sequence[tuple], batch_size: int) -> Iterator:
    """The image of each `(class or prompt, seed)`, in order."""
    import torch
    from tqdm import tqdm

    with tqdm(total=len(jobs), unit="image") as bar:
        for start in range(0, len(jobs), batch_size):
            ones, seeds = zip(*jobs[start : start + batch_size])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            output = pipe(**{wanted.argument: list(ones)}, generator=generators, **wanted.call)
            bar.update(len(ones))
            yield from output.frames if hasattr(output, "frames") else output.images


def _chosen(
    args: argparse.Namespace, drawn: Iterator[tuple], jobs: Sequence[tuple], wanted: Wanted
) -> Iterator[tuple]:
    """All that is drawn, or with --keep-best the best of each class or prompt with their scores."""
    if args.score is None:
        return drawn
    from brickwork.eval.judge.scores import keep_best, load_score

    return keep_best(
        drawn, [one for one, _ in jobs], args.keep_best, load_score(args.score, args.device), wanted.asked
    )


def prompt_slugs(prompts: Sequence[str]) -> dict[str, str]:
    """How each prompt is called in the names of files: by its words; where these do not tell it from every other one
    (cut short, capitals, marks), with the start of its SHA-256; so the same whatever else is drawn."""
    found: dict[str, str] = {}
    for prompt in prompts:
        if prompt in found:
            raise ValueError(f"`--prompt` is {prompt!r} twice; give each once, and --count for more pictures of it.")
        words = re.findall(r"\w+", prompt.lower())
        slug = "-".join(words)[:SLUG].strip("-") or "prompt"
        if " ".join(words) != prompt or slug != "-".join(words):
            slug += f"-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}"
        found[prompt] = slug
    return found


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
