"""What the networks of blocks share, whatever their shape."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from brickwork.gen.blocks.registry import Block
from brickwork.gen.blocks.windowed import check_maps
from brickwork.gen.blocks.windows import static_size
from brickwork.gen.convbn import find_convbn_pairs, set_convbn_mode
from brickwork.gen.networks.base import Denoiser
from brickwork.gen.operations import count_operations
from brickwork.gen.subnets import FULL, Subnets, find_subnet

TEXT_TOKENS = 77


def largest_window(blocks: Sequence[Block]) -> int:
    """The side that a map needs for every one of the blocks."""
    return max(block.window_size or 1 for block in blocks)


class BlockNetwork(Denoiser):
    """Checkpointing, compilation, sizes and costs; to be named before `ModelMixin` among a network's bases."""

    _supports_gradient_checkpointing = True

    def _set_maps(self, maps: Mapping[str, tuple[int, int]]) -> None:
        """Call when all blocks are there, with the feature maps that they work on (see `check_maps`)."""
        self.maps = maps
        side = self.config.sample_size
        check_maps(side, side, maps, "`sample_size` makes")
        kinds = {type(module).__name__ for module in self.modules() if isinstance(module, Block)}
        self._no_split_modules = self._repeated_blocks = sorted(kinds)
        self.gradient_checkpointing = False

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

    def _check_maps(self, sample: torch.Tensor) -> None:
        check_maps(*static_size(sample), self.maps, "`sample` has")

    def _run(self, block: nn.Module, hidden_states: torch.Tensor, *conditions: torch.Tensor | None) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, hidden_states, *conditions)
        return block(hidden_states, *conditions)

    def _check_subnet(self, subnet: str | None) -> None:
        find_subnet(subnet, [FULL])

    def subnets(self, height: int, width: int) -> Subnets:
        """The network has no cheaper version of itself inside it: `{"full": operations}` of one image.

        Operations are those of matrix products, convolutions and attention, a multiply-add as two, with a text of 77
        tokens for networks that read one.
        """
        config = self.config
        with torch.device("meta"), torch.no_grad():
            network = type(self).from_config(config).eval()
            width_of_text = config.cross_attention_dim
            text = None if width_of_text is None else torch.zeros(1, TEXT_TOKENS, width_of_text)
            sample = torch.zeros(1, config.in_channels, height, width)
            operations, _ = count_operations(lambda: network(sample, 1.0, encoder_hidden_states=text))
        return Subnets({FULL: operations})
