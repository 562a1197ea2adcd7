"""The LEGO authors' checkpoints as configuration and state dict of `LegoTransformer2DModel`.

Source of the names: the code released with arXiv 2310.06389, an `EDMPrecondLEGO` around a `LEGO` with its bricks.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from brickwork.errors import explained
from brickwork.gen.conditioning import NUM_FREQUENCIES
from brickwork.gen.original.files import check_position_table, check_shapes, load_original_file, our_layout, tensor_of
from brickwork.gen.presets import LEGO_PRESETS

# Reads the labels of augmented training images. Sampling gives none, and the authors' code then skips the layer.
_UNUSED = ("map_augment.weight", "map_augment.bias")


def load_original_lego(
    path: str | Path, num_attention_heads: int | None = None
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read a checkpoint of the LEGO authors without running anything in it.

    Args:
        path: a snapshot such as `LEGO-L-PG-64.pkl`, or its state dict as `.safetensors` or saved by `torch.save`.
        num_attention_heads: heads of every brick. The tensors do not show them: needed for a bare state dict whose
            width is none of the paper's. Snapshots store them.

    Returns:
        Arguments for `LegoTransformer2DModel`, and its state dict in the stored dtype.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    tensors, attributes = load_original_file(path)
    with explained(f"{str(path)!r} is no LEGO checkpoint as the authors write it", ValueError):
        return convert_original_lego(tensors, attributes, num_attention_heads)


def convert_original_lego(
    tensors: dict[str, torch.Tensor],
    attributes: dict[str, dict] | None = None,
    num_attention_heads: int | None = None,
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Translate what `load_original_file` returns; result as of `load_original_lego`.

    Tensors have the authors' names, those of `EDMPrecondLEGO` (`model.model.0.…`) or `LEGO` (`model.0.…`).
    """
    attributes = attributes or {}
    prefix = "model." if any(name.startswith("model.model.") for name in tensors) else ""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in _UNUSED}
    config = _recognise(tensors)
    _check_tensors(tensors, config)
    num_bricks = len(config["window_sizes"])
    heads = [attributes.get(f"{prefix}model.{brick}", {}).get("num_heads") for brick in range(num_bricks)]
    config["num_attention_heads"] = _heads(config["hidden_sizes"], heads, num_attention_heads)
    trained_at = attributes.get("", {}).get("img_resolution")
    config["sample_size"] = trained_at if isinstance(trained_at, int) else max(config["window_sizes"])

    state_dict = {}
    for theirs, ours, _ in _layers(config):
        for kind in ("weight", "bias"):
            state_dict[f"{ours}.{kind}"] = our_layout(theirs, tensors[f"{theirs}.{kind}"], config["in_channels"])
    return config, state_dict


def preset_name(config: dict) -> str | None:
    """The preset with the stack of `config`, or `None` for a stack that is none of the paper's."""
    fields = ("window_sizes", "patch_sizes", "num_layers", "hidden_sizes", "num_attention_heads")
    stack = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    fits = (name for name, preset in LEGO_PRESETS.items() if all(stack[field] == preset[field] for field in fields))
    return next(fits, None)


def _recognise(tensors: dict[str, torch.Tensor]) -> dict:
    """Read the stack off the few tensors that show it; whether the others agree is for `_check_tensors`."""
    bricks = range(len({name.split(".")[1] for name in tensors if name.startswith("model.")}))
    if not bricks:
        raise ValueError("it has no brick (`model.model.0.…`).")
    patches = [tensor_of(tensors, f"model.{brick}.x_embedder.proj.weight", 4) for brick in bricks]
    tables = [tensor_of(tensors, f"model.{brick}.pos_embed", 3) for brick in bricks]
    conditional = any(name.startswith("y_embedder.") for name in tensors)
    labels = tensor_of(tensors, "y_embedder.embedding_table.weight", 2) if conditional else None
    blocks = [{name.split(".")[3] for name in tensors if name.startswith(f"model.{i}.blocks.")} for i in bricks]
    hidden = tensor_of(tensors, "model.0.blocks.0.mlp.fc1.weight", 2)
    return {
        "in_channels": patches[0].shape[1] - 2,
        "num_classes": None if labels is None else labels.shape[1],
        "window_sizes": tuple(p.shape[2] * math.isqrt(table.shape[1]) for p, table in zip(patches, tables)),
        "patch_sizes": tuple(patch.shape[2] for patch in patches),
        "num_layers": tuple(len(numbers) for numbers in blocks),
        "hidden_sizes": patches[0].shape[0],
        "mlp_ratio": hidden.shape[0] / patches[0].shape[0],
    }


