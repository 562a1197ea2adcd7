"""A denoiser whose encoder's blocks come from a classifier trained on ImageNet."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from brickwork.gen.blocks.modulation import BlockModulation
from brickwork.gen.networks.unet import BlockUNet2DModel

_CONVS = {f"{ours}{n}": f"{theirs}{n}" for n in (1, 2, 3) for ours, theirs in (("conv", "conv"), ("norm", "bn"))}
_SHORTCUT = {"shortcut.conv": "downsample.0", "shortcut.norm": "downsample.1"}
_AVERAGED = {"shortcut.conv": "downsample.1", "shortcut.norm": "downsample.2"}
_SEPARABLE = (("depthwise", "conv_dw"), ("pointwise.conv", "conv_pw"), ("pointwise.norm", "bn"))
_OSA = {"squeeze.fc": "attn.fc", "concat.conv": "conv_concat.conv", "concat.norm": "conv_concat.bn"}
_OSA |= {"squeeze_conv.conv": "conv_reduction.conv", "squeeze_conv.norm": "conv_reduction.bn"}
_OSA |= {
    f"convs.{n}.{o}": f"conv_mid.{n}.{t}" for n in range(9) for o, t in (*_SEPARABLE, ("conv", "conv"), ("norm", "bn"))
}
_SRA = {"norm1": "layer_norm_1", "norm2": "layer_norm_2", "mlp.fc1": "mlp.dense1", "mlp.fc2": "mlp.dense2"}
_SRA |= {"attn.q": "attention.self.query", "attn.proj": "attention.output.dense"}
_SRA |= {"attn.reduction": "attention.self.sequence_reduction", "attn.norm": "attention.self.layer_norm"}

# block: (names of a classifier's blocks, with stage and number; layer of ours => theirs).
LAYOUTS = {
    "resnet_rs": (r"layer(\d+)\.(\d+)\.", _CONVS | _AVERAGED | {f"squeeze.fc{n}": f"se.fc{n}" for n in (1, 2)}),
    "basic": (r"layer(\d+)\.(\d+)\.", _CONVS | _SHORTCUT),
    "osa": (r"stages\.(\d+)\.blocks\.(\d+)\.", _OSA),
    "sra": (r"(?:pvt\.)?encoder\.block\.(\d+)\.(\d+)\.", _SRA),
}

Tensors = dict[str, torch.Tensor]


def from_pretrained_encoder(
    source: str | Path | nn.Module | Mapping[str, torch.Tensor], **config: object
) -> BlockUNet2DModel:
    """A network with the blocks of a classifier in its encoder, and everything else fresh.

    The layouts are those of timm's ResNet-RS (`resnet_rs`), torchvision's and timm's ResNet-18 and -34 (`basic`),
    timm's VoVNet with eSE (`osa`), and transformers' PVT (`sra`). A block that changes the shape of its map becomes
    the way down between two stages where ours has one of its kind; stems, heads, and blocks without a counterpart
    stay behind. The gates of what was loaded start at 1, shift and scale at 0: it computes what it did.

    Args:
        source: a classifier, its state dict, its `.safetensors`, or a folder with `model.safetensors`.
        config: what `BlockUNet2DModel` takes; blocks, widths and layers are the classifier's unless given.

    Raises:
        ValueError: for an unknown layout, or for stages whose blocks or widths are not those of the classifier.
    """
    tensors = _read(source)
    kind, blocks = _blocks_of(tensors)
    derived, positions = _described(kind, blocks)
    _check_widths(config.get("block_out_channels"), derived["block_out_channels"])
    model = BlockUNet2DModel(**derived | _heads_of(source) | config)
    modules = dict(model.named_modules())
    for position, key in positions.items():
        if position in modules:  # a configuration may have fewer layers
            _fill(modules[position], position, kind, blocks[key])
    return model


def _read(source: str | Path | nn.Module | Mapping[str, torch.Tensor]) -> Tensors:
    if isinstance(source, nn.Module):
        return source.state_dict()
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source).expanduser()
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file() or path.suffix != ".safetensors":
        raise ValueError(f"`source` is {str(source)!r}; give a .safetensors file, or a folder with model.safetensors.")
    return load_file(path)


def _blocks_of(tensors: Tensors) -> tuple[str, dict[tuple[int, int], Tensors]]:
    """The kind of block of ours, and the tensors of each of the classifier's by stage and number, from 0."""
    for kind, (pattern, _) in LAYOUTS.items():
        blocks: dict[tuple[int, int], Tensors] = {}
        for key, tensor in tensors.items():
            found = re.match(pattern, key)
            if found:
                blocks.setdefault((int(found[1]), int(found[2])), {})[key[found.end() :]] = tensor
        bottleneck = any("se.fc1.weight" in block for block in blocks.values())
        plain = any("conv2.weight" in block and "conv3.weight" not in block for block in blocks.values())
        if blocks and {"resnet_rs": bottleneck, "basic": plain}.get(kind, True):
            first = min(stage for stage, _ in blocks)
            return kind, {(stage - first, number): block for (stage, number), block in blocks.items()}
    raise ValueError(
        f"`source` has no blocks of a known layout among its {len(tensors)} tensors; known are {', '.join(LAYOUTS)}: "
        "timm's ResNet-RS, ResNet-18 and -34, VoVNet with eSE, and transformers' PVT."
    )


