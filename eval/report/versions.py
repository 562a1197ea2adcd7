"""The versions that a number was made with."""

import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

LIBRARIES = ("brickwork", "torch", "diffusers", "transformers", "torchmetrics", "accelerate", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Version of Python and of every library that a result depends on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = _version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            versions[name] = "unknown"
    return versions


@cache
def _version(name: str) -> str:
    """As `importlib.metadata.version`, which parses the whole description first: three milliseconds a package."""
    package = distribution(name)
    found = re.search(r"^Version: *(\S+)", package.read_text("METADATA") or "", re.MULTILINE)
    return found[1] if found else package.version


def cpu_says(*names: str) -> str:
    """What Linux says of the first processor under one of these names; nothing where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.lower().startswith(names)), "")
