"""Networks of unlike size stitched into one: begun by the cheap one, ended by the costly one (SN-Net, 2302.06586).

One set of weights has many speeds: every anchor, and for pairs of neighbours the first layers of the cheap one, a 1×1
convolution, and the last layers of the costly one. Each is a subnet, so that a `SubnetSchedule` picks one for each
noise level, and `brickwork search` the best for a budget.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import astuple, dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from brickwork.files import read_json
from brickwork.gen.networks.base import Adaptable, SampleOutput
from brickwork.gen.networks.cutting import Cuttable, Site, paired_sites
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.networks.parts import Parted, build_part, describe, load_part, network_folder
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.parameterization import OBJECTIVES, EDMObjective
from brickwork.gen.subnets import patch_of
from brickwork.gen.taps import tapped

KINDS: dict[str, type[Cuttable]] = {
    kind.__name__: kind for kind in (BlockTransformer2DModel, BlockUNet2DModel, LegoTransformer2DModel)
}
# What anchors must agree in, beside their family's own, and what the stitched network therefore says of itself.
SHARED = ("in_channels", "out_channels", "num_classes", "cross_attention_dim")
_BATCHES, _BATCH = 4, 8  # of noise, where no calibration is given


@dataclass(frozen=True)
class Stitch:
    """The first layers of one anchor, and the last ones of another.

    Attributes:
        front: number of the anchor that begins.
        layers: how many of its layers run.
        end: number of the anchor that ends.
        start: the first of its layers that runs.
    """

    front: int
    layers: int
    end: int
    start: int

    @property
    def name(self) -> str:
        """Such as `"anchor-0.3+anchor-1.5"`: three layers of the first, then the second from layer 5 on."""
        return f"anchor-{self.front}.{self.layers}+anchor-{self.end}.{self.start}"


class StitchingLayers(ModelMixin, ConfigMixin):
    """1×1 convolutions from the maps of one anchor to those of another.

    Args:
        channels: in and out, of each; of a stitch's, which are several between UNets, one after another.
    """

    _no_split_modules = ["Conv2d"]

    @register_to_config
    def __init__(self, channels: Sequence[Sequence[int]] = ()):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in channels)


class StitchedDenoiser(Parted, ModelMixin, ConfigMixin, Adaptable):
    """Several networks of one family and objective, and stitches from each to the next costlier one.

    Build one with `from_anchors`. Stacks of blocks are cut between layers, LEGO stacks between bricks, and UNets
    between the stages of the encoder, where all that the decoder reads of the stages above is stitched too.

    Args (its configuration says what the last anchor's does beside them, and the largest `patch_size`):
        anchors: configurations of the networks with their `_class_name`, from the cheap to the costly.
        stitches: for each stitch the number of the anchor that begins, how many of its layers run, the number of the
            one that ends, and its first layer that runs.
        id2label: class names by number, `None` for the last anchor's.
    """

    told = ("sample_size", *SHARED, "patch_size")

    _anchor = {"_class_name": "BlockTransformer2DModel"} | BlockTransformer2DModel.smallest
    smallest = {"anchors": [_anchor, _anchor | {"hidden_size": 24}], "stitches": [[0, 1, 1, 1]]}

    @register_to_config
    def __init__(
        self,
        anchors: Sequence[Mapping[str, Any]],
        stitches: Sequence[Sequence[int]] = (),
        id2label: dict[int, str] | None = None,
    ):
        super().__init__()
        self.networks = nn.ModuleList(build_part("anchors", anchor, KINDS) for anchor in anchors)
        self.cuts = [Stitch(*numbers) for numbers in stitches]
        check_anchors(self.networks, stitched=bool(self.cuts))
        if self.cuts:
            seams = [self._seams(cut) for cut in self.cuts]
            channels = [[front.channels, end.channels] for seam in seams for front, end in seam]
            self.stitching = StitchingLayers(channels=channels)
        last = self.networks[-1].config
        self.maps = {
            f"{name} of anchor-{n}": map for n, one in enumerate(self.networks) for name, map in one.maps.items()
        }
        self._tell(last, id2label, patch_size=max(patch_of(one.config) for one in self.networks))
        self._take_over(self.networks)

    def _seams(self, cut: Stitch) -> list[tuple[Site, Site]]:
        """What is taken from the one anchor, and what it stands for in the other, for each stitching layer."""
        front, end = self.networks[cut.front].seam(cut.layers), self.networks[cut.end].seam(cut.start)
        return [(front[taken], end[wanted]) for taken, wanted in paired_sites(front, end)]

    def _layers_of(self, number: int) -> Sequence[nn.Module]:
        """The stitching layers of a stitch."""
        before = sum(len(self._seams(cut)) for cut in self.cuts[:number])
        return self.stitching.layers[before : before + len(self._seams(self.cuts[number]))]

    @classmethod
    def from_anchors(
        cls,
        anchors: Sequence[ModelMixin | str | os.PathLike],
        calibration: Iterable[Mapping[str, Any] | Sequence[Any]] | None = None,
        stitches: bool = True,
        objective: Any = None,
    ) -> "StitchedDenoiser":
        """Stitch trained networks, whose weights are copied and stay as they are.

        Each stitching layer begins as the least-squares map from what the cheap anchor computed there to what
        the costly one did. Stitches whose cost is not between those of their two anchors are left out.

        Args:
            anchors: two or more networks, or folders of networks, pipelines or training runs; the cheapest first.
            calibration: batches of all noise levels to fit the stitching layers on, each as arguments of `forward`: a
                dictionary, or a tuple beginning with `sample` and `timestep`. `None` for noise of all levels from a
                fixed seed.
            stitches: whether there are any; without them the anchors alone are subnets, for different noise levels.
            objective: that the anchors were trained for (see `brickwork.gen.parameterization`), which says the noise
                levels where `calibration` is `None`; by default what the folders note, else EDM's.

        Without stitches the anchors may be of unlike classes, and a pipeline saves them with its schedule.

        Raises:
            ValueError: for anchors that do not fit together, or cannot be cut; the text says why.
        """
        if isinstance(anchors, (str, os.PathLike)) or not isinstance(anchors, Sequence) or len(anchors) < 2:
            raise ValueError(f"`anchors` is {type(anchors).__name__}; give a list of two networks or more.")
        objective = objective or _noted_objective(anchors)
        lack = "cannot be cut between its layers (a SubnetSchedule can switch between any networks by name)"
        loaded = [load_part(f"anchors[{number}]", anchor, KINDS, lack) for number, anchor in enumerate(anchors)]
        networks = [deepcopy(network).eval() for network in loaded]
        check_anchors(networks, stitches)
        with torch.device("meta"):
            described = [describe(network) for network in networks]
            pairs = range(len(networks) - 1) if stitches else ()
            cuts = [cut for front in pairs for cut in possible_cuts(networks, front)]
            cuts = cls._worth_it(described, cuts)
            model = cls(anchors=described, stitches=[list(astuple(cut)) for cut in cuts])
        model.networks = nn.ModuleList(networks)
        if cuts:
            model.stitching = StitchingLayers(channels=model.stitching.config.channels)
            model.stitching.layers.to(networks[-1].device, networks[-1].dtype)
            model.fit(calibration if calibration is not None else _noise(networks[-1], objective))
        return model.eval()

    @classmethod
    def _worth_it(cls, described: list[dict], cuts: list[Stitch]) -> list[Stitch]:
        model = cls(anchors=described, stitches=[list(astuple(cut)) for cut in cuts])
        costs = model.subnets(model.config.sample_size, model.config.sample_size)
        alone = [costs[f"anchor-{number}"] for number in range(len(described))]
        if alone != sorted(alone):
            raise ValueError(f"`anchors` cost {alone} operations an image; give the cheapest first.")
        return [cut for cut in cuts if alone[cut.front] < costs[cut.name] < alone[cut.end]]

    @torch.no_grad()
    def fit(self, calibration: Iterable[Mapping[str, Any] | Sequence[Any]]) -> None:
        """Set every stitching layer to the least-squares map between what its anchors compute (see `from_anchors`).

        Raises:
            ValueError: for no batches.
        """
        seams = [(cut, *pair) for cut in self.cuts for pair in self._seams(cut)]
        fronts: list[list[torch.Tensor]] = [[] for _ in seams]
        ends: list[list[torch.Tensor]] = [[] for _ in seams]
        was_training = self.training
        try:
            self.eval()
            for batch in calibration:
                maps = [self._maps_of(number, batch) for number in range(len(self.networks))]
                for (cut, taken, wanted), front, end in zip(seams, fronts, ends):
                    front.append(maps[cut.front][taken.tap])
                    end.append(maps[cut.end][wanted.tap])
        finally:
            self.train(was_training)
        if self.cuts and not fronts[0]:
            raise ValueError("`calibration` has no batches; give at least one, or None for noise.")
        for layer, front, end in zip(self.stitching.layers if self.cuts else (), fronts, ends):
            weight, bias = least_squares(_rows(front), _rows(end))
            layer.weight.copy_(weight[..., None, None])
            layer.bias.copy_(bias)

    def _maps_of(self, number: int, batch: Mapping[str, Any] | Sequence[Any]) -> dict[str, torch.Tensor]:
        """What an anchor computes of a batch wherever it can be cut, by site, on the CPU."""
        anchor = self.networks[number]
        positional, named = ((), batch) if isinstance(batch, Mapping) else (batch, {})
        positional, named = send_to_device((positional, dict(named)), anchor.device)
        depth = len(anchor.layer_names)
        names = list(dict.fromkeys(site.tap for layers in range(depth) for site in anchor.seam(layers + 1)))
        with tapped(anchor, names) as taps:
            anchor(*positional, **named)
        return {name: taps[name].cpu() for name in names}

    def parts(self) -> dict[str, str]:
        anchors = {f"anchor-{number}": f"networks.{number}" for number in range(len(self.networks))}
        return anchors | ({"stitching": "stitching"} if self.cuts else {})

    def subnet_names(self) -> list[str]:
        names = []
        for number in range(len(self.networks)):
            names += [cut.name for cut in self.cuts if cut.end == number]
            names.append(f"anchor-{number}")
        return names

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        return_dict: bool = True,
        subnet: str | None = None,
        **conditions,
    ) -> SampleOutput | tuple:
        """Estimate what the anchors were trained for.

        Arguments are those of `Denoiser` that the anchors take; a subnet is an anchor or a stitch, and the last anchor
        the network itself.
        """
        name = self._find_subnet(subnet)
        conditions |= {"class_labels": class_labels, "encoder_hidden_states": encoder_hidden_states}
        conditions = {key: value for key, value in conditions.items() if value is not None}
        cut = next((number for number, cut in enumerate(self.cuts) if cut.name == name), None)
        if cut is None:
            anchor = self.networks[int(name.removeprefix("anchor-"))]
            output = anchor(sample, timestep, **conditions, return_dict=False)[0]
        else:
            stitch = self.cuts[cut]
            front, end = self.networks[stitch.front], self.networks[stitch.end]
            maps = front.run_front(stitch.layers, sample, timestep, **conditions)
            pairs = paired_sites(front.seam(stitch.layers), end.seam(stitch.start))
            stitched = [layer(maps[taken]) for layer, (taken, _) in zip(self._layers_of(cut), pairs)]
            output = end.run_end(stitch.start, stitched, sample, timestep, **conditions)
        return SampleOutput(sample=output) if return_dict else (output,)


def sliding_windows(front: int, depth: int, next_depth: int) -> list[Stitch]:
    """The stitches between anchor `front` and the next, within windows of two neighbouring layers, one layer apart.

    Positions in the deeper network correspond by their share of the depth. With 12 layers in both, these are the 34 of
    the paper.
    """
    positions = [max(1, round((layer + 1) * next_depth / depth)) for layer in range(depth)]
    windows = [range(start, min(start + 2, depth)) for start in range(max(1, depth - 1))]
    pairs = {(layer + 1, positions[other]) for window in windows for layer in window for other in window}
    return [Stitch(front, layers, front + 1, start) for layers, start in sorted(pairs)]


def possible_cuts(networks: Sequence[Cuttable], front: int) -> list[Stitch]:
    """The stitches between anchor `front` and the next, as their family is cut."""
    cheap, costly = networks[front], networks[front + 1]
    depth, next_depth = len(cheap.layer_names), len(costly.layer_names)
    cuts = sliding_windows(front, depth, next_depth)
    if costly.aligned:
        cuts = [Stitch(front, layers, front + 1, layers) for layers in range(1, next_depth + 1)]
    return [cut for cut in cuts if costly.has_head or cut.start < next_depth]


def least_squares(front: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map that takes features nearest to others, in float64; of least norm where rank is short.

    Args:
        front: `(N, D)`.
        end: `(N, E)`.

    Returns:
        weight `(E, D)` and bias `(E,)`, such that `front @ weight.T + bias` is near `end`.
    """
    features = torch.cat([front.double(), torch.ones(len(front), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(features, end.double(), driver="gelsd").solution
    return solution[:-1].T, solution[-1]


def check_anchors(anchors: Sequence[nn.Module], stitched: bool = True) -> None:
    """Raise a `ValueError` unless the networks read and estimate the same and, to be stitched, are of one family."""
    if len(anchors) < 2:
        raise ValueError(f"`anchors` has {len(anchors)} networks; give two or more.")
    if stitched and len({type(anchor) for anchor in anchors}) > 1:
        kinds = [type(anchor).__name__ for anchor in anchors]
        raise ValueError(
            f"`anchors` are {kinds}; give networks of one class, or `stitches=False` to switch between noise levels."
        )
    families = [anchor.family() if stitched else {} for anchor in anchors]
    read = [{name: anchor.config.get(name) for name in SHARED} | family for anchor, family in zip(anchors, families)]
    for values in read:
        values["out_channels"] = values["out_channels"] or values["in_channels"]
    for name in read[0]:
        values = [one[name] for one in read]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"`anchors` have {name} {values}; give networks that read and estimate the same, of one patch and "
                "stages of one size."
            )


def _noted_objective(anchors: Sequence[Any]) -> Any:
    """What the folders of pipelines among the anchors say that they were trained for; where they are silent, EDM's."""
    folders = [network_folder(anchor).parent for anchor in anchors if isinstance(anchor, (str, os.PathLike))]
    found = [read_json(path / "objective.json") for path in folders if (path / "objective.json").is_file()]
    for entry in found:
        if entry != found[0]:
            raise ValueError(
                f"`anchors` were trained for different objectives, {found[0]} and {entry}; give networks of one."
            )
    return OBJECTIVES[found[0]["type"]](**found[0]["options"]) if found else EDMObjective()


def _noise(network: ModelMixin, objective: Any) -> list[dict[str, torch.Tensor]]:
    """Batches of coarse patterns in noise of stratified levels, from a fixed seed."""
    generator, config = torch.Generator().manual_seed(0), network.config
    count, side = _BATCHES * _BATCH, config.sample_size
    coarse = torch.randn(count, config.in_channels, -(-side // 4), -(-side // 4), generator=generator) / 2
    images = nn.functional.interpolate(coarse, scale_factor=4, mode="nearest")[..., :side, :side]
    noise = torch.randn(images.shape, generator=generator)
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    order = torch.randperm(count, generator=generator)
    levels = objective.noise_levels(torch.special.ndtri(shares[order]).float())
    sample, timestep = objective.network_inputs(images, noise, levels)
    batches = [{"sample": part, "timestep": time} for part, time in zip(sample.split(_BATCH), timestep.split(_BATCH))]
    if config.num_classes is not None:
        for batch in batches:
            batch["class_labels"] = torch.randint(0, config.num_classes + 1, (_BATCH,), generator=generator)
    return batches


def _rows(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps `(B, C, H, W)` => their pixels `(N, C)`."""
    return torch.cat([part.flatten(2).transpose(1, 2).flatten(0, 1) for part in maps])
