"""Necks. Importing the package registers them."""

from brickwork.gen.necks import ffnet_up, gfpn, skip  # noqa: F401
from brickwork.gen.necks.registry import list_necks, register_neck

__all__ = ["list_necks", "register_neck"]
