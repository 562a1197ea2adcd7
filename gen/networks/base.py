"""What all our networks add to diffusers' `ModelMixin`, whatever their shape."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.utils import BaseOutput
from torch import nn

from brickwork import compat, hub
from brickwork.errors import MissingFile, explained, no_unknown
from brickwork.files import follow_umask, read_json
from brickwork.gen.blocks.registry import Block, find_block, list_blocks
from brickwork.gen.blocks.windows import check_maps, static_size
from brickwork.gen.compiling import compile_blocks
from brickwork.gen.convbn import find_convbn_pairs, set_convbn_mode
from brickwork.gen.networks.inputs import check_class_labels, check_sample, check_timestep, join_tokens
from brickwork.gen.operations import count_operations
from brickwork.gen.presets import find_preset
from brickwork.gen.subnets import FULL, Subnets, find_subnet

TEXT_TOKENS = 77


@dataclass
class SampleOutput(BaseOutput):
    """What a network returns.

    Attributes:
        sample: `(B, out_channels, H, W)`. With twice as many channels as the input, the second half is the learned
            variance (DiT).
    """

    sample: torch.Tensor


@dataclass
class EstimatesOutput(SampleOutput):
    """What a network returns that makes several estimates in turn.

    Attributes:
        sample: `(B, out_channels, H, W)`, the last estimate.
        intermediates: all estimates in order, the last equal to `sample`; `None` unless asked for.
    """

    intermediates: list[torch.Tensor] | None = None

    @classmethod
    def of(cls, estimates: list[torch.Tensor], keep: bool, return_dict: bool) -> "EstimatesOutput | tuple":
        """What `forward` returns: the last of the estimates, or if they are to be kept, all of them as well."""
        if not return_dict:
            return (estimates[-1], estimates) if keep else (estimates[-1],)
        return cls(sample=estimates[-1], intermediates=estimates if keep else None)


class Passage(NamedTuple):
    """What the layers and the head need to know of the inputs.

    Attributes:
        size: height and width of the sample.
        temb: condition of time and class `(B, D)`.
        context: tokens that the layers attend to `(B, length, cross_attention_dim)`, or `None`.
    """

    size: tuple[int, int]
    temb: torch.Tensor
    context: torch.Tensor | None


def largest_window(blocks: Sequence[Block]) -> int:
    """The side that a map needs for every one of the blocks."""
    return max((block.window_size or 1 for block in blocks), default=1)


class Denoiser(AttentionMixin):
    """Loading that says what is wrong, presets, checkpointing, compilation, sizes and costs.

    To be named before `ModelMixin` among a network's bases. Settings and arguments that several networks have mean the
    same in all of them, and are described here alone.

    Settings:
        sample_size: side of the training images, in pixels of what the network sees (latents for a latent model).
        in_channels: channels of `sample`.
        out_channels: channels of the estimate, `None` for as many as `in_channels`.
        num_classes: number of classes, `None` for a network without them.
        cross_attention_dim: width of a text's tokens, `None` for a network that reads no text.
        time_cond_proj_dim: width of `timestep_cond`, such as an embedded guidance scale; `None` for none.
        block_options: further settings by block name, such as `{"i2rmb": {"kernel_size": 3}}`.
        drop_path: how often training leaves the last block out of an image; earlier ones less, the first never.
        augment_dim: numbers of `augment_labels`, for training on augmented images; `None` for none.
        freq_shift: see `ClassTimeEmbedding`.
        convbn_folded: whether BatchNorms are in the convolutions before them, as `set_convbn_mode(model, "deploy")`
            leaves them.
        id2label: class names by number, for pipelines.

    Arguments of `forward`:
        sample: floating point `(B, in_channels, H, W)`, scaled as the scheduler does.
        timestep: `(B,)` or a scalar, what the scheduler says.
        class_labels: integers `(B,)` from 0 to `num_classes`, which itself stands for "no class", as does `None`.
        encoder_hidden_states: `(B, length, cross_attention_dim)`, a text.
        additional_context_tokens: `(B, length, cross_attention_dim)`, what the blocks attend to beside the text.
        timestep_cond: `(B, time_cond_proj_dim)`.
        augment_labels: `(B, augment_dim)`, what augmentation did to the images in training; `None` where samples are
            drawn.
        subnet: one of `subnet_names()`; `None` and `"full"` for the network itself.
        return_dict: return an output object rather than a tuple.

    All of them raise a `ValueError` for wrong channels, sizes below a patch or a window, labels out of range, an
    unknown subnet, and conditions that the network does not read.

    Attributes:
        presets: configurations by name, for `from_preset`.
        smallest: constructor arguments of a tiny network with all that it has, for the tests of every network.
        maps: the feature maps that the blocks work on (see `check_maps`).
        needs_text: whether a network with `cross_attention_dim` must get a text.
        pipeline: the class that draws with it, by name; `train_backbone.py` trains what draws class to image.
    """

    _supports_gradient_checkpointing = True
    gradient_checkpointing = False
    # Of every kind of block: which of them a network has, only its configuration tells.
    _no_split_modules = _repeated_blocks = sorted({find_block(name).__name__ for name in list_blocks()})
    presets: Mapping[str, dict] = {}
    smallest: Mapping[str, Any] = {}
    maps: Mapping[str, tuple[int, int]] = {}
    needs_text = False
    pipeline = "ClassToImagePipeline"

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to do: `import brickwork` is what makes the class known to `AutoModel`.

        diffusers would write an `auto_map` that names code which is not in the saved folder, and the folder would load
        no longer.
        """

    def register_to_config(self, **kwargs) -> None:
        """Keep constructor arguments and other values for `config.json`."""
        kwargs.pop("_name_or_path", None)  # a folder of this machine, of no use to anyone else
        super().register_to_config(**kwargs)

    @wraps(ModelMixin.save_pretrained)  # pipelines go by its arguments
    def save_pretrained(self, save_directory: str | os.PathLike, *arguments, **kwargs) -> None:
        """Write a folder that `from_pretrained` loads, with files that others may read; see diffusers."""
        super().save_pretrained(save_directory, *arguments, **kwargs)
        follow_umask(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Load a folder written by `save_pretrained`, or a repository of the hub; see diffusers for the arguments.

        Raises:
            MissingFile: an `OSError` and a `ValueError`: where there is no such network, file or variant; the text
                says what is there instead, and what to do.
        """
        path = os.path.expanduser(pretrained_model_name_or_path)
        folder = Path(path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            _check_folder(folder, cls.__name__)
        elif os.path.isdir(path):  # diffusers would take what lies above
            raise MissingFile(f"`subfolder` is {kwargs['subfolder']!r}, which {path!r} does not have.")
        elif not os.path.exists(path) and hub.check_name(path, "pretrained_model_name_or_path", "network"):
            kwargs = {"local_files_only": True} | kwargs
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        with explained(f"No {cls.__name__} could be loaded from {path!r}", OSError, kind=MissingFile):
            found = cls._load(path, **kwargs)
        if kwargs.get("low_cpu_mem_usage") is False and isinstance(dtype, torch.dtype):
            # diffusers builds the network under this default type, which tables made in float32 do not follow.
            for tensor in (found[0] if isinstance(found, tuple) else found).state_dict(keep_vars=True).values():
                tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
        return found

    @classmethod
    def _load(cls, path: str, **kwargs):
        return super().from_pretrained(path, **kwargs)

    @classmethod
    def from_preset(cls, name: str, in_channels: int = 3, num_classes: int | None = None, **overrides):
        """A freshly initialised network.

        Args:
            name: one of `cls.presets`.
            in_channels: 3 for pixels, 4 for Stable Diffusion's latents.
            num_classes: number of classes, `None` for a network without them.
            overrides: further configuration values that replace the preset's.

        Raises:
            ValueError: for an unknown preset or override, with the one that comes near.
        """
        no_unknown("overrides", overrides, compat.constructor_keys(cls), cls.__name__)
        config = find_preset(cls.presets, name) | {"in_channels": in_channels, "num_classes": num_classes}
        return cls(**(config | overrides))

    @classmethod
    def _from_tensors(cls, config: dict[str, Any], state_dict: dict[str, torch.Tensor]):
        """A network around tensors that are there, without the time and memory of drawing others first."""
        with torch.device("meta"):
            model = cls(**config)
        model.load_state_dict(state_dict, assign=True)
        return model.eval()

    @wraps(ModelMixin.compile_repeated_blocks)
    def compile_repeated_blocks(self, *arguments, **options) -> None:
        """Compile the blocks; see diffusers, and without arguments `gen.compiling.compile_blocks`."""
        if arguments or options:
            super().compile_repeated_blocks(*arguments, **options)
        else:
            compile_blocks(self)

    def _set_maps(self, maps: Mapping[str, tuple[int, int]]) -> None:
        """Call when all blocks are there, with the feature maps that they work on (see `check_maps`)."""
        self.maps = maps
        side = self.config.sample_size
        check_maps(side, side, maps, "`sample_size` makes")
        kinds = {type(module).__name__ for module in self.modules() if isinstance(module, Block)}
        self._no_split_modules = self._repeated_blocks = sorted(kinds)

    def _fold_norms(self) -> None:
        """Be what `set_convbn_mode(model, "deploy")` makes of a trained network, to hold its weights."""
        pairs = find_convbn_pairs(self)
        if not pairs:
            raise ValueError(
                "`convbn_folded` is True, but no block has a convolution with a BatchNorm behind it; leave it out."
            )
        for conv, norm in pairs:  # `from_pretrained` leaves weights without memory, but not statistics
            self.get_submodule(norm).to(self.get_submodule(conv).weight.device)
        set_convbn_mode(self, "deploy")

    def _read(
        self, sample: torch.Tensor, timestep: Any, class_labels: torch.Tensor | None, smallest: int = 1
    ) -> tuple[tuple[int, int], torch.Tensor, torch.Tensor | None]:
        """The sample's height and width, timesteps `(B,)` and labels `(B,)`, checked; see `gen.networks.inputs`."""
        check_sample(sample, self.config.in_channels, smallest)
        batch, size = sample.shape[0], static_size(sample)
        check_maps(*size, self.maps, "`sample` has")
        timestep = check_timestep(timestep, batch, sample.device)
        return size, timestep, check_class_labels(class_labels, batch, self.config.num_classes)

    def begin(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        additional_context_tokens: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> Passage:
        """Check the inputs of `forward`, and embed the conditions; of networks with a `condition`."""
        config = self.config
        if timestep_cond is not None and config.get("time_cond_proj_dim") is None:
            raise ValueError("`timestep_cond` was given, but this network has no `time_cond_proj_dim`; leave it out.")
        size, timestep, labels = self._read(sample, timestep, class_labels, config.get("patch_size", 1))
        tokens, width = (encoder_hidden_states, additional_context_tokens), config.cross_attention_dim
        context = join_tokens(*tokens, sample.shape[0], width, self.needs_text)
        return Passage(size, self.condition(timestep, labels, self.dtype, timestep_cond, augment_labels), context)

    def _run(self, block: nn.Module, *inputs: torch.Tensor | None) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def subnet_names(self) -> list[str]:
        """The names that `forward(…, subnet=…)` takes, the network itself last."""
        return [FULL]

    def _find_subnet(self, name: str | None) -> str:
        return find_subnet(name, self.subnet_names())

    def example_inputs(self, batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
        """Arguments of `forward` that fit the network, all zeros; a text has 77 tokens."""
        inputs = {"sample": torch.zeros(batch, self.config.in_channels, height, width), "timestep": torch.ones(batch)}
        width_of_text = self.config.get("cross_attention_dim")
        if width_of_text is not None:
            inputs["encoder_hidden_states"] = torch.zeros(batch, TEXT_TOKENS, width_of_text)
        return inputs

    def subnets(self, height: int, width: int) -> Subnets:
        """The cheaper versions of the network inside it, and itself last: `{name: operations}` of one image.

        Operations are those of matrix products, convolutions and attention, a multiply-add as two, with a text of 77
        tokens for networks that read one.
        """
        with torch.device("meta"), torch.no_grad():
            twin = type(self).from_config(self.config).eval()
            inputs = twin.example_inputs(1, height, width)
            runs = {name: partial(twin, **inputs, subnet=name) for name in self.subnet_names()}
            return Subnets((name, count_operations(run)[0]) for name, run in runs.items())


class Adaptable(PeftAdapterMixin):
    """LoRA and other PEFT adapters on a network; those that name none of its layers are told which there are."""

    def add_adapter(self, adapter_config, adapter_name: str = "default") -> None:
        """Add an adapter to train; see diffusers.

        Raises:
            ValueError: where its `target_modules` are none of ours, with the names of ours.
        """
        targets = getattr(adapter_config, "target_modules", None)
        names = [name for name, _ in self.named_modules()]
        if isinstance(targets, (set, list, tuple)) and not any(
            name == target or name.endswith(f".{target}") for name in names for target in targets
        ):
            raise ValueError(
                f"`target_modules` are {sorted(targets)}, and {type(self).__name__} has none of these layers; its "
                f"projections are {', '.join(_projections(self))}."
            )
        super().add_adapter(adapter_config, adapter_name)


def _projections(model: nn.Module) -> list[str]:
    """The linear layers of a network's attentions, and if it has none, all its linear layers; last parts of names."""
    attentions = [module for module in model.modules() if isinstance(module, AttentionModuleMixin)]
    found = {
        name.rpartition(".")[2]
        for module in attentions or [model]
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    return sorted(found)


def _check_folder(folder: Path, class_name: str) -> None:
    if not (folder / "config.json").is_file():
        advice = "give a folder written by save_pretrained."
        if (folder / "model_index.json").is_file():
            advice = 'it is a pipeline; say subfolder="transformer".'
        raise MissingFile(f"{str(folder)!r} holds no network (config.json is missing); {advice}")
    saved = read_json(folder / "config.json").get("_class_name")
    if saved not in (None, class_name):
        raise ValueError(f"{str(folder)!r} holds a {saved}, not a {class_name}; load it with {saved}.from_pretrained.")
