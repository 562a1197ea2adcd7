"""LEGO bricks (Zheng et al., "Learning Stackable and Skippable LEGO Bricks", arXiv 2310.06389).

A stack of small transformers, each working in windows of its own size. Every brick returns a full-resolution estimate
of the same thing and hands it to the next, which is what makes bricks skippable.
"""

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from brickwork.errors import one_of, whole_number
from brickwork.gen.blocks.dit import DiTTokenBlock, modulated_norm
from brickwork.gen.blocks.modulation import Modulation
from brickwork.gen.blocks.norms import zeroed
from brickwork.gen.blocks.recompute import not_kept, recomputed
from brickwork.gen.blocks.stages import per_stage
from brickwork.gen.blocks.windows import pad_to_multiple, window_mask, window_partition, window_reverse
from brickwork.gen.conditioning import ClassTimeEmbedding, coordinate_channels, sincos_position_table
from brickwork.gen.networks.base import Adaptable, Denoiser, EstimatesOutput
from brickwork.gen.networks.cutting import Cuttable, Site
from brickwork.gen.networks.wrapped import (
    PretrainedBrick,
    brick_sizes,
    build_pretrained_brick,
    class_rows,
    describe_denoiser,
    with_row_for_no_class,
)
from brickwork.gen.original.lego_checkpoints import load_original_lego
from brickwork.gen.ports import ResidualPorts, as_map
from brickwork.gen.presets import LEGO_PRESETS
from brickwork.gen.subnets import BrickFamily, Subnets, brick_subsets, bricks_of, name_of

LegoTransformer2DModelOutput = EstimatesOutput  # the former name


