"""Where a network's self-attentions over a whole map are, and of which stage."""

import re
from dataclasses import dataclass, replace

from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from brickwork.adapters.kv_compression.layer import Compress, CompressInput, CompressProjection

_STAGE = re.compile(r"(?:.*\.)?(?:(down|up)_blocks\.(\d+)|(mid)_block)\.")
_LAYER = re.compile(r"(?:.*\.)?(?:transformer_)?blocks\.(\d+)\.")
SUPPORTED = (
    "UNet2DConditionModel, DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, or a network of "
    "ours with blocks 'dit' (without windows) or 'sra'"
)


@dataclass(frozen=True)
class Site:
    """A self-attention in which every token of a map attends to all.

    Attributes:
        name: of the attention.
        stage: counted from 0, of a U-shaped network from the highest resolution down, of a stack its block.
        source: name of the module that is called with the map; empty for the network itself.
        patch: pixels of that map along a token.
        dim: width of a token.
        hook: kind of hook.
        at: names of the modules below the attention that the hook goes before; empty for the attention itself.
    """

    name: str
    stage: int
    source: str
    patch: int
    dim: int
    hook: type[Compress]
    at: tuple[str, ...] = ("",)


def is_stack(network: nn.Module) -> bool:
    """Whether the network works at one resolution, so that its stages are its blocks."""
    return not hasattr(network, "down_blocks")


def count_stages(network: nn.Module) -> int:
    """Stages that a network has."""
    if not is_stack(network):
        return len(network.down_blocks)
    return len(getattr(network, "transformer_blocks", None) or network.blocks)


def find_sites(network: nn.Module) -> list[Site]:
    """All self-attentions of a network over whole maps that can be compressed.

    Raises:
        ValueError: for a network without any, saying which have some.
    """
    sites = []
    for name, module in network.named_modules():
        if isinstance(module, Transformer2DModel) and module.is_input_continuous:
            sites += _of_blocks(f"{name}.transformer_blocks", module.transformer_blocks, name, 1)
        elif getattr(module, "map_attentions", ()):
            for attention in module.map_attentions:
                layer = module.get_submodule(attention)
                sites.append(Site(f"{name}.{attention}", 0, name, 1, layer.proj.in_features, CompressInput))
    if not sites and is_stack(network) and hasattr(network, "transformer_blocks"):
        patch = getattr(network.config, "patch_size", None) or 1
        sites = _of_blocks("transformer_blocks", network.transformer_blocks, "", patch)
    stages = {site.name: _stage_of(network, site.name) for site in sites}
    found = [replace(site, stage=stages[site.name]) for site in sites if stages[site.name] is not None]
    if not found:
        parts = [name for name, _ in network.named_children()]
        rotary = any("rope" in name or "rotary" in name or name == "pos_embed" for name in parts)
        reason = "turns its keys by rotary positions of the whole map" if rotary else "has none"
        raise ValueError(
            f"`model` is a {type(network).__name__}, which {reason}: no self-attention there can be compressed; "
            f"give a {SUPPORTED}."
        )
    return found


def _of_blocks(prefix: str, blocks: nn.ModuleList, source: str, patch: int) -> list[Site]:
    """The self-attentions of a list of diffusers' transformer blocks."""
    sites = []
    for number, block in enumerate(blocks):
        if isinstance(block, BasicTransformerBlock) and not block.only_cross_attention:
            dim = block.attn1.to_k.in_features
            sites.append(Site(f"{prefix}.{number}.attn1", 0, source, patch, dim, CompressInput))
        elif isinstance(block, JointTransformerBlock):
            for name in ("attn", "attn2"):
                if getattr(block, name, None) is not None:
                    dim, at = getattr(block, name).to_k.in_features, ("to_k", "to_v")
                    sites.append(Site(f"{prefix}.{number}.{name}", 0, source, patch, dim, CompressProjection, at))
    return sites


def _stage_of(network: nn.Module, name: str) -> int | None:
    """The stage of an attention by its name; `None` for those of a neck, which has stages of its own."""
    if is_stack(network):
        found = _LAYER.match(name)
        return int(found[1]) if found else None
    found, lowest = _STAGE.match(name), len(network.down_blocks) - 1
    if found is None:
        return None
    side, number, middle = found.groups()
    return lowest if middle else int(number) if side == "down" else lowest - int(number)
