"""A trained UNet grown by copies of itself, whose features assist it (CBNet V2, arXiv 2107.00420).

The assistant reads the same sample. What its encoder makes of it in every higher stage (and the same one) goes through
a 1×1 convolution, a norm and nearest upsampling into the lead's stage, by the lead's residual ports. The norms begin
at zero: before the first step of training the composite equals the single network bit for bit.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import nn

from brickwork.errors import one_of, whole_number
from brickwork.gen.blocks.norms import make_norm, zeroed
from brickwork.gen.networks.base import Adaptable, EstimatesOutput
from brickwork.gen.networks.parts import Parted, build_part, describe, load_part
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.subnets import FULL
from brickwork.gen.taps import tapped

KINDS = {"BlockUNet2DModel": BlockUNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}
COMPOSITIONS = ("dhlc", "same_level")
ASSISTANT, INNER = "assistant", "down_intrablock_additional_residuals"


class Link(nn.Module):
    """From one stage's map `(B, C, h, w)` to another's `(B, D, H, W)`; zeros before training."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 1)
        self.norm = zeroed(make_norm("layer", out_channels))

    def forward(self, feature: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        linked = self.norm(self.conv(feature))
        return linked if linked.shape[-2:] == tuple(size) else nn.functional.interpolate(linked, size=tuple(size))


class CompositeLinks(ModelMixin, ConfigMixin):
    """The links from the stages of one network to those of the next.

    Args:
        channels: of each stage, from the highest resolution down.
        copies: how many networks give features.
        composition: `"dhlc"`: each stage gets those of its own and of every higher one; `"same_level"`: of its own.
    """

    _no_split_modules = ["Link"]

    @register_to_config
    def __init__(self, channels: Sequence[int], copies: int = 1, composition: str = "dhlc"):
        super().__init__()
        one_of("composition", composition, COMPOSITIONS)
        count = len(channels)
        sources = [range(i, count if composition == "dhlc" else i + 1) for i in range(count)]
        self.links = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleDict({str(j): Link(channels[j], channels[i]) for j in sources[i]}) for i in range(count)
            )
            for _ in range(copies)
        )

    def forward(self, copy: int, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Residuals for each stage of network `copy + 1`, from the stages' features of network `copy`."""
        return [
            sum(link(features[int(source)], features[stage].shape[-2:]) for source, link in links.items())
            for stage, links in enumerate(self.links[copy])
        ]


class CompositeDenoiser(Parted, ModelMixin, ConfigMixin, Adaptable):
    """Copies of one UNet, each assisting the next; the last leads. It stands where its network stood.

    Build one with `grow`. As subnets it has `"assistant"`, the first copy alone, and `"full"`.

    Args (its configuration says what the network's does beside them):
        network: configuration of the network with its `_class_name`.
        k: how many copies there are, the lead among them.
        composition: which stages are linked, see `CompositeLinks`.
        id2label: class names by number, `None` for the network's.

    Attributes:
        output_weights: of each network's loss in training, the assistants' first.
    """

    told = (  # a kind of network may lack some
        "sample_size", "in_channels", "out_channels", "num_classes", "cross_attention_dim", "time_cond_proj_dim",
        "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
    )  # fmt: skip
    smallest = {"network": {"_class_name": "BlockUNet2DModel"} | BlockUNet2DModel.smallest}
    returns_intermediates = True  # on demand, the assistants' estimates

    @register_to_config
    def __init__(
        self,
        network: Mapping[str, Any],
        k: int = 2,
        composition: str = "dhlc",
        id2label: dict[int, str] | None = None,
    ):
        super().__init__()
        whole_number("k", k, 2, of="copies", more=", the lead among them")
        self.networks = nn.ModuleList(build_part("network", network, KINDS) for _ in range(k))
        lead = self.networks[-1]
        widths = list(lead.config.block_out_channels) if isinstance(lead, UNet2DConditionModel) else lead.widths
        self.links = CompositeLinks(channels=widths, copies=k - 1, composition=composition)
        self._tell(lead.config, id2label)
        self.output_weights = (*(0.5,) * (k - 1), 1.0)
        self._take_over(self.networks)

    @classmethod
    def grow(
        cls, model_or_folder: ModelMixin | str | os.PathLike, k: int = 2, composition: str = "dhlc"
    ) -> "CompositeDenoiser":
        """A composite of copies of a trained network, equal to it until trained on.

        Args beside those of the class:
            model_or_folder: a `BlockUNet2DModel` or diffusers' `UNet2DConditionModel`, which stays as it is, or a
                folder of such a network, of a pipeline with it, or of a training run.

        Raises:
            ValueError: for a network without stages that take residuals, or another composition.
        """
        lack = "has no stages whose ports take residuals"
        model = load_part("model_or_folder", model_or_folder, KINDS, lack)
        with torch.device("meta"):
            grown = cls(network=describe(model), k=k, composition=composition)
        grown.networks = nn.ModuleList(deepcopy(model) for _ in range(k))
        channels = grown.links.config.channels
        grown.links = CompositeLinks(channels=channels, copies=k - 1, composition=composition)
        grown.links.links.to(model.device, model.dtype)
        return grown.eval()

    def parts(self) -> dict[str, str]:
        last = len(self.networks) - 1
        names = [ASSISTANT] if last == 1 else [f"{ASSISTANT}-{number}" for number in range(last)]
        return {name: f"networks.{number}" for number, name in enumerate([*names, "lead"])} | {"links": "links"}

    @property
    def add_embedding(self) -> nn.Module:
        """The lead's, which Stable Diffusion XL's pipelines look at."""
        return self.networks[-1].add_embedding

    def subnet_names(self) -> list[str]:
        return [ASSISTANT, FULL]

    def example_inputs(self, batch: int, height: int, width: int) -> dict[str, Any]:
        inputs = super().example_inputs(batch, height, width)
        if self.config.addition_embed_type == "text_time":
            times = 6 * self.config.addition_time_embed_dim
            pooled = self.config.projection_class_embeddings_input_dim - times
            further = {"text_embeds": torch.zeros(batch, pooled), "time_ids": torch.zeros(batch, 6)}
            inputs["added_cond_kwargs"] = further
        return inputs

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        subnet: str | None = None,
        return_intermediates: bool = False,
        assistant_sample: torch.Tensor | None = None,
        **further,
    ) -> EstimatesOutput | tuple:
        """Estimate what the network was trained for.

        Args beside those of `Denoiser`:
            return_intermediates: also return the assistants' estimates, which are supervised in training.
            assistant_sample: what the assistants read in place of `sample`, such as a condition of its shape.
            further: what else the network takes: conditions such as `timestep_cond`, `cross_attention_kwargs` and
                `added_cond_kwargs` for every network, `down_block_additional_residuals` and its like for the lead.
        """
        name, other = self._find_subnet(subnet), sample if assistant_sample is None else assistant_sample
        added = {key: further.pop(key) for key in list(further) if "additional_residual" in key}
        conditions = {"encoder_hidden_states": encoder_hidden_states, "class_labels": class_labels} | further
        if name == ASSISTANT:
            estimates = [self.networks[0](other, timestep, **conditions, **added).sample]
            return EstimatesOutput.of(estimates, return_intermediates, return_dict)
        estimates, residuals = [], None
        for number, network in enumerate(self.networks[:-1]):
            read = _read_diffusers if isinstance(network, UNet2DConditionModel) else _read_ours
            features, estimate = read(network, other, timestep, conditions, residuals, return_intermediates)
            residuals = self.links(number, features)
            estimates += [] if estimate is None else [estimate]
        given = added.pop(INNER, None)
        if given is not None:
            residuals = [own if more is None else own + more for own, more in zip(residuals, given)]
        estimates.append(self.networks[-1](sample, timestep, **conditions, **added, **{INNER: residuals}).sample)
        return EstimatesOutput.of(estimates, return_intermediates, return_dict)


