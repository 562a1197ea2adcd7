"""What a network of blocks is made of, stage by stage (or layer by layer)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from brickwork.gen.blocks.attention import head_dim_of
from brickwork.gen.blocks.registry import BLOCKS, Block, parse_block_types


@dataclass(frozen=True)
class StageSpec:
    """One stage of a network.

    Attributes:
        block: its name, one of `list_blocks()`.
        channels: of the stage's map.
        layers: how many blocks.
        options: settings of the block, which must know them.
        shared: settings of all stages; a block takes those it knows.
        position: where in the network it is, such as "stage 1 of 3", for errors.
    """

    block: str
    channels: int
    layers: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    position: str = ""

    def build(self, cond_dim: int, block: str | None = None, channels: int | None = None, **further) -> Block:
        """A block of the stage.

        Args:
            cond_dim: width of the condition.
            block: another kind of block, with the shared settings and its own defaults.
            channels: another width.
            further: settings that a block takes if it knows them: `decoder`; `out_dim` and `stride`, with which it
                changes the shape.

        Raises:
            ValueError: for options that the block does not take, and for a block that changes the shape of its map
                where it should not, or keeps it where it should change it.
        """
        name, dim = block or self.block, channels or self.channels
        options = BLOCKS.known_options(name, self.shared)
        if name == self.block:
            options |= BLOCKS.check_options(name, self.options, "options")
        options |= BLOCKS.known_options(name, further)
        try:
            built = BLOCKS.find(name)(dim, cond_dim, **options)
            self._check_shape(name, built, dim, further.get("out_dim") or dim, further.get("stride") or 1)
        except ValueError as error:
            raise ValueError(f"{self.position}: {error}" if self.position else str(error)) from error
        return built

    @staticmethod
    def _check_shape(name: str, built: Block, dim: int, out_dim: int, stride: int) -> None:
        if (built.out_dim, built.stride) != (out_dim, stride):
            raise ValueError(
                f"The block {name!r} makes {built.out_dim} channels of {dim} and divides the sides by {built.stride}, "
                f"where {out_dim} and {stride} are needed; choose a block that takes `out_dim` and `stride`, or "
                "leave these options out."
            )


def per_stage(argument: str, value: Any, count: int, unit: str = "stage") -> list[Any]:
    """`value` for each of `count` stages: one for all, or a sequence with one each."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"`{argument}` has {len(value)} entries for {count} {unit}s; give one for all, or one each.")
    return list(value)


def resolve_stages(
    block_types: str | Sequence[str],
    channels: Sequence[int],
    layers: Sequence[int],
    shared: Mapping[str, Any],
    block_options: Mapping[str, dict] | None = None,
    stage_options: Sequence[dict | None] | None = None,
    unit: str = "stage",
) -> list[StageSpec]:
    """The flat arguments of a network's constructor as its stages.

    Args:
        block_types: one block name for all stages, or one each; see `parse_block_types`.
        channels: of each stage.
        layers: blocks of each stage.
        shared: settings by name, each one value or one for each stage; a block takes those it knows, and its default
            where one is `None`. `num_attention_heads` stands for the `attention_head_dim` of as many heads.
        block_options: further settings by kind of block.
        stage_options: further settings by stage, which go before those.
        unit: what a stage is called in an error.

    Raises:
        ValueError: for lists of another length, unknown blocks, and settings that a block does not take.
    """
    count = len(channels)
    names = parse_block_types(block_types, count, unit)
    by_block = block_options or {}
    for name in by_block:
        if name not in names:
            raise ValueError(
                f"`block_options` has settings for {name!r}, but the network's blocks are {sorted(set(names))}; "
                "leave them out."
            )
    by_stage = per_stage("stage_options", stage_options, count, unit)
    lists = {key: per_stage(key, value, count, unit) for key, value in shared.items()}
    heads = lists.pop("num_attention_heads", [None] * count)
    stages = []
    for stage, name in enumerate(names):
        settings = {key: values[stage] for key, values in lists.items()}
        if heads[stage] is not None:
            settings["attention_head_dim"] = head_dim_of(channels[stage], heads[stage], settings["attention_head_dim"])
        options = BLOCKS.check_options(name, by_block.get(name), "block_options")
        options |= BLOCKS.check_options(name, by_stage[stage], f"stage_options[{stage}]")
        position = f"{unit} {stage + 1} of {count}"
        stages.append(StageSpec(name, channels[stage], layers[stage], options, settings, position))
    return stages


def set_drop_path(blocks: Sequence[nn.Module], rate: float) -> None:
    """Let training leave blocks out at random for single images, the deeper the more often (stochastic depth).

    Args:
        blocks: in the order in which they run.
        rate: of the last; the first is never left out. 0 for none.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"`drop_path` is {rate}; give a share from 0 to below 1.")
    for number, block in enumerate(blocks):
        block.drop_path = rate * number / max(len(blocks) - 1, 1)
