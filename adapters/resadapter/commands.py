"""`brickwork merge` and `brickwork convert resadapter`: their arguments, and what they print."""

import argparse
from pathlib import Path

from brickwork import options


def configure_merge(parser: argparse.ArgumentParser) -> None:
    """Bake a ResAdapter into a checkpoint, for programs that load no adapters.

    example:
      brickwork merge model.safetensors resadapter_v2_sd1.5 merged.safetensors --scale 0.7
    """
    parser.add_argument("base", help="a checkpoint, the folder of a pipeline or a UNet, or a name on the Hub")
    parser.add_argument("adapter", help="the adapter: a file, an authors' folder, or owner/name/folder on the Hub")
    options.add_target(parser, "dst", "where to write the result: a file or a folder, as the base is; must not exist")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of LoRA and norms (default: 1.0)")
    parser.add_argument("--lora-scale", type=float, help="strength of the LoRA alone")
    parser.add_argument("--norm-scale", type=float, help="strength of the norms alone")
    options.add_hub(parser, "adapters and bases", beside_adapter=True)
    parser.set_defaults(run=merge)


def merge(args: argparse.Namespace) -> None:
    """Merge and print where to."""
    dst = options.target(args, "dst")
    from brickwork.adapters.hub import local_adapter
    from brickwork.adapters.resadapter.merge import merge_resadapter
    from brickwork.hub import local_copy

    args.adapter = local_adapter(args.adapter, "adapter", **options.of_hub(args, "revision", "token"))
    strengths = {"scale": args.scale, "lora_scale": args.lora_scale, "norm_scale": args.norm_scale}
    base = args.base
    if base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists():
        base = local_copy(base, "base", "checkpoint", **options.of_base(args))
    print("wrote", merge_resadapter(base, args.adapter, dst, **strengths))


def configure_convert(parser: argparse.ArgumentParser) -> None:
    """Convert a ResAdapter between the authors' folder, a diffusers LoRA and one ComfyUI file.

    example:
      brickwork convert resadapter resadapter_v2_sd1.5 resadapter.safetensors --to comfyui \\
          --base-model stable-diffusion-v1-5/stable-diffusion-v1-5
    """
    parser.add_argument("src", help="the adapter: a file, an authors' folder, or owner/name/folder on the Hub")
    options.add_target(parser, "dst", "a folder for --to official, else a .safetensors path")
    parser.add_argument("--to", required=True, help="the form to write: official, diffusers or comfyui")
    parser.add_argument(
        "--base-model",
        help="the model it was trained on: a Hub id, a pipeline or UNet folder, or a .safetensors checkpoint; "
        "needed to or from comfyui",
    )
    parser.add_argument("--naming", help="module names in the comfyui file: diffusers, compvis (default: fitting)")
    parser.add_argument(
        "--norm-keys", help="names of the comfyui file's norms: norm (default), or diff for stable-diffusion.cpp"
    )
    parser.add_argument(
        "--norm-type", default="float64", help="of the comfyui file's norms: float64 (default) or float32"
    )
    parser.add_argument(
        "--text-width",
        action="store_true",
        help="add zeros to the comfyui file by which InvokeAI tells the family; they change nothing",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    options.add_hub(parser, "adapters and bases", beside_adapter=True)
    parser.set_defaults(run=convert)


def convert(args: argparse.Namespace) -> None:
    """Convert and print the files written."""
    dst = options.target(args, "dst")
    from brickwork.adapters.hub import local_adapter
    from brickwork.adapters.resadapter.convert import convert_resadapter

    args.src = local_adapter(args.src, "src", **options.of_hub(args, "revision", "token"))
    given = ("to", "base_model", "naming", "norm_keys", "norm_type", "text_width", "overwrite")
    chosen = {name: getattr(args, name) for name in given}
    for file in convert_resadapter(args.src, dst, base_options=options.of_base(args), **chosen):
        print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")
