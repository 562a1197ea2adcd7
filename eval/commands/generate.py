"""`brickwork generate`: pictures from a pipeline, one file each."""

import argparse
from pathlib import Path


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.description = "Draw pictures with a pipeline of ours, one PNG each, named by class and seed."
    parser.epilog = (
        "examples:\n"
        "  brickwork generate lego-emoji-64 --count 16 --output faces\n"
        "  brickwork generate lego-emoji-64 --width 192 --schedule fast --guidance 1.5\n"
        "  brickwork generate runs/tiny-maxvit/pipeline --steps 25"
    )
    parser.add_argument("model", help="weights that ship (lego-emoji-64), a pipeline folder, or a LEGO one on the hub")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="names or numbers (default: every class)")
    parser.add_argument("--count", type=int, default=4, help="images of each class (default: 4)")
    parser.add_argument("--height", type=int, help="height in pixels (default: the training size)")
    parser.add_argument("--width", type=int, help="width in pixels (default: the training size)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: the pipeline's, else 18)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's, else 1, none)")
    parser.add_argument(
        "--schedule",
        default="saved",
        help="which subnets run: saved (the pipeline's own), full, fast (of LEGO), or a JSON file (default: saved)",
    )
    parser.add_argument(
        "--windows",
        help="of LEGO, above the training size: shifted (no seams), fixed, or tiled (pictures side by side); by "
        "default what is saved with the pipeline, else shifted for weights trained on crops, else fixed",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image; the next has the next")
    parser.add_argument("--batch-size", type=int, default=16, help="images at once (default: 16)")
    parser.add_argument("--device", help="cpu, cuda, … (default: the best there is)")
    parser.add_argument("--output", type=Path, default=Path("generated"), help="folder for the PNGs")
    parser.add_argument("--overwrite", action="store_true", help="replace images of these names that it wrote before")
    parser.set_defaults(run=run)


def _options(args: argparse.Namespace, pipe) -> dict:
    """The schedule, and of LEGO's pipeline how windows lie: other networks have no bricks nor windows to place."""
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


def run(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from brickwork.eval.report.pictures import made_by, save_picture
    from brickwork.eval.sampling.pipelines import load_class_pipeline
    from brickwork.files import check_file

    for name in ("count", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` is {getattr(args, name)}; give at least 1.")
    pipe = load_class_pipeline(args.model, args.device)
    pipe.set_progress_bar_config(disable=True)
    options = _options(args, pipe)
    classes = [int(name) if name.isdigit() else name for name in args.classes or []]
    classes = classes or list(range(pipe.transformer.config.num_classes or 0)) or [None]
    jobs = [(label, args.seed + index) for label in classes for index in range(args.count)]
    files = [args.output / f"{_slug(label)}-{seed:06d}.png" for label, seed in jobs]
    if len(set(files)) < len(files):
        raise ValueError("`--classes` names a class, or two classes of one file name, twice; name each once.")
    for file in files:
        check_file(file, made_by("brickwork generate"), overwrite=args.overwrite)
    with tqdm(total=len(jobs), unit="image") as bar:
        for start in range(0, len(jobs), args.batch_size):
            part = jobs[start : start + args.batch_size]
            images = pipe(
                class_labels=[label for label, _ in part],
                height=args.height,
                width=args.width,
                num_inference_steps=args.steps or pipe.config.get("num_inference_steps") or 18,
                guidance_scale=args.guidance,
                generator=[torch.Generator().manual_seed(seed) for _, seed in part],
                **options,
            ).images
            for image, file in zip(images, files[start:]):
                save_picture(image, file, "brickwork generate")
            bar.update(len(part))
    print(f"wrote {len(files)} images to {args.output}")
    return 0


def _slug(label: int | str | None) -> str:
    text = "image" if label is None else str(label).lower()
    return "".join(character if character.isalnum() else "-" for character in text)
