"""`brickwork convert lego` and `brickwork convert dit`: checkpoints of other authors as model folders."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from brickwork import options
from brickwork.files import check_folder, new_folder


def configure_lego(parser: argparse.ArgumentParser) -> None:
    """Write a checkpoint of the LEGO authors as a model folder that LegoTransformer2DModel.from_pretrained loads.
    Nothing in the checkpoint is run.

    example: brickwork convert lego LEGO-L-PG-64.pkl lego-l-pg-64
    """
    _add_folders(parser, "the authors' .pkl, or its state dict as .safetensors or .pt")
    parser.set_defaults(run=run_lego)


def configure_dit(parser: argparse.ArgumentParser) -> None:
    """Write a DiT checkpoint, of its authors or of diffusers, as a model folder that
    BlockTransformer2DModel.from_pretrained loads. Nothing in the checkpoint is run.

    example: brickwork convert dit DiT-XL-2-256x256.pt dit-xl-2-256
    """
    _add_folders(parser, "the authors' .pt, a .safetensors file, or a folder of diffusers' DiT")
    parser.add_argument(
        "--attention-head-dim", type=int, help="channels of a head, where the width is not the paper's"
    )
    parser.set_defaults(run=run_dit)


def _add_folders(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("input", metavar="IN", type=Path, help=source)
    options.add_target(parser, "output", "the folder to write", metavar="OUT")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if this command wrote it")


def run_lego(args: argparse.Namespace) -> None:
    from brickwork.gen.networks.lego import LegoTransformer2DModel

    load = partial(LegoTransformer2DModel.from_original, args.input)
    _convert(args, "brickwork convert lego", load, _describe_lego)


def run_dit(args: argparse.Namespace) -> None:
    from brickwork.gen.networks.transformer import BlockTransformer2DModel

    load = partial(BlockTransformer2DModel.from_original, args.input, args.attention_head_dim)
    _convert(args, "brickwork convert dit", load, _describe_dit)


def _convert(args: argparse.Namespace, maker: str, load: Callable[[], Any], describe: Callable[[Any], str]) -> None:
    """Write what `load` gives as the model folder OUT, complete or not at all, and print what it is."""
    output = options.target(args, "output")
    check_folder(output, maker, overwrite=args.overwrite, argument="OUT")
    model = load()
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"{describe(model.config)}; {model.num_parameters() / 1e6:.1f}M parameters in {dtype}")
    with new_folder(output, maker, overwrite=args.overwrite, argument="OUT") as folder:
        model.save_pretrained(folder)
    print(f"written to {output}")


def _describe_lego(config: Any) -> str:
    from brickwork.gen.original.lego_checkpoints import preset_name

    name = preset_name(config) or "a stack of its own"
    windows = " -> ".join(map(str, config["window_sizes"]))
    classes = "unconditional" if config["num_classes"] is None else f"{config['num_classes']} classes"
    return (
        f"{name}: windows {windows}; patches {tuple(config['patch_sizes'])}; blocks {tuple(config['num_layers'])}; "
        f"width {config['hidden_sizes']}; heads {config['num_attention_heads']}; {config['in_channels']} channels; "
        f"{classes}"
    )


def _describe_dit(config: Any) -> str:
    return (
        f"DiT: {config.num_layers} blocks; width {config.hidden_size}; heads of {config.attention_head_dim}; patch "
        f"{config.patch_size}; {config.in_channels} => {config.out_channels} channels at {config.sample_size}×"
        f"{config.sample_size}; {config.num_classes} classes"
    )
