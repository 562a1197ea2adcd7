"""Draw one picture with the miniature Stable Diffusion that ships, which was trained at 64 x 64 pixels alone: the same
prompts and seeds at several sizes, without its ResAdapter and with it.

example:
  brickwork demo resadapter --output both.png --prompts 'a sad bottts robot' 'a happy micah person'
"""

import argparse
import time
from pathlib import Path

from brickwork import options
from brickwork.eval.commands.demo import ADAPTER, PROMPTS, compose

WEIGHTS = "avatars-sd-64"
SIZES = ((64, 64), (48, 48), (80, 80), (48, 96), (96, 96))


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo-resadapter.png"), help="picture to write (demo-resadapter.png)"
    )
    parser.add_argument("--weights", default=WEIGHTS, help=f"pipeline folder with {ADAPTER}/ in it (default: ships)")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS[:4]), help="what to draw, side by side")
    parser.add_argument("--scale", type=float, default=0.5, help="strength of the adapter (default: 0.5)")
    options.add_common(parser, "--steps", default=16)
    options.add_common(parser, "--guidance", default=3.0)
    options.add_common(parser, "--seed", "--overwrite")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import torch

    from brickwork.adapters.resadapter.functions import load_resadapter, set_resadapter_scale
    from brickwork.eval.report.pictures import made_by, save_picture
    from brickwork.eval.sampling.pipelines import load_pipeline
    from brickwork.files import check_file

    if args.output.suffix != ".png":
        raise ValueError(f"`--output` is {str(args.output)!r}; give a name that ends in .png.")
    check_file(args.output, made_by("brickwork demo resadapter"), overwrite=args.overwrite)
    options.check_at_least(args, 1, "steps")
    folder = find_weights(args.weights)
    pipeline = load_pipeline(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    load_resadapter(pipeline, folder / ADAPTER, scale=args.scale)
    rows = []
    for height, width in SIZES:
        for caption, scale in (("without ResAdapter", 0.0), ("with ResAdapter", args.scale)):
            set_resadapter_scale(pipeline, scale)
            started = time.perf_counter()
            # Picture k has its own seed, whatever the size.
            generators = [torch.Generator().manual_seed(args.seed + k) for k in range(len(args.prompts))]
            pictures = pipeline(list(args.prompts), height=height, width=width, generator=generators, **call).images
            rows.append((f"{height} x {width}, {caption}", pictures))
            print(f"{rows[-1][0]}: {len(pictures)} pictures in {time.perf_counter() - started:.1f} s")
    save_picture(compose(rows), args.output, "brickwork demo resadapter")
    print(f"wrote {args.output}")


def find_weights(name: str) -> Path:
    """A pipeline's folder with a ResAdapter in it, given or shipped.

    Raises:
        ValueError: where there is none.
    """
    import brickwork

    folder = Path(name)
    if not folder.is_dir():
        folder = brickwork.pretrained(name)
    if not (folder / "model_index.json").is_file() or not (folder / ADAPTER).is_dir():
        raise ValueError(
            f"`--weights` is {name!r}; give {WEIGHTS}, or a Stable Diffusion folder with the two files of a "
            f"ResAdapter in its sub-folder {ADAPTER}."
        )
    return folder
