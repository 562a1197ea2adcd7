"""`KVCompression`: self-attentions of a trained denoiser that read a shorter copy of their map."""

from collections.abc import Callable, Sequence

from torch import nn

from brickwork.adapters.kv_compression.layer import Compression, MapSize
from brickwork.adapters.kv_compression.sites import Site, count_stages, find_sites, is_stack
from brickwork.adapters.modules import ModuleAdapter


class KVCompression(ModuleAdapter):
    """Keys and values of the largest self-attentions come from a map with `ratio` times smaller sides.

    A depthwise strided convolution before both, which starts as the average over patches; each attention has its own.
    PixArt-Sigma (arXiv 2403.04692) made trained transformers so cheaper at high resolution, after a short fine-tune;
    the reduction itself is the Pyramid Vision Transformer's (arXiv 2102.12122). A strength between 0 and 1 blends, and
    saves nothing.
    """

    kind = "kv_compression"

    @classmethod
    def build(cls, network: nn.Module, ratio: int | Sequence[int] = 2) -> tuple[nn.ModuleDict, dict]:
        """The convolutions for a network.

        Args:
            ratio: 1 leaves an attention as it is, bit for bit. A number is that of the highest resolution with
                self-attention in a U-shaped network, and of every block of a stack; a list has a number for each
                stage from the highest resolution down, or for each block.

        Raises:
            ValueError: for a network without such attentions, and for ratios, naming stage, value and what fits.
        """
        sites = find_sites(network)
        ratios = check_ratios(network, sites, ratio)
        parts = nn.ModuleDict()
        for site in [site for site in sites if ratios[site.stage] > 1]:
            weights = [p for p in network.get_submodule(site.name).parameters() if p.is_floating_point()]
            parts[_key(site)] = Compression(site.dim, ratios[site.stage], *weights[:1])
        return parts, {"ratio": ratios}

    def hooks(self) -> list[tuple[nn.Module, str, Callable]]:
        """Before each attention, and before what is called with its map."""
        sizes: dict[str, MapSize] = {}
        placed = []
        for site in [site for site in find_sites(self.network) if _key(site) in self.parts]:
            if site.source not in sizes:
                sizes[site.source] = MapSize(self, site.patch)
                placed.append((self.network.get_submodule(site.source), "pre", sizes[site.source]))
            attention = self.network.get_submodule(site.name)
            for below in site.at:
                hook = site.hook(self, _key(site), sizes[site.source])
                placed.append((attention.get_submodule(below), "pre", hook))
        return placed


def _key(site: Site) -> str:
    """Of a site's convolution among the parts, whose keys have no dots."""
    return site.name.replace(".", "/")


def check_ratios(network: nn.Module, sites: Sequence[Site], ratio: int | Sequence[int]) -> list[int]:
    """A ratio for each stage of a network.

    Raises:
        ValueError: naming stage, value and what fits.
    """
    stages, attending = count_stages(network), sorted({site.stage for site in sites})
    unit, fits = "block" if is_stack(network) else "stage", "give a whole number from 1 (as it is) up, such as 2 or 4"
    if isinstance(ratio, Sequence) and not isinstance(ratio, str):
        ratios = list(ratio)
    else:  # what it is, is looked at below
        compressed = attending if is_stack(network) else attending[:1]
        ratios = [ratio if stage in compressed else 1 for stage in range(stages)]
    if len(ratios) != stages:
        example = [2 if stage in attending[:1] else 1 for stage in range(stages)]
        raise ValueError(
            f"`ratio` has {len(ratios)} numbers for {stages} {unit}s; give one for each, such as {example}."
        )
    for stage, value in enumerate(ratios):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`ratio` is {value!r} at {unit} {stage + 1} of {stages}; {fits}.")
        if value > 1 and stage not in attending:
            known = ", ".join(str(number + 1) for number in attending)
            raise ValueError(
                f"`ratio` is {value} at {unit} {stage + 1} of {stages}, which has no self-attention over its map that "
                f"can be compressed; give 1 there ({unit}s that have: {known})."
            )
    return ratios
