"""Building blocks. Importing the package registers them."""

from brickwork.gen.blocks import basic, dit, i2rmb, maxvit, osa, resnet, resnet_rs, sra, timesblock  # noqa: F401
from brickwork.gen.blocks.registry import list_blocks

__all__ = ["list_blocks"]
