"""Stems. Importing the package registers them."""

from brickwork.gen.stems import conv, resnet_d, s2d  # noqa: F401
from brickwork.gen.stems.registry import list_stems, register_stem

__all__ = ["list_stems", "register_stem"]
