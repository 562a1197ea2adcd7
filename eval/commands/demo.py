"""Draw one picture with the weights that ship, every class in turn: the same seeds with every brick and with bricks
skipped, and wide images beyond the training size; then avatars by text, at three sizes with a ResAdapter. Prints
seconds, counted operations and the bricks that ran.

example:
  brickwork demo --output demo.png --seed 3
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brickwork import options
from brickwork.errors import counted

MARGIN, GAP, TEXT_HEIGHT = 12, 4, 18
SEARCHED = "searched.json"  # a schedule beside the weights, of `brickwork search`
TEXT_STEPS, TEXT_GUIDANCE = 12, 4.0
ADAPTER = "resadapter"  # a folder beside the weights of a Stable Diffusion
TEXT_SHARES, TEXT_SCALE = (0.875, 1.0, 1.125), 0.75  # of the training size; of the adapter
PROMPTS = (
    "a happy micah person with pink hair on a yellow ground",
    "a miniavs character with blue hair and an orange shirt against grey",
    "fun emoji face, surprised, on a purple ground",
    "bottts robot, sad, a green body on a blue background",
    "an adventurer avatar with glasses and long red hair against green",
    "pixel art portrait with sunglasses and green hair on a pink ground",
    "a laughing avataaars person with a hoodie and dark skin on a white background",
    "an open peeps avatar with a bob, looking calm, against orange",
)


@dataclass(frozen=True)
class Row:
    """One row of the picture: a caption and how its images are drawn."""

    caption: str
    schedule: Any
    height: int
    width: int
    count: int


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, default=Path("demo.png"), help="picture to write (demo.png)")
    parser.add_argument("--weights", default="lego-avatars-64", help="weights that ship, or a pipeline folder")
    parser.add_argument(
        "--text-weights",
        default="avatars-sd-64",
        help="a Stable Diffusion, '' for no row by text (default: avatars-sd-64)",
    )
    parser.add_argument("--images", type=int, default=8, help="images a row (default: 8)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: the pipeline's, else 18)")
    options.add_common(parser, "--guidance", help="default: the pipeline's, else 2; 1 is none")
    options.add_common(parser, "--seed", "--compile", "--overwrite")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from brickwork.eval.report.pictures import made_by, save_picture
    from brickwork.eval.sampling.pipelines import compile_pipeline, load_lego_pipeline
    from brickwork.files import check_file
    from brickwork.gen.operations import count_operations
    from brickwork.gen.subnets import name_of
    from brickwork.pipelines.schedules import BrickSchedule, steps_text

    options.check_at_least(args, 1, "images")
    if args.output.suffix != ".png":
        raise ValueError(f"`--output` is {str(args.output)!r}; give a name that ends in .png.")
    check_file(args.output, made_by("brickwork demo"), overwrite=args.overwrite)
    pipe = load_lego_pipeline(args.weights)
    if args.compile:
        compile_pipeline(pipe)
    pipe.set_progress_bar_config(disable=True)
    steps = (pipe.config.get("num_inference_steps") or 18) if args.steps is None else args.steps
    guidance = (pipe.config.get("guidance_scale") or 2.0) if args.guidance is None else args.guidance
    size = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    full, fast = BrickSchedule.full(pipe.transformer), BrickSchedule.fast(pipe.transformer)
    rows = [
        Row("all bricks", full, size, size, args.images),
        Row("fast: the last brick skipped on half of the steps", fast, size, size, args.images),
        *searched_rows(args.weights, pipe.transformer, size, args.images),
        Row(f"beyond the training size: {size} x {3 * size}", full, size, 3 * size, max(1, args.images // 3)),
    ]
    drawn = []
    with tqdm(total=len(rows) * steps, unit="step", desc="drawing", leave=False) as bar:
        for row in rows:
            labels = spread_labels(pipe.transformer.config.num_classes, row.count)
            started = time.perf_counter()
            operations, output = count_operations(
                lambda row=row, labels=labels: pipe(
                    class_labels=labels,
                    height=row.height,
                    width=row.width,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    brick_schedule=row.schedule,
                    generator=[torch.Generator().manual_seed(args.seed + index) for index in range(row.count)],
                    callback_on_step_end=lambda *_: bar.update() and None,
                )
            )
            seconds = time.perf_counter() - started
            drawn.append((row.caption, output.images))
            cost = f"{counted(row.count)} in {seconds:.1f} s, {operations / row.count / 1e9:.1f} GFLOP an image"
            bar.write(f"{row.caption}\n    {cost}; steps by bricks {steps_text(map(name_of, output.bricks))}")
    if args.text_weights:
        drawn.append(draw_by_text(args))
    save_picture(compose(drawn), args.output, "brickwork demo")
    print(f"wrote {args.output}")


def searched_rows(weights: str, transformer, size: int, images: int) -> list[Row]:
    """The row of the schedule that `brickwork search` found, where it lies beside the weights."""
    from brickwork.eval.sampling.pipelines import pipeline_folder
    from brickwork.pipelines.schedules import named_schedule

    file = Path(pipeline_folder(weights)) / SEARCHED
    if not file.is_file():
        return []
    schedule = named_schedule(str(file), transformer)
    return [Row("searched: the bricks that matter at each noise level", schedule, size, size, images)]


def draw_by_text(args: argparse.Namespace) -> tuple[str, list]:
    """A caption, and pictures of some of `PROMPTS`: with a ResAdapter beside the weights each at three sizes."""
    import torch

    from brickwork.adapters.resadapter.functions import load_resadapter
    from brickwork.eval.sampling.pipelines import load_pipeline, pipeline_folder

    pipe, prompts, shares = load_pipeline(args.text_weights), PROMPTS[: args.images], (1.0,)
    pipe.set_progress_bar_config(disable=True)
    adapter = Path(pipeline_folder(args.text_weights)) / ADAPTER
    if adapter.is_dir():
        load_resadapter(pipe, adapter, scale=TEXT_SCALE)
        prompts, shares = PROMPTS[: max(1, args.images // 4)], TEXT_SHARES
    size, step = pipe.unet.config.sample_size * pipe.vae_scale_factor, 2 * pipe.vae_scale_factor
    sides = [round(size * share / step) * step for share in shares]
    started, pictures = time.perf_counter(), {}
    for side in sides:
        generators = [torch.Generator().manual_seed(args.seed + index) for index in range(len(prompts))]
        pictures[side] = pipe(
            list(prompts),
            height=side,
            width=side,
            num_inference_steps=args.steps or TEXT_STEPS,
            guidance_scale=TEXT_GUIDANCE,
            generator=generators,
        ).images
    drawn = [picture for several in zip(*pictures.values()) for picture in several]
    sizes = "" if len(sides) == 1 else f" at {', '.join(map(str, sides))} pixels with a ResAdapter"
    caption = f"by text{sizes}: “{PROMPTS[0]}”, …"
    print(f"{caption}\n    {counted(len(drawn))} in {time.perf_counter() - started:.1f} s")
    return caption, drawn


def spread_labels(num_classes: int | None, count: int) -> list[int] | list[None]:
    """A label for each of `count` images: the classes in order, as many images of each as can be."""
    if not num_classes:
        return [None] * count
    return [index * num_classes // count if count > num_classes else index for index in range(count)]


def compose(rows: list[tuple[str, list]], scale: int = 2):
    """Rows of images under their captions, on white; pixels enlarged `scale` times."""
    from PIL import Image, ImageDraw, ImageFont

    widths = [sum(image.width * scale + GAP for image in images) - GAP for _, images in rows]
    heights = [TEXT_HEIGHT + max(image.height for image in images) * scale + MARGIN for _, images in rows]
    picture = Image.new("RGB", (max(widths) + 2 * MARGIN, sum(heights) + MARGIN), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    top = MARGIN
    for (caption, images), height in zip(rows, heights):
        draw.text((MARGIN, top - 2), caption, fill="black", font=font)
        left = MARGIN
        for image in images:
            large = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
            picture.paste(large, (left, top + TEXT_HEIGHT))
            left += large.width + GAP
        top += height
    return picture
