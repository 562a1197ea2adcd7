"""What a search looks at: a network with subnets, or several that share the steps, and pictures to score them on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from brickwork.eval.held_out.paired_loss import PairedSet
from brickwork.eval.held_out.pictures import captioned_pairs, held_out_pairs
from brickwork.gen.subnets import FULL, patch_of
from brickwork.pipelines.latents import sample_size
from brickwork.pipelines.prompts import encode_captions
from brickwork.pipelines.stable_diffusion import PromptedUNet
from brickwork.pipelines.trajectory import sharing_networks


@dataclass(frozen=True)
class Searched:
    """What is searched.

    Attributes:
        network: with subnets, or several by name.
        shown: the one by whose configuration pictures are prepared.
        model: that was given: a pipeline, the network or networks.
        factor: pixels of a picture for each of what the network sees.
    """

    network: nn.Module | Mapping[str, nn.Module]
    shown: nn.Module
    model: Any
    factor: int

    @classmethod
    def of(cls, model: Any, networks: Mapping[str, Any] | None = None) -> "Searched":
        """See `search_brick_schedule` for the arguments and what is refused."""
        factor, network = getattr(model, "vae_scale_factor", 1), getattr(model, "transformer", model)
        if networks is not None:
            network = sharing_networks(model, networks, "networks")
            if hasattr(model, "unet") and hasattr(model, "encode_prompt"):
                nothing = encode_captions(model, [""])  # enough to count operations
                network = {name: PromptedUNet(one, nothing, factor) for name, one in network.items()}
        several = network if isinstance(network, Mapping) else {FULL: network}
        if not all(hasattr(one, "subnets") for one in several.values()):
            kind = type(model).__name__
            if hasattr(model, "encode_prompt"):
                raise ValueError(
                    f"`model` is a {kind}, which has no subnets; name a smaller network of the same text and latents "
                    "to share its steps (`networks`, `--with`)."
                )
            raise ValueError(
                f"`model` is a {kind}; give a pipeline or a network with subnets, such as a LegoPipeline."
            )
        shown = network[FULL] if networks else next(iter(several.values()))
        return cls(network, shown, model, factor)

    def size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of what the network sees, from those of the picture in pixels."""
        config = self.shown.config
        return sample_size(height, width, (config.sample_size,) * 2, self.factor, patch_of(config))

    def pairs(self, data: Any, size: tuple[int, int], count: int, seed: int) -> tuple[PairedSet, int]:
        """The frozen list, and the number of distinct pictures in it."""
        if isinstance(self.shown, PromptedUNet):
            pairs, captions = captioned_pairs(self.model, data, count, seed)
            prompts = encode_captions(self.model, captions)
            for network in self.network.values():
                network.prompts = prompts
            return pairs, len(captions)
        if not isinstance(data, PairedSet):
            return held_out_pairs(self.shown if isinstance(self.model, Mapping) else self.model, data, count, seed)
        config, shape = self.shown.config, tuple(data.images.shape)
        allowed = {(config.in_channels, config.sample_size, config.sample_size), (config.in_channels, *size)}
        if len(shape) != 4 or shape[0] < 1 or shape[1:] not in allowed:
            listed = " or ".join("(N, " + ", ".join(map(str, one)) + ")" for one in sorted(allowed))
            raise ValueError(f"`data` has images of shape {shape}; this network is scored on {listed}. Resize them.")
        labels, classes = data.labels, config.num_classes
        if classes is not None and (labels is None or labels.min() < 0 or labels.max() > classes):
            came = "no labels" if labels is None else f"labels from {labels.min()} to {labels.max()}"
            raise ValueError(
                f"`data` has {came}; give each image the number of its class, 0 to {classes - 1} ({classes}: no "
                "class)."
            )
        return data, shape[0]
