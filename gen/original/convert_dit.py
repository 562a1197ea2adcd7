"""`brickwork convert dit`: a DiT checkpoint as a model folder."""

import argparse
from pathlib import Path


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `brickwork convert dit`."""
    parser.description = (
        "Write a DiT checkpoint, of its authors or of diffusers, as a model folder that "
        "BlockTransformer2DModel.from_pretrained loads. Nothing in the checkpoint is run."
    )
    parser.epilog = "example: brickwork convert dit DiT-XL-2-256x256.pt dit-xl-2-256"
    parser.add_argument(
        "input", metavar="IN", type=Path, help="the authors' .pt, a .safetensors file, or a folder of diffusers' DiT"
    )
    parser.add_argument("output", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument(
        "--attention-head-dim", type=int, help="channels of a head, where the width is none of the paper's"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a model folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    convert_dit(args.input, args.output, args.attention_head_dim, args.overwrite)


def convert_dit(
    source: str | Path, folder: str | Path, attention_head_dim: int | None = None, overwrite: bool = False
) -> None:
    """Write the checkpoint `source` as the model folder `folder` and print what it is.

    Args:
        source: see `load_original_dit`.
        folder: written under another name beside it and renamed when complete.
        attention_head_dim: see `load_original_dit`.
        overwrite: replace `folder` if it holds a model (or nothing).

    Raises:
        ValueError: if `source` is no DiT checkpoint, or `folder` is there and may not be replaced.
    """
    from brickwork.gen.original.model_folder import check_target, write_model_folder
    from brickwork.gen.transformer import BlockTransformer2DModel

    folder = Path(folder)
    check_target(folder, overwrite)
    model = BlockTransformer2DModel.from_original(source, attention_head_dim)
    config = model.config
    print(
        f"DiT: {config.num_layers} blocks; width {config.hidden_size}; heads of {config.attention_head_dim}; patch "
        f"{config.patch_size}; {config.in_channels} => {config.out_channels} channels at {config.sample_size}×"
        f"{config.sample_size}; {config.num_classes} classes; {model.num_parameters() / 1e6:.1f}M parameters in "
        f"{str(model.dtype).removeprefix('torch.')}"
    )
    write_model_folder(model, folder)
    print(f"written to {folder}")