def _described(kind: str, blocks: dict[tuple[int, int], Tensors]) -> tuple[dict, dict[str, tuple[int, int]]]:
    """The configuration of a network with such an encoder, and for its blocks by name the classifier's."""
    count = 1 + max(stage for stage, _ in blocks)
    widths, layers, options = [0] * count, [0] * count, [{} for _ in range(count)]
    positions: dict[str, tuple[int, int]] = {}
    for stage, number in sorted(blocks):
        dim, widths[stage], own = _shape_of(kind, blocks[stage, number])
        if dim == widths[stage] and "downsample.0.weight" not in blocks[stage, number]:
            positions[f"down_blocks.{stage}.blocks.{layers[stage]}"] = (stage, number)
            layers[stage] += 1
            options[stage] = own
        elif stage and kind in ("basic", "resnet_rs"):
            positions[f"down_blocks.{stage - 1}.downsample"] = (stage, number)
    config = {"block_types": kind, "block_out_channels": widths, "layers_per_block": layers, "stage_options": options}
    if kind in ("basic", "resnet_rs"):
        config["downsample"] = "block"
    return config, positions


def _shape_of(kind: str, block: Tensors) -> tuple[int, int, dict]:
    """Channels in and out of a classifier's block, and the options of ours that is like it."""
    if kind in ("basic", "resnet_rs"):
        last = block["conv3.weight" if kind == "resnet_rs" else "conv2.weight"]
        return block["conv1.weight"].shape[1], last.shape[0], {"conv_norm": "batch"}
    if kind == "osa":
        depthwise = "conv_mid.0.conv_dw.weight" in block
        num_convs = len({key.split(".")[1] for key in block if key.startswith("conv_mid.")})
        width = block["conv_mid.0.conv_pw.weight" if depthwise else "conv_mid.0.conv.weight"].shape[0]
        out_dim, concatenated = block["conv_concat.conv.weight"].shape[:2]
        own = {"conv_norm": "batch", "depthwise": depthwise, "num_convs": num_convs}
        return concatenated - num_convs * width, out_dim, own | {"mid_ratio": (width + 0.5) / out_dim}
    dim, reduction = block["layer_norm_1.weight"].shape[0], block.get("attention.self.sequence_reduction.weight")
    own = {"sr_ratio": 1 if reduction is None else reduction.shape[-1]}
    return dim, dim, own | {"mlp_ratio": block["mlp.dense1.weight"].shape[0] / dim}


def _check_widths(given: object, wanted: list[int]) -> None:
    if given is None or list(given) == wanted:
        return
    pairs = list(zip(given, wanted))
    stage = next((number for number, (ours, theirs) in enumerate(pairs) if ours != theirs), len(pairs))
    has = f"{given[stage]} channels" if stage < len(given) else "no channels"
    fits = f"{wanted[stage]}" if stage < len(wanted) else "no such stage"
    raise ValueError(
        f"`block_out_channels` gives stage {stage + 1} {has}, where the encoder has {fits}; leave it out, or give "
        f"{wanted}."
    )


def _heads_of(source: object) -> dict:
    """Heads of a classifier of transformers, or of the folder of one; the weights do not say."""
    if isinstance(source, nn.Module):
        heads = getattr(getattr(source, "config", None), "num_attention_heads", None)
    elif isinstance(source, (str, Path)) and (Path(source).expanduser() / "config.json").is_file():
        heads = json.loads((Path(source).expanduser() / "config.json").read_text()).get("num_attention_heads")
    else:
        heads = None
    return {} if heads is None else {"num_attention_heads": list(heads) if isinstance(heads, (list, tuple)) else heads}


@torch.no_grad()
def _fill(block: nn.Module, position: str, kind: str, tensors: Tensors) -> None:
    """Copy a classifier's tensors into a block of ours, and open its gates."""
    names = LAYOUTS[kind][1]
    for key, ours in block.state_dict().items():
        layer, _, part = key.rpartition(".")
        if key.startswith(("modulation.", "text_attn.")) or part == "num_batches_tracked":
            continue
        if layer == "attn.kv":
            both = [tensors.get(f"attention.self.{name}.{part}") for name in ("key", "value")]
            theirs = None if any(one is None for one in both) else torch.cat(both)
        else:
            theirs = tensors.get(f"{names.get(layer)}.{part}")
        if theirs is None or theirs.numel() != ours.numel():
            found = "none" if theirs is None else f"one of shape {tuple(theirs.shape)}"
            raise ValueError(
                f"`source` does not fit {position} ({kind}): {key!r} needs a tensor of shape {tuple(ours.shape)}, and "
                f"there is {found}; choose a classifier of this kind of block, or leave the options of blocks out."
            )
        ours.copy_(theirs.reshape(ours.shape))
    modulation = block.modulation
    if isinstance(modulation, BlockModulation) and modulation.per_layer == 3:
        modulation.vectors.linear.bias.unflatten(0, (modulation.num_layers, 3, -1))[:, 2] = 1
