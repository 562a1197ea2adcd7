"""DiT checkpoints of the authors, and of diffusers, as configuration and state dict of `BlockTransformer2DModel`.

Sources of the names: facebookresearch/DiT (arXiv 2212.09748) and diffusers' `DiTTransformer2DModel`.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from brickwork.errors import explained
from brickwork.files import read_json
from brickwork.gen.conditioning import NUM_FREQUENCIES, sincos_position_table
from brickwork.gen.original.files import check_position_table, check_shapes, load_original_file, our_layout, tensor_of
from brickwork.gen.presets import TRANSFORMER_PRESETS

# Our layer in a block => the authors' layer in a block => diffusers' (several are put together along the outputs).
_BLOCK_LAYERS = (
    ("core.attn.qkv", "attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    ("core.attn.proj", "attn.proj", ("attn1.to_out.0",)),
    ("core.mlp.fc1", "mlp.fc1", ("ff.net.0.proj",)),
    ("core.mlp.fc2", "mlp.fc2", ("ff.net.2",)),
    ("core.modulation.linear", "adaLN_modulation.1", ("norm1.linear",)),
)
_EMBEDDER = "transformer_blocks.0.norm1.emb"  # the other blocks repeat it
# diffusers' layer outside the blocks => the authors'.
_FROM_DIFFUSERS = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
    f"{_EMBEDDER}.timestep_embedder.linear_1": "t_embedder.mlp.0",
    f"{_EMBEDDER}.timestep_embedder.linear_2": "t_embedder.mlp.2",
    f"{_EMBEDDER}.class_embedder.embedding_table": "y_embedder.embedding_table",
}


def load_original_dit(path: str | Path, attention_head_dim: int | None = None) -> tuple[dict, dict]:
    """Read a DiT checkpoint without running anything in it.

    Args:
        path: the authors' `DiT-XL-2-256x256.pt`, either layout as `.safetensors`, or a folder that diffusers saved
            (the network's own, or the pipeline's).
        attention_head_dim: channels of a head. The tensors do not show them: needed where the width is none of the
            paper's and no `config.json` says so.

    Returns:
        Arguments for `BlockTransformer2DModel`, and its state dict in the stored dtype.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    path = Path(path)
    stored, weights = {}, path
    if path.is_dir():
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        weights, described = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
        stored = read_json(described, "configuration") if described.is_file() else {}
        if stored.get("_class_name") != "DiTTransformer2DModel":
            raise ValueError(f"{str(described)!r} does not describe a DiTTransformer2DModel; give a folder with one.")
    tensors, _ = load_original_file(weights)
    with explained(f"{str(path)!r} is no DiT checkpoint", ValueError):
        head_dim = attention_head_dim or stored.get("attention_head_dim")
        return convert_original_dit(tensors, head_dim, stored.get("sample_size"))


