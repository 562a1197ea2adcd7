"""The former path of `brickwork.gen.parameterization`, kept for code that imports it."""

from brickwork.gen.parameterization import *  # noqa: F403
