"""`brickwork convert lego`: a checkpoint of the LEGO authors as a model folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from brickwork.gen.original.model_folder import add_folder_arguments, convert_to_folder

if TYPE_CHECKING:
    from brickwork.gen.networks.lego import LegoTransformer2DModel


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `brickwork convert lego`."""
    parser.description = (
        "Write a checkpoint of the LEGO authors as a model folder that LegoTransformer2DModel.from_pretrained loads. "
        "Nothing in the checkpoint is run."
    )
    parser.epilog = "example: brickwork convert lego LEGO-L-PG-64.pkl lego-l-pg-64"
    add_folder_arguments(parser, "the authors' .pkl, or its state dict as .safetensors or .pt")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    convert_lego(args.input, args.output, args.overwrite)


def convert_lego(source: str | Path, folder: str | Path, overwrite: bool = False) -> None:
    """Write the authors' checkpoint `source` as the model folder `folder` and print what it is.

    Args:
        source: see `load_original_lego`.
        folder: written under another name beside it and renamed when complete.
        overwrite: replace `folder` if it holds a model (or nothing).

    Raises:
        ValueError: if `source` is no checkpoint of the authors, or `folder` is there and may not be replaced.
    """
    from brickwork.gen.networks.lego import LegoTransformer2DModel

    convert_to_folder(lambda: LegoTransformer2DModel.from_original(source), _describe, folder, overwrite)


def _describe(model: "LegoTransformer2DModel") -> str:
    from brickwork.gen.original.lego import preset_name

    config = model.config
    name = preset_name(config) or "a stack of its own"
    windows = " -> ".join(map(str, config["window_sizes"]))
    classes = "unconditional" if config["num_classes"] is None else f"{config['num_classes']} classes"
    return (
        f"{name}: windows {windows}; patches {tuple(config['patch_sizes'])}; blocks {tuple(config['num_layers'])}; "
        f"width {config['hidden_sizes']}; heads {config['num_attention_heads']}; {config['in_channels']} channels; "
        f"{classes}"
    )