def convert_original_dit(
    tensors: dict[str, torch.Tensor], attention_head_dim: int | None = None, sample_size: int | None = None
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Translate the authors' or diffusers' tensors; arguments and result as for `load_original_dit`."""
    diffusers_layout = any(name.startswith("transformer_blocks.") for name in tensors)
    if diffusers_layout:
        tensors = _from_diffusers(tensors)
    config = _recognise(tensors, sample_size)
    config["attention_head_dim"] = _head_dim(config["hidden_size"], attention_head_dim)
    config["freq_shift"] = int(diffusers_layout)
    _check_tensors(tensors, config)
    state_dict = {}
    for theirs, ours, _ in _layers(config):
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in tensors:
                tensor = tensors[f"{theirs}.{kind}"]
                state_dict[f"{ours}.{kind}"] = our_layout(theirs, tensor, config["out_channels"])
    state_dict["pos_embed"] = _position_table(tensors, config)
    return config, state_dict


def _from_diffusers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' tensors under the authors' names."""
    for name in [name for name in tensors if ".norm1.emb." in name]:
        first = f"{_EMBEDDER}.{name.split('.norm1.emb.')[1]}"
        if first not in tensors or not torch.equal(tensors[name], tensors[first]):
            raise ValueError(f"`{name}` differs from that of the first block; a DiT has one time and class embedding.")
    layers = {theirs: [name] for name, theirs in _FROM_DIFFUSERS.items()}
    for block in {name.split(".")[1] for name in tensors if name.startswith("transformer_blocks.")}:
        for _, theirs, parts in _BLOCK_LAYERS:
            layers[f"blocks.{block}.{theirs}"] = [f"transformer_blocks.{block}.{part}" for part in parts]
    return {
        f"{theirs}.{kind}": torch.cat([tensors[f"{name}.{kind}"] for name in names])
        for theirs, names in layers.items()
        for kind in ("weight", "bias")
        if all(f"{name}.{kind}" in tensors for name in names)
    }


def _recognise(tensors: dict[str, torch.Tensor], sample_size: int | None) -> dict:
    """Read the network off the few tensors that show it; whether the others agree is for `_check_tensors`."""
    patch = tensor_of(tensors, "x_embedder.proj.weight", 4)
    classes = tensor_of(tensors, "y_embedder.embedding_table.weight", 2)
    hidden = tensor_of(tensors, "blocks.0.mlp.fc1.weight", 2)
    head = tensor_of(tensors, "final_layer.linear.weight", 2)
    width, in_channels, side = patch.shape[:3]
    if "pos_embed" in tensors:
        sample_size = side * math.isqrt(tensor_of(tensors, "pos_embed", 3).shape[1])
    return {
        "sample_size": sample_size or 32,
        "patch_size": side,
        "in_channels": in_channels,
        "out_channels": head.shape[0] // side**2,
        "num_classes": classes.shape[0] - 1,
        "num_layers": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "hidden_size": width,
        "mlp_ratio": hidden.shape[0] / width,
    }


def _head_dim(width: int, given: int | None) -> int:
    published = [preset for preset in TRANSFORMER_PRESETS.values() if preset["block_types"] == "dit"]
    known = {preset["hidden_size"]: preset["attention_head_dim"] for preset in published}
    head_dim = given or known.get(width)
    if head_dim is None:
        raise ValueError(f"the tensors do not show the heads of a width of {width}; give `attention_head_dim`.")
    if width % head_dim:
        raise ValueError(f"`attention_head_dim` is {head_dim}, which does not divide the width {width}.")
    return head_dim


def _layers(config: dict) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every layer of the network: the authors' name, ours, and the shape of the authors' weight."""
    width, patch, channels = config["hidden_size"], config["patch_size"], config["in_channels"]
    mlp_width = int(width * config["mlp_ratio"])
    yield "t_embedder.mlp.0", "condition.time_embed.linear_1", (width, NUM_FREQUENCIES)
    yield "t_embedder.mlp.2", "condition.time_embed.linear_2", (width, width)
    yield "y_embedder.embedding_table", "condition.class_embed", (config["num_classes"] + 1, width)
    yield "x_embedder.proj", "patch_embed", (width, channels, patch, patch)
    yield "final_layer.adaLN_modulation.1", "final_modulation.linear", (2 * width, width)
    yield "final_layer.linear", "proj_out", (patch * patch * config["out_channels"], width)
    shapes = ((3 * width, width), (width, width), (mlp_width, width), (width, mlp_width), (6 * width, width))
    for block in range(config["num_layers"]):
        for (ours, theirs, _), shape in zip(_BLOCK_LAYERS, shapes):
            yield f"blocks.{block}.{theirs}", f"blocks.{block}.{ours}", shape


def _check_tensors(tensors: dict[str, torch.Tensor], config: dict) -> None:
    """All tensors of such a network are there, in their shapes, and no others."""
    expected = {}
    for theirs, _, shape in _layers(config):
        expected[f"{theirs}.weight"] = shape
        if not theirs.startswith("y_embedder"):
            expected[f"{theirs}.bias"] = shape[:1]
    if "pos_embed" in tensors:
        side = -(-config["sample_size"] // config["patch_size"])
        expected["pos_embed"] = (1, side * side, config["hidden_size"])
    check_shapes(tensors, expected)


def _position_table(tensors: dict[str, torch.Tensor], config: dict) -> torch.Tensor:
    """The fixed table of the training grid, `(tokens, width)`; a trained one could not be continued to other sizes."""
    side = -(-config["sample_size"] // config["patch_size"])
    if "pos_embed" in tensors:
        check_position_table("pos_embed", tensors["pos_embed"][0], side)
        return tensors["pos_embed"][0]
    return sincos_position_table(config["hidden_size"], side, side).to(tensors["x_embedder.proj.weight"].dtype)