class LegoBrick(nn.Module):
    """One brick: patches of an image attend within windows and come back as an image.

    Args beside those of `LegoTransformer2DModel`, here of one brick:
        dim: width of a token.
        cond_dim: width of the condition.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window_size: int,
        patch_size: int,
        num_layers: int,
        dim: int,
        num_attention_heads: int,
        mlp_ratio: float,
        cond_dim: int,
    ):
        super().__init__()
        self.dim, self.out_channels = dim, out_channels
        self.window_size, self.patch_size, self.window_tokens = window_size, patch_size, window_size // patch_size
        self.patch_embed = nn.Linear(in_channels * patch_size**2, dim)
        self.blocks = nn.ModuleList(
            DiTTokenBlock(dim, num_attention_heads, mlp_ratio, cond_dim) for _ in range(num_layers)
        )
        self.final_modulation = Modulation(cond_dim, dim, 2)
        self.proj_out = nn.Linear(dim, out_channels * patch_size**2)
        table = sincos_position_table(dim, self.window_tokens, self.window_tokens)
        self.register_buffer("position_table", table, persistent=False)
        self.gradient_checkpointing = False

    def window_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens in a window: a window larger than the image shrinks to it.

        Its missing part would be padding, masked out of the softmax, so leaving it away changes nothing.
        """
        rows, columns = (min(self.window_tokens, -(-side // self.patch_size)) for side in (height, width))
        return rows, columns

    def operations(self, height: int, width: int) -> int:
        """Floating-point operations of the matrix products for one image (a multiply-add counts as two)."""
        rows, columns = self.window_of(height, width)
        pixels_down, pixels_across = rows * self.patch_size, columns * self.patch_size
        windows = -(-height // pixels_down) * -(-width // pixels_across)
        tokens, total = rows * columns, windows * rows * columns
        count = total * (self.patch_embed.weight.numel() + self.proj_out.weight.numel())
        count += self.final_modulation.linear.weight.numel()
        for block in self.blocks:
            attention = 2 * tokens * block.attn.proj.in_features  # scores and their sum over the values, per token
            count += total * (sum(linear.weight.numel() for linear in block.linears()) + attention)
            count += block.modulation.linear.weight.numel()
        return 2 * count

    def forward(
        self,
        sample: torch.Tensor,
        temb: torch.Tensor,
        cyclic: tuple[bool, bool] = (False, False),
        residuals: Sequence[torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """`sample (B, in_channels, H, W)`, `temb (B, cond_dim)` => `(B, out_channels, H, W)`.

        A window that reaches over the end is padded and masked, or where rows or columns are `cyclic` filled from the
        beginning, which costs the same. `residuals` are maps `(B, dim, rows, columns)` of tokens, added to the blocks'
        outputs.
        """
        height, width = sample.shape[-2:]
        patch, window = self.patch_size, self.window_of(height, width)
        pixels = (window[0] * patch, window[1] * patch)
        if any(cyclic):
            down, across = (-side % length * goes for side, length, goes in zip((height, width), pixels, cyclic))
            sample = nn.functional.pad(sample, (0, across, 0, down), mode="circular")
        token_mask = window_mask(*sample.shape[-2:], window, patch_size=patch, device=sample.device)
        sample = pad_to_multiple(sample, pixels)
        padded = sample.shape[-2:]

        hidden_states = self.patch_embed(window_partition(sample, window, patch_size=patch))
        positions = self.position_table.view(self.window_tokens, self.window_tokens, -1)
        positions = positions[: window[0], : window[1]].flatten(0, 1).to(hidden_states.dtype)
        hidden_states = hidden_states + positions  # (B, windows, tokens, D)
        for block, residual in zip(self.blocks, residuals or [None] * len(self.blocks)):
            inputs = (hidden_states, temb, token_mask)
            again = torch.is_grad_enabled() and self.gradient_checkpointing
            hidden_states = self._gradient_checkpointing_func(block, *inputs) if again else block(*inputs)
            if residual is not None:
                hidden_states = hidden_states + self._cut(residual, window, cyclic).to(hidden_states.dtype)
        hidden_states = recomputed(modulated_norm, hidden_states, *self.final_modulation(temb))
        with not_kept(hidden_states):
            hidden_states = self.proj_out(hidden_states)
        sample = window_reverse(hidden_states, window, *padded, patch_size=patch)
        return sample[..., :height, :width]

    def _cut(self, tokens: torch.Tensor, window: tuple[int, int], cyclic: tuple[bool, bool]) -> torch.Tensor:
        """A map of tokens `(B, dim, rows, columns)` in windows, filled up as the image is."""
        down, across = (-side % length * goes for side, length, goes in zip(tokens.shape[-2:], window, cyclic))
        if down or across:
            tokens = nn.functional.pad(tokens, (0, across, 0, down), mode="circular")
        return window_partition(pad_to_multiple(tokens, window), window)


class LegoTransformer2DModel(Denoiser, ResidualPorts, Cuttable, ModelMixin, ConfigMixin, Adaptable):
    """A stack of LEGO bricks that denoises images of any height and width.

    Lists with one entry a brick describe the stack; a single number for `hidden_sizes` or `num_attention_heads` holds
    for every brick.

    Args beside those of `Denoiser`:
        window_sizes: side of each brick's windows, in pixels.
        patch_sizes: side of each brick's tokens, in pixels; divides the window.
        num_layers: transformer blocks of each brick.
        hidden_sizes: width of each brick, a multiple of 4.
        num_attention_heads: heads of each brick; divides the width.
        mlp_ratio: hidden width of the MLPs over the brick's width.
        trained_subsets: which subsets of bricks the weights were trained for: `"prefix"` (early exits), or `"any"`
            (brick dropout).
        trained_crops: whether the weights were trained on crops of pictures larger than `sample_size` too, so that
            they can draw such pictures with windows that shift.
        pretrained_brick: a denoiser of diffusers as brick 0, as `gen.pretrained_brick.describe_denoiser` says it. In
            the lists its window is `sample_size`, its patch the side whose multiples it takes, and the others are 0.
    """

    presets, pipeline = LEGO_PRESETS, "LegoPipeline"
    smallest = {
        "sample_size": 16, "num_classes": 5, "window_sizes": (4, 16), "patch_sizes": (2, 4), "num_layers": (1, 1),
        "hidden_sizes": (8, 16), "num_attention_heads": 2, "trained_subsets": "any",
    }  # fmt: skip
    _no_split_modules = ["DiTTokenBlock", "PretrainedBrick"]
    # The last two are those of pretrained bricks.
    _repeated_blocks = ["DiTTokenBlock", "ResnetBlock2D", "BasicTransformerBlock"]
    _skip_layerwise_casting_patterns = ["condition", "patch_embed", "modulation", "proj_out", "norm", "pos_embed"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        num_classes: int | None = None,
        window_sizes: Sequence[int] = (4, 16, 64),
        patch_sizes: Sequence[int] = (2, 8, 2),
        num_layers: Sequence[int] = (2, 4, 6),
        hidden_sizes: int | Sequence[int] = 384,
        num_attention_heads: int | Sequence[int] = 6,
        mlp_ratio: float = 4.0,
        id2label: dict[int, str] | None = None,
        trained_subsets: str = "prefix",
        trained_crops: bool = False,
        pretrained_brick: Mapping[str, Any] | None = None,
        augment_dim: int | None = None,
    ):
        super().__init__()
        first = 0 if pretrained_brick is None else 1  # brick of our own
        _check_stack(window_sizes, patch_sizes, num_layers, first)
        _check_sizes(sample_size, in_channels, num_classes, mlp_ratio, id2label)
        num_bricks = len(window_sizes)
        one_of("trained_subsets", trained_subsets, ("prefix", "any"))
        widths = _per_brick("hidden_sizes", hidden_sizes, num_bricks, first)
        heads = _per_brick("num_attention_heads", num_attention_heads, num_bricks, first)

        cond_dim = max(widths)
        # A pretrained brick has an embedding of its own.
        told = {"linear": True, "augment_dim": augment_dim}
        self.condition = ClassTimeEmbedding(cond_dim, num_classes, **told) if num_bricks > first else None
        # The first brick reads the image and its coordinates, later ones the previous estimate as well.
        reads = [in_channels + 2, *[2 * in_channels + 2] * (num_bricks - 1)]
        settings = list(zip(window_sizes, patch_sizes, num_layers, widths, heads))
        bricks = [
            LegoBrick(reads[brick], in_channels, *settings[brick], mlp_ratio, cond_dim)
            for brick in range(first, num_bricks)
        ]
        if pretrained_brick is not None:
            firsts = {"window_sizes": window_sizes[0], "patch_sizes": patch_sizes[0], "num_layers": num_layers[0]}
            brick = build_pretrained_brick(pretrained_brick, in_channels, num_classes, sample_size, firsts)
            bricks.insert(0, brick)
        self.bricks = nn.ModuleList(bricks)
        sites = [f"bricks.{i}.blocks.{j}" for i, brick in enumerate(bricks) for j in range(len(brick.blocks))]
        self.ports = {"block_additional_residuals": sites}
        self.layer_names = [f"bricks.{brick}" for brick in range(num_bricks)]
        self._init_weights()

    def _init_weights(self) -> None:
        for brick in self.own_bricks:
            for linear in (brick.patch_embed, *(linear for block in brick.blocks for linear in block.linears())):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
            zeroed(brick.proj_out)

    @classmethod
    def from_original(cls, path: str | Path, num_attention_heads: int | None = None) -> "LegoTransformer2DModel":
        """Load a checkpoint of the authors without running anything in it; arguments as of `load_original_lego`."""
        model = cls._from_tensors(*load_original_lego(path, num_attention_heads))
        for brick in model.bricks:
            brick.position_table = sincos_position_table(brick.dim, brick.window_tokens, brick.window_tokens)
        return model

    @classmethod
    def from_denoiser(
        cls,
        denoiser: nn.Module,
        scheduler: Any,
        *,
        num_classes: int | None = None,
        sample_size: int | None = None,
        sigma_data: float = 0.5,
        **stack,
    ) -> "LegoTransformer2DModel":
        """A pretrained denoiser of diffusers as the lowest brick, with fresh bricks on it.

        Args:
            denoiser: a `UNet2DModel` or `DiTTransformer2DModel`; its weights are copied.
            scheduler: that it was trained with: a DDPM scheduler or any with betas, or its configuration.
            num_classes: classes of the stack; by default those of the denoiser. A UNet without a row for "no class"
                gets one, the mean of the others.
            sample_size: side of the training images; by default what the denoiser's configuration says.
            sigma_data: of the stack's objective and scheduler.
            stack: further configuration values; lists say what the bricks on top have, of which there may be none.

        Raises:
            ValueError: for networks that cannot be wrapped; the text says why.
        """
        denoiser = with_row_for_no_class(denoiser, num_classes)
        described = describe_denoiser(denoiser, scheduler, sigma_data)
        built_for, unit = brick_sizes(described["class_name"], denoiser.config)
        sample_size = sample_size or built_for
        if sample_size is None:
            raise ValueError("`sample_size` is None, and the denoiser's configuration has no one side; give it.")
        if num_classes is None and class_rows(denoiser.config):
            num_classes = class_rows(denoiser.config) - 1
        firsts = {"window_sizes": sample_size, "patch_sizes": unit, "num_layers": 0}
        stack |= {name: [first, *stack.get(name, ())] for name, first in firsts.items()}
        for name in ("hidden_sizes", "num_attention_heads"):
            if not isinstance(stack.get(name, 1), int):
                stack[name] = [0, *stack[name]]
        stack |= {"in_channels": denoiser.config.in_channels, "pretrained_brick": described}
        model = cls(sample_size=sample_size, num_classes=num_classes, **stack)
        model.bricks[0].model.load_state_dict(denoiser.state_dict())
        return model.eval()

    subnet_family = BrickFamily()
    returns_intermediates = True  # on demand, the estimate of every brick
    has_head = False  # every brick ends in an estimate

    @property
    def num_bricks(self) -> int:
        return len(self.bricks)

    @property
    def own_bricks(self) -> list[LegoBrick]:
        """The bricks but a pretrained one."""
        return [brick for brick in self.bricks if isinstance(brick, LegoBrick)]

    def subnets(self, height: int, width: int) -> Subnets:
        """The trained subsets of bricks by name (`"0+1"`), with the operations of one forward pass of one image."""
        costs = [brick.operations(height, width) for brick in self.bricks]
        condition = 0 if self.condition is None else sum(p.numel() for p in self.condition.parameters() if p.ndim == 2)
        return Subnets(
            (name_of(bricks), 2 * condition * self._needs_condition(bricks) + sum(costs[brick] for brick in bricks))
            for bricks in brick_subsets(self.num_bricks, self.config.trained_subsets)
        )

    def subnet_names(self) -> list[str]:
        return [name_of(bricks) for bricks in brick_subsets(self.num_bricks, self.config.trained_subsets)]

    def residual_sites(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        return {
            f"bricks.{i}.blocks.{j}": (brick.dim, -(-height // brick.patch_size), -(-width // brick.patch_size))
            for i, brick in enumerate(self.bricks)
            for j in range(len(brick.blocks))
        }

    def _brick_residuals(
        self, given: Sequence[torch.Tensor | None] | None, sample: torch.Tensor
    ) -> list[list[torch.Tensor | None] | None]:
        """For each brick the residuals of its blocks, as maps of its tokens; `None` where none are given."""
        if given is None:
            return [None] * self.num_bricks
        name, sites = "block_additional_residuals", self.residual_sites(*sample.shape[-2:])
        maps = [
            residual if residual is None else as_map(residual, (sample.shape[0], *shape), name, site)
            for (site, shape), residual in zip(sites.items(), self._residuals(name, given))
        ]
        return [[maps.pop(0) for _ in brick.blocks] for brick in self.bricks]

    def _needs_condition(self, bricks: Sequence[int]) -> bool:
        return any(isinstance(self.bricks[brick], LegoBrick) for brick in bricks)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        bricks: Sequence[int] | None = None,
        return_intermediates: bool = False,
        return_dict: bool = True,
        coordinates: torch.Tensor | None = None,
        cyclic: tuple[bool, bool] = (False, False),
        subnet: str | None = None,
        block_additional_residuals: Sequence[torch.Tensor | None] | None = None,
        augment_labels: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
    ) -> EstimatesOutput | tuple:
        """Estimate what the network was trained for (EDM's F for the authors' weights).

        Any height and width of at least one patch will do. Timesteps of the EDM family are `log(sigma) / 4`.

        Args beside those of `Denoiser`:
            bricks: numbers of the bricks to run, in order; `None` for all. Where no earlier brick ran, the previous
                estimate is zeros.
            return_intermediates: also return the estimate of every brick that ran.
            coordinates: `(B or 1, 2, H, W)`, the row, then the column of each pixel from -1 to 1, where `sample` is a
                part of a larger picture or a shifted one; `None` for a picture of its own.
            cyclic: whether rows, and columns, go on at the opposite side, so that windows that reach over the end are
                filled from the beginning rather than with masked padding.
            subnet: the bricks to run by name, such as `"0+2"` or `"full"`, in place of `bricks`.
            block_additional_residuals: for each block of every brick but a pretrained one, in order, what is added to
                its output (see `gen.ports`): a map `(B, width, H / patch, W / patch)`, sides rounded up, or its tokens
                `(B, tokens, width)`. Those of bricks that do not run add nothing.
            previous: the estimate `(B, in_channels, H, W)` that the first brick to run reads; `None` for zeros.
        """
        if subnet is not None:
            if bricks is not None:
                raise ValueError(f"`bricks` is {bricks!r} and `subnet` is {subnet!r}; give one of them.")
            bricks = bricks_of(subnet, self.num_bricks)
        bricks = self._check_bricks(bricks)
        smallest, dtype = max(self.bricks[brick].patch_size for brick in bricks), self.dtype
        (height, width), timestep, class_labels = self._read(sample, timestep, class_labels, smallest)
        batch = sample.shape[0]
        temb = None
        if self._needs_condition(bricks):
            temb = self.condition(timestep, class_labels, dtype, augment_labels=augment_labels)
        image = sample.to(dtype)
        if coordinates is None:
            coordinates = coordinate_channels(height, width, sample.device, dtype)
        elif tuple(coordinates.shape) not in ((1, 2, height, width), (batch, 2, height, width)):
            raise ValueError(
                f"`coordinates` has shape {tuple(coordinates.shape)}; give ({batch}, 2, {height}, {width}), or 1 for "
                f"{batch}."
            )
        coordinates = coordinates.to(dtype).expand(batch, -1, -1, -1)

        residuals = self._brick_residuals(block_additional_residuals, sample)
        estimate, estimates = previous, []
        for brick in bricks:
            if isinstance(self.bricks[brick], PretrainedBrick):
                estimate = self.bricks[brick](image, timestep, class_labels)
            else:
                inputs = [image, coordinates]
                if brick > 0:
                    inputs.insert(0, torch.zeros_like(image) if estimate is None else estimate.to(dtype))
                estimate = self.bricks[brick](torch.cat(inputs, dim=1), temb, cyclic, residuals[brick])
            estimates.append(estimate)

        return EstimatesOutput.of(estimates, return_intermediates, return_dict)

    def seam(self, layers: int) -> list[Site]:
        return [Site(f"bricks.{layers - 1}", 0, self.config.in_channels)]

    def run_front(self, layers: int, sample: torch.Tensor, timestep: torch.Tensor, **conditions) -> list[torch.Tensor]:
        return [self(sample, timestep, **conditions, bricks=range(layers)).sample]

    def run_end(
        self, start: int, maps: Sequence[torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor, **conditions
    ) -> torch.Tensor:
        bricks = range(start, self.num_bricks)
        return self(sample, timestep, **conditions, bricks=bricks, previous=maps[0]).sample

    def _check_bricks(self, bricks: Sequence[int] | None) -> tuple[int, ...]:
        if bricks is None:
            return tuple(range(self.num_bricks))
        try:
            numbers = tuple(operator.index(brick) for brick in bricks)
        except TypeError:  # a single number, or what is no number
            numbers = ()
        in_range = numbers and 0 <= min(numbers) and max(numbers) < self.num_bricks
        if not in_range or any(a >= b for a, b in zip(numbers, numbers[1:])):
            raise ValueError(
                f"`bricks` is {bricks!r}; give at least one brick number from 0 to {self.num_bricks - 1}, each once "
                "and in rising order, or None for all."
            )
        return numbers


def _per_brick(name: str, value: int | Sequence[int], num_bricks: int, first: int) -> list[int]:
    """`value` for each brick, from brick `first` on checked to be positive; before it comes 0."""
    values = [0] * first + [value] * (num_bricks - first) if type(value) is int else value
    _check_counts(name, values, first)
    per_stage(name, values, num_bricks, "brick")
    if any(values[:first]):
        raise ValueError(f"`{name}` begins with {values[0]}; for a pretrained brick it begins with 0.")
    return list(values)


def _check_counts(name: str, values: Sequence[int], first: int = 0) -> None:
    if not isinstance(values, (list, tuple)) or any(type(value) is not int or value < 1 for value in values[first:]):
        raise ValueError(f"`{name}` is {values!r}; give a list of whole numbers from 1 up, one a brick.")


def _check_stack(
    window_sizes: Sequence[int], patch_sizes: Sequence[int], num_layers: Sequence[int], first: int
) -> None:
    for name, values in (("window_sizes", window_sizes), ("patch_sizes", patch_sizes), ("num_layers", num_layers)):
        _check_counts(name, values, first)
    if not len(window_sizes) == len(patch_sizes) == len(num_layers) or not window_sizes:
        raise ValueError(
            f"`window_sizes`, `patch_sizes` and `num_layers` have {len(window_sizes)}, {len(patch_sizes)} and "
            f"{len(num_layers)} entries; give one entry a brick, and at least one brick."
        )
    for window, patch in list(zip(window_sizes, patch_sizes))[first:]:
        if window % patch:
            raise ValueError(f"`patch_sizes` has {patch}, which does not divide its window of {window} pixels.")


def _check_sizes(
    sample_size: int, in_channels: int, num_classes: int | None, mlp_ratio: float, id2label: dict | None
) -> None:
    counts = {"sample_size": sample_size, "in_channels": in_channels}
    for name, value in (counts if num_classes is None else counts | {"num_classes": num_classes}).items():
        whole_number(name, value, more=", or None for an unconditional network" if name == "num_classes" else "")
    if mlp_ratio <= 0:
        raise ValueError(f"`mlp_ratio` is {mlp_ratio}; give a positive number.")
    if id2label is not None:
        classes = [str(number) for number in range(num_classes or 0)]
        if not isinstance(id2label, dict) or any(str(key) not in classes for key in id2label):
            raise ValueError(f"`id2label` is {id2label!r}; give {{number: name}} with numbers below `num_classes`.")