def _read_ours(
    network: BlockUNet2DModel, sample, timestep, conditions: dict, residuals: list | None, decode: bool
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """The features of each stage, and the estimate if the decoder is to run."""
    known = ("encoder_hidden_states", "class_labels", "timestep_cond")
    passage = network.begin(sample, timestep, **{name: conditions.get(name) for name in known})
    stages = network.encode(sample, passage, residuals)
    return [outputs[-1] for outputs in stages], network.decode(passage, stages) if decode else None


def _read_diffusers(
    network: UNet2DConditionModel, sample, timestep, conditions: dict, residuals: list | None, decode: bool
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """As `_read_ours`; the maps are those that `down_intrablock_additional_residuals` are added to."""
    sites = [
        f"down_blocks.{number}.attentions.{len(stage.attentions) - 1}"
        if getattr(stage, "has_cross_attention", False)
        else f"down_blocks.{number}"
        for number, stage in enumerate(network.down_blocks)
    ]
    inner = {} if residuals is None else {INNER: residuals}
    estimate = None
    with tapped(network, sites) as taps, _stopping_behind_the_encoder(network, not decode), suppress(_EncoderDone):
        estimate = network(sample, timestep, **conditions, **inner).sample
    outputs = [taps[site] for site in sites]
    return [output if isinstance(output, torch.Tensor) else output[0] for output in outputs], estimate


class _EncoderDone(Exception):  # noqa: N818
    pass


@contextmanager
def _stopping_behind_the_encoder(network: UNet2DConditionModel, stop: bool):
    """Only the encoder's features are wanted of an assistant, whose decoder is more than half of its cost."""

    def done(module, inputs):
        raise _EncoderDone

    behind = network.up_blocks[0] if network.mid_block is None else network.mid_block
    handle = behind.register_forward_pre_hook(done) if stop else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
