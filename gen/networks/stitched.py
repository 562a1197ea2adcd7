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
from brickwork.gen.networks.parts import Parted, build_part, describe, network_folder
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.parameterization import OBJECTIVES, EDMObjective
from brickwork.gen.taps import tapped

KINDS = {"BlockTransformer2DModel": BlockTransformer2DModel}
# What anchors must agree in, and what the stitched network therefore says of itself.
SHARED = ("in_channels", "out_channels", "num_classes", "cross_attention_dim", "patch_size")
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
        channels: in and out, of each.
    """

    @register_to_config
    def __init__(self, channels: Sequence[Sequence[int]] = ()):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in channels)


class StitchedDenoiser(Parted, ModelMixin, ConfigMixin, Adaptable):
    """Several networks of one family and objective, and stitches from each to the next costlier one.

    Build one with `from_anchors`.

    Args beside those of `Denoiser`, which are always the last anchor's:
        anchors: configurations of the networks with their `_class_name`, from the cheap to the costly.
        stitches: for each stitch the number of the anchor that begins, how many of its layers run, the number of the
            one that ends, and its first layer that runs.
        patch_size: side of a patch, the last anchor's too.
    """

    _anchor = {"_class_name": "BlockTransformer2DModel"} | BlockTransformer2DModel.smallest
    smallest = {"anchors": [_anchor, _anchor | {"hidden_size": 24}], "stitches": [[0, 1, 1, 1]]}

    @register_to_config
    def __init__(
        self,
        anchors: Sequence[Mapping[str, Any]],
        stitches: Sequence[Sequence[int]] = (),
        sample_size: int | None = None,
        in_channels: int | None = None,
        out_channels: int | None = None,
        num_classes: int | None = None,
        cross_attention_dim: int | None = None,
        patch_size: int | None = None,
        id2label: dict[int, str] | None = None,
    ):
        super().__init__()
        self.networks = nn.ModuleList(build_part("anchors", anchor, KINDS) for anchor in anchors)
        check_anchors(self.networks)
        self.cuts = [Stitch(*numbers) for numbers in stitches]
        widths = [anchor.layer_width for anchor in self.networks]
        if self.cuts:
            self.stitching = StitchingLayers(channels=[[widths[cut.front], widths[cut.end]] for cut in self.cuts])
        last = self.networks[-1].config
        told = {name: last[name] for name in ("sample_size", *SHARED)}
        self.register_to_config(**told, id2label=last.id2label if id2label is None else id2label)
        self._take_over(self.networks)

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

        Raises:
            ValueError: for anchors that do not fit together, or cannot be cut; the text says why.
        """
        if isinstance(anchors, (str, os.PathLike)) or not isinstance(anchors, Sequence) or len(anchors) < 2:
            raise ValueError(f"`anchors` is {type(anchors).__name__}; give a list of two networks or more.")
        objective = objective or _noted_objective(anchors)
        networks = [_copied(anchor) for anchor in anchors]
        check_anchors(networks)
        with torch.device("meta"):
            described = [describe(network) for network in networks]
            pairs = range(len(networks) - 1) if stitches else ()
            depths = [len(network.layer_names) for network in networks]
            cuts = [cut for front in pairs for cut in sliding_windows(front, depths[front], depths[front + 1])]
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
        fronts: list[list[torch.Tensor]] = [[] for _ in self.cuts]
        ends: list[list[torch.Tensor]] = [[] for _ in self.cuts]
        was_training = self.training
        try:
            self.eval()
            for batch in calibration:
                maps = [self._maps_of(number, batch) for number in range(len(self.networks))]
                for cut, front, end in zip(self.cuts, fronts, ends):
                    front.append(maps[cut.front][cut.layers - 1])
                    end.append(maps[cut.end][cut.start - 1])
        finally:
            self.train(was_training)
        if self.cuts and not fronts[0]:
            raise ValueError("`calibration` has no batches; give at least one, or None for noise.")
        for layer, front, end in zip(self.stitching.layers if self.cuts else (), fronts, ends):
            weight, bias = least_squares(_rows(front), _rows(end))
            layer.weight.copy_(weight[..., None, None])
            layer.bias.copy_(bias)

    def _maps_of(self, number: int, batch: Mapping[str, Any] | Sequence[Any]) -> list[torch.Tensor]:
        """What each layer of an anchor computes of a batch, on the CPU."""
        anchor = self.networks[number]
        positional, named = ((), batch) if isinstance(batch, Mapping) else (batch, {})
        positional, named = send_to_device((positional, dict(named)), anchor.device)
        with tapped(anchor, anchor.layer_names) as taps:
            anchor(*positional, **named)
        return [taps[name].cpu() for name in anchor.layer_names]

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
        additional_context_tokens: torch.Tensor | None = None,
    ) -> SampleOutput | tuple:
        """Estimate what the anchors were trained for.

        Arguments are those of `Denoiser`; a subnet is an anchor or a stitch, and the last anchor the network itself.
        """
        name = self._find_subnet(subnet)
        inputs = (sample, timestep, class_labels, encoder_hidden_states)
        cut = next((number for number, cut in enumerate(self.cuts) if cut.name == name), None)
        if cut is None:
            anchor = self.networks[int(name.removeprefix("anchor-"))]
            output = anchor(*inputs, False, additional_context_tokens=additional_context_tokens)[0]
        else:
            stitch, layer = self.cuts[cut], self.stitching.layers[cut]
            front, end = self.networks[stitch.front], self.networks[stitch.end]
            passage = front.begin(*inputs, additional_context_tokens)
            hidden_states = front.run_layers(front.embed(sample, passage), passage, stop=stitch.layers)
            passage = end.begin(*inputs, additional_context_tokens)
            output = end.head(end.run_layers(layer(hidden_states), passage, start=stitch.start), passage)
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


def check_anchors(anchors: Sequence[nn.Module]) -> None:
    """Raise a `ValueError` unless the networks can be cut, and read and estimate the same."""
    if len(anchors) < 2:
        raise ValueError(f"`anchors` has {len(anchors)} networks; give two or more.")
    for number, anchor in enumerate(anchors):
        if type(anchor).__name__ not in KINDS:
            raise ValueError(
                f"`anchors[{number}]` is a {type(anchor).__name__}, which cannot be cut between its layers; give "
                f"networks of {', '.join(KINDS)}, or let a SubnetSchedule switch between networks by name."
            )
    for name in SHARED:
        values = [one.out_channels if name == "out_channels" else one.config[name] for one in anchors]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"`anchors` have {name} {values}; give networks that read and estimate the same, of one patch."
            )


def _copied(anchor: Any) -> ModelMixin:
    if not isinstance(anchor, (str, os.PathLike)):
        return deepcopy(anchor).eval()
    folder = network_folder(anchor)
    name = read_json(folder / "config.json").get("_class_name")
    if name not in KINDS:
        raise ValueError(f"`anchors` has {str(anchor)!r}, a {name}; give networks of {', '.join(KINDS)}.")
    return KINDS[name].from_pretrained(folder).eval()


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
