"""`brickwork merge` and `brickwork convert resadapter`: their arguments, and what they print."""

import argparse

from brickwork import options


def configure_merge(parser: argparse.ArgumentParser) -> None:
    """The arguments of `brickwork merge`."""
    parser.description = "Bake a ResAdapter into a checkpoint, for programs that load no adapters."
    parser.epilog = "example:\n  brickwork merge model.safetensors resadapter_v2_sd1.5 merged.safetensors --scale 0.7"
    parser.add_argument("base", help="a checkpoint, or the folder of a pipeline or a UNet")
    parser.add_argument("adapter", help="the adapter: a file, an authors' folder, or owner/name/folder on the Hub")
    options.add_target(parser, "dst", "where to write the result: a file or a folder, as the base is; must not exist")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of LoRA and norms (default: 1.0)")
    parser.add_argument("--lora-scale", type=float, help="strength of the LoRA alone")
    parser.add_argument("--norm-scale", type=float, help="strength of the norms alone")
    options.add_hub(parser, "the adapter's repository", "revision", "token")
    parser.set_defaults(run=merge)


def merge(args: argparse.Namespace) -> None:
    """Merge and print where to."""
    dst = options.target(args, "dst")
    from brickwork.adapters.hub import local_adapter
    from brickwork.adapters.resadapter.merge import merge_resadapter

    args.adapter = local_adapter(args.adapter, "adapter", **options.of_hub(args))
    strengths = {"scale": args.scale, "lora_scale": args.lora_scale, "norm_scale": args.norm_scale}
    print("wrote", merge_resadapter(args.base, args.adapter, dst, **strengths))


def configure_convert(parser: argparse.ArgumentParser) -> None:
    """The arguments of `brickwork convert resadapter`."""
    parser.description = "Convert a ResAdapter between the authors' folder, a diffusers LoRA and one ComfyUI file."
    parser.epilog = (
        "example:\n  brickwork convert resadapter resadapter_v2_sd1.5 resadapter.safetensors --to comfyui \\\n"
        "      --base-model stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
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
    options.add_hub(parser, "the adapter's repository", "revision", "token")
    parser.set_defaults(run=convert)


def convert(args: argparse.Namespace) -> None:
    """Convert and print the files written."""
    dst = options.target(args, "dst")
    from brickwork.adapters.hub import local_adapter
    from brickwork.adapters.resadapter.convert import convert_resadapter

    args.src = local_adapter(args.src, "src", **options.of_hub(args))
    given = ("to", "base_model", "naming", "norm_keys", "norm_type", "text_width", "overwrite")
    for file in convert_resadapter(args.src, dst, **{name: getattr(args, name) for name in given}):
        print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")
