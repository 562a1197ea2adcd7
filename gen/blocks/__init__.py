"""Building blocks. Importing the package registers them."""

from brickwork.gen.blocks import dit, i2rmb, maxvit, resnet  # noqa: F401
from brickwork.gen.blocks.registry import list_blocks

__all__ = ["list_blocks"]
