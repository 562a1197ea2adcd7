"""`brickwork convert dit`: a DiT checkpoint as a model folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from brickwork.gen.original.model_folder import add_folder_arguments, convert_to_folder

if TYPE_CHECKING:
    from brickwork.gen.networks.transformer import BlockTransformer2DModel


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `brickwork convert dit`."""
    parser.description = (
        "Write a DiT checkpoint, of its authors or of diffusers, as a model folder that "
        "BlockTransformer2DModel.from_pretrained loads. Nothing in the checkpoint is run."
    )
    parser.epilog = "example: brickwork convert dit DiT-XL-2-256x256.pt dit-xl-2-256"
    add_folder_arguments(parser, "the authors' .pt, a .safetensors file, or a folder of diffusers' DiT")
    parser.add_argument(
        "--attention-head-dim", type=int, help="channels of a head, where the width is none of the paper's"
    )
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
    from brickwork.gen.networks.transformer import BlockTransformer2DModel

    convert_to_folder(
        lambda: BlockTransformer2DModel.from_original(source, attention_head_dim), _describe, folder, overwrite
    )


def _describe(model: "BlockTransformer2DModel") -> str:
    config = model.config
    return (
        f"DiT: {config.num_layers} blocks; width {config.hidden_size}; heads of {config.attention_head_dim}; patch "
        f"{config.patch_size}; {config.in_channels} => {config.out_channels} channels at {config.sample_size}×"
        f"{config.sample_size}; {config.num_classes} classes"
    )