def _layers(config: dict) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every layer of the network: the authors' name, ours, and the shape of the authors' weight."""
    width, channels, classes = config["hidden_sizes"], config["in_channels"], config["num_classes"]
    mlp_width = int(width * config["mlp_ratio"])
    yield "t_embedder.mlp.0", "condition.time_embed.linear_1", (width, NUM_FREQUENCIES)
    yield "t_embedder.mlp.2", "condition.time_embed.linear_2", (width, width)
    if classes is not None:
        yield "y_embedder.embedding_table", "condition.label_embed", (width, classes)
    for brick, (patch, layers) in enumerate(zip(config["patch_sizes"], config["num_layers"])):
        theirs, ours = f"model.{brick}", f"bricks.{brick}"
        reads = channels + 2 if brick == 0 else 2 * channels + 2
        yield f"{theirs}.x_embedder.proj", f"{ours}.patch_embed", (width, reads, patch, patch)
        yield f"{theirs}.final_layer.adaLN_modulation.1", f"{ours}.final_modulation.linear", (2 * width, width)
        yield f"{theirs}.final_layer.linear", f"{ours}.proj_out", (patch * patch * channels, width)
        for block in range(layers):
            theirs, ours = f"model.{brick}.blocks.{block}", f"bricks.{brick}.blocks.{block}"
            yield f"{theirs}.attn.qkv", f"{ours}.attn.qkv", (3 * width, width)
            yield f"{theirs}.attn.proj", f"{ours}.attn.proj", (width, width)
            yield f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1", (mlp_width, width)
            yield f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2", (width, mlp_width)
            yield f"{theirs}.adaLN_modulation.1", f"{ours}.modulation.linear", (6 * width, width)


def _check_tensors(tensors: dict[str, torch.Tensor], config: dict) -> None:
    """All tensors of such a stack are there, in their shapes, and no others; position tables hold the fixed values."""
    expected = {}
    for theirs, _, shape in _layers(config):
        expected |= {f"{theirs}.weight": shape, f"{theirs}.bias": shape[:1]}
    sides = [window // patch for window, patch in zip(config["window_sizes"], config["patch_sizes"])]
    tables = {f"model.{brick}.pos_embed": side for brick, side in enumerate(sides)}
    check_shapes(tensors, expected | {name: (1, side**2, config["hidden_sizes"]) for name, side in tables.items()})
    for name, side in tables.items():
        check_position_table(name, tensors[name][0], side)


def _heads(width: int, stored: list[int | None], given: int | None) -> int | tuple[int, ...]:
    """Heads of each brick, one number if they agree: from the snapshot, else from the caller, else by the width."""
    if given is None:
        given = {preset["hidden_sizes"]: preset["num_attention_heads"] for preset in LEGO_PRESETS.values()}.get(width)
    elif any(value not in (None, given) for value in stored):
        raise ValueError(f"`num_attention_heads` is {given}, but the snapshot says {stored}; leave it out.")
    heads = tuple(given if value is None else value for value in stored)
    if None in heads:
        raise ValueError(
            f"the tensors do not show how many heads a width of {width} is split into; give `num_attention_heads`."
        )
    if any(type(value) is not int or value < 1 or width % value for value in heads):
        raise ValueError(f"the numbers of heads {heads} do not all divide the width {width}.")
    return heads[0] if len(set(heads)) == 1 else heads
