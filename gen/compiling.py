"""Compiling a network by its blocks: one graph for all blocks of a shape, kept on disk between processes.

A stack's blocks differ in their weights alone, so that a few small graphs serve the network, and compiling takes
seconds where the whole takes minutes (diffusers calls it regional compilation). What is compiled stays in the user's
cache folder (`cache_folder`); the next process loads it.
"""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brickwork import compat

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it compiles; a temporary folder unless it is set
_COMPILERS = ("g++", "clang++", "cl")


def cache_folder() -> Path:
    """Where compiled graphs are kept: as torch is told by its environment variable, else in the user's cache."""
    if told := os.environ.get(CACHE):
        return Path(told)
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(caches, "brickwork", "compiled")


def compile_blocks(network: nn.Module, training: bool = False) -> bool:
    """Compile the repeated blocks of a network of ours or of diffusers.

    Graphs are made for the first shape, and where another comes once more, for any.

    Args:
        network: on the device where it will run.
        training: whether to be trained, at one shape; a block must then be one graph.

    Returns:
        Whether it is compiled; where it cannot be, a warning says why, and the network runs as it was.
    """
    if problem := why_not(network):
        warnings.warn(f"not compiled: {problem}", stacklevel=2)
        return False
    network.compile_repeated_blocks(fullgraph=training, **compile_options(network, training))
    return True


def why_not(network: nn.Module) -> str | None:
    """What keeps torch from compiling here and keeping the result, and what to do; `None` where nothing does.

    Names the cache folder to torch, unless the environment does.
    """
    if not hasattr(network, "compile_repeated_blocks"):
        return f"a {type(network).__name__} does not say which blocks it repeats."
    if _device(network).type == "cpu" and not _compiler():
        return "there is no C++ compiler; install g++ or clang++, or name one in the variable CXX."
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        return f"the cache {str(folder)!r} cannot be written; name a folder of your own in the variable {CACHE}."
    os.environ.setdefault(CACHE, str(folder))
    return None


def compile_options(network: nn.Module, training: bool = False) -> dict[str, Any]:
    """Arguments of `torch.compile` beside the defaults.

    On a CPU each graph to be drawn with is one C++ file with all its kernels. torch's way, which training has, is a
    file a kernel; each reads torch's header, which is first translated by itself, for six seconds.
    """
    if _device(network).type != "cpu":
        return {}
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        compat.trust_vector_instructions()
    return {} if training else {"options": {"cpp_wrapper": True, "cpp_cache_precompile_headers": False}}


def _compiler() -> str | None:
    """The C++ compiler that torch would call."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, _COMPILERS)), None)


def _device(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
