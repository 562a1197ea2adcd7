"""Encode a run's data set once: its pictures with a VAE (set data.latents to the result), or its captions with the
text encoders of a pipeline. A cache is refused where data or networks are no longer those that it was made of.

example: brickwork data cache --output latents --vae stabilityai/sd-vae-ft-mse --config run.yaml
         brickwork data cache --output texts --captions text --pipeline my-sd --config run.yaml
"""

import argparse
from pathlib import Path

from brickwork import options


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the cache")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--vae", help="encode the pictures with this AutoencoderKL: a folder or a hub name")
    kind.add_argument("--captions", metavar="COLUMN", help="encode the captions in this column")
    parser.add_argument("--pipeline", help="whose text encoders to use for --captions: a folder or a hub name")
    parser.add_argument("--dtype", help="of cached captions: float32, float16, bfloat16 (default: the encoders' own)")
    options.add_common(parser, "--config", "--overwrite", "overrides")
    options.add_hub(parser, "--vae or --pipeline")
    parser.set_defaults(run=run_cache)


def run_cache(args: argparse.Namespace) -> int:
    """Build the cache."""
    from brickwork.eval.sampling.pipelines import load_vae
    from brickwork.files import check_folder
    from brickwork.training.config.config import load_config
    from brickwork.training.data.cache import MAKER, cache_latents
    from brickwork.training.data.images import images_of

    if bool(args.captions) != bool(args.pipeline):
        raise ValueError("`--captions` and `--pipeline` belong together: name the column and whose encoders to use.")
    check_folder(args.output, MAKER, overwrite=args.overwrite, argument="--output")
    images = images_of(load_config(args.config, args.overrides).data)
    if args.captions:
        return _cache_captions(args, images)
    path = cache_latents(args.output, images, load_vae(args.vae, **options.of_hub(args)), args.vae, args.overwrite)
    print(f"The latents of {len(images):,} images are in {path}; train with data.latents={path}.")
    return 0


def _cache_captions(args: argparse.Namespace, images) -> int:
    import torch

    from brickwork.errors import one_of
    from brickwork.training.data.text_cache import cache_texts, captions_of, load_text_encoders

    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    dtype = one_of("--dtype", args.dtype, dtypes) if args.dtype else None
    captions = captions_of(images, args.captions)
    pipeline = load_text_encoders(args.pipeline, **options.of_hub(args))
    path = cache_texts(args.output, captions, pipeline, dtype, args.pipeline, overwrite=args.overwrite)
    print(f"{len(set(captions)):,} different captions of {len(images):,} images are in {path}.")
    return 0
